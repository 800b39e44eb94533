"""The cards of a Stack, rendered from what is on disk: README.md, TRIPOD-LLM, and CHAI's Applied Model Card."""

from clinstack.model.cards.write import CARD_FILES as CARD_FILES
from clinstack.model.cards.write import Cards as Cards
from clinstack.model.cards.write import write_cards as write_cards
