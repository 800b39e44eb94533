"""Identifiers of people in text: where they stand and of which kind; never their words in what is written."""

from clinstack.privacy.identifiers.engines import find_identifiers
from clinstack.privacy.identifiers.identifier import KINDS, Identifier

__all__ = ["KINDS", "Identifier", "find_identifiers"]
