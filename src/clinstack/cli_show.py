"""What `clinstack validate --show` prints: examples as an instruction tuning reads them, trained tokens marked.

It prints text of notes, to the terminal and nowhere else, because it was asked to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from clinstack.errors import InputError
from clinstack.recipe import InstructRecipe, StageRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from clinstack.tokens.prompts import EncodedPairs

_READ, _TRAINED, _SPECIAL, _BORDER = "", "bold bright_white on dark_green", "bold cyan", "bold green"
_OPEN, _BETWEEN, _CLOSE = "⟦", "│", "⟧"


def show_examples(recipe: StageRecipe, count: int, console: Console) -> None:
    """Print training examples of a recipe, drawn by its seed.

    Raises
    ------
    InputError
        If the recipe trains on no prompts, or an example does not fit.
    """
    if not isinstance(recipe, InstructRecipe):
        raise InputError(f"--show: it shows the prompts of `clinstack instruct`; this is a recipe of {recipe.stage}.")
    from clinstack.model.base import load_tokenizer, locate_base
    from clinstack.stages.instruct import chosen_instructions, encode
    from clinstack.tokens.prompts import Prompt

    tokenizer = load_tokenizer(locate_base(recipe.base))
    prompt = Prompt.of(recipe.prompt, tokenizer)
    examples = chosen_instructions(recipe)["train"].sample(count, recipe.training.seed)
    console.print("[yellow]--show prints text of notes to this terminal. Nothing of it is written.")
    console.print(_legend())
    for place, name in enumerate(examples.example_ids):
        pairs = encode(tokenizer, prompt, recipe, examples.chosen([place]))
        console.print(
            Panel(
                example_text(tokenizer, pairs),
                title=Text(f"{name}: {examples.tasks[place]}"),
                title_align="left",
                subtitle=Text(_counts(pairs, recipe.max_tokens)),
                subtitle_align="right",
            )
        )


def example_text(tokenizer: PreTrainedTokenizerBase, pairs: EncodedPairs) -> Text:
    """Return the first pair as text: the prompt as it is read, the answer token by token.

    Examples
    --------
    ``<s>What was given?⟦as│pir│in│</s>⟧``: four tokens are trained, the last of them the end token.
    """
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    text = Text()
    plain: list[int] = []
    for token in pairs.prompts.ids[0]:
        if token not in special:
            plain.append(token)
            continue
        text.append(_decoded(tokenizer, plain), style=_READ)
        text.append(_decoded(tokenizer, [token]), style=_SPECIAL)
        plain = []
    text.append(_decoded(tokenizer, plain), style=_READ)
    text.append(_OPEN, style=_BORDER)
    for place, token in enumerate(pairs.answers[0]):
        if place:
            text.append(_BETWEEN, style=_BORDER)
        text.append(_decoded(tokenizer, [token]), style=_TRAINED)
    text.append(_CLOSE, style=_BORDER)
    return text


def _legend() -> Text:
    text = Text("read, not trained", style=_READ)
    text.append("    ")
    text.append("<special token>", style=_SPECIAL)
    text.append("    ")
    text.append(_OPEN, style=_BORDER)
    text.append("trained", style=_TRAINED)
    text.append(_BETWEEN, style=_BORDER)
    text.append("token", style=_TRAINED)
    text.append(_BETWEEN, style=_BORDER)
    text.append("by token", style=_TRAINED)
    text.append(_CLOSE, style=_BORDER)
    text.append("    [...] text that a long note lost")
    return text


def _counts(pairs: EncodedPairs, max_tokens: int) -> str:
    prompt, answer = len(pairs.prompts.ids[0]), len(pairs.answers[0])
    cut = pairs.prompts.report["cut"]
    lost = f", {cut} of the note lost" if cut else ""
    return f"{prompt} tokens read, {answer} trained, of {max_tokens} at most{lost}"


def _decoded(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    decoded: Any = tokenizer.decode(tokens, clean_up_tokenization_spaces=False) if tokens else ""
    return str(decoded)
