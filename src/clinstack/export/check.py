"""Is what was written what the stack is? The folder is opened anew in the plain libraries, and both read a probe batch.

In float32 the largest difference of a logit may be `TOLERANCE`: what is left is the order of sums. A model whose
weights are rounded to 16 bits is held to that twice, before the rounding against the stack, and after it against its
own file; so nothing but the rounding is between the two. What that does to the logits is measured, told, and may be as
much as `ROUNDING` of the largest logit, as much as a stack in this dtype may differ when it is loaded again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from clinstack.errors import ClinstackError
from clinstack.model.stack import Stack
from clinstack.tokens.encode import own_ends

TOLERANCE = 1e-4
ROUNDING = {"float16": 0.02, "bfloat16": 0.1}
"""What rounding weights to a dtype may change, as a share of the largest logit."""
_LENGTHS = (3, 17, 40, 96)
"""Tokens of the probe's rows: short and long together, so that a batch of them is padded."""
_PROBE = (
    "ADMISSION NOTE. CHIEF COMPLAINT: shortness of breath and chest pain for two days. HISTORY: A 71 year old with "
    "hypertension, diabetes and atrial fibrillation on warfarin was admitted with fever of 38.9, blood pressure "
    "94/52 and a lactate of 3.1. Chest film: infiltrate of the left lower lobe. Ceftriaxone and azithromycin were "
    "begun, fluids given, and the patient taken to the intensive care unit. No known drug allergies. PLAN: cultures, "
    "antibiotics for seven days, furosemide 40 mg when stable, hold metformin, follow creatinine and INR each day."
)
"""An invented note: its tokens are like those that a stack reads."""


class ExportError(ClinstackError):
    """What was written gives other outputs than the stack. It is not kept."""


@dataclass(frozen=True)
class Measured:
    """How far outputs of what was exported are from the stack's.

    Parameters
    ----------
    difference : float
        The largest, of all logits of the probe batch.
    limit : float
        What was allowed.
    opened_with : str
        What the folder was opened with.
    facts : mapping
        More of what was measured.
    """

    difference: float
    limit: float
    opened_with: str
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of export.json."""
        return {
            "largest_difference": self.difference,
            "limit": self.limit,
            "opened_with": self.opened_with,
            **self.facts,
        }


def probe_rows(stack: Stack) -> list[list[int]]:
    """Return the probe batch: the beginnings of an invented note, as the stack's tokenizer has it."""
    before, after = own_ends(stack.tokenizer)
    text = stack.tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    config = stack.network.config.get_text_config()
    most = int(getattr(config, "max_position_embeddings", None) or max(_LENGTHS))
    # RoBERTa counts positions from behind its padding token, so two fewer are left.
    room = min(most - 2, max(_LENGTHS)) - len(before) - len(after)
    rows = [[*before, *text[: min(length, room)], *after] for length in _LENGTHS]
    return [list(row) for row in dict.fromkeys(map(tuple, rows))]


def stack_outputs(stack: Stack, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return a stack's logits of each row: shape [classes], or [tokens, vocabulary] of a language model."""
    ids, mask = padded(rows, padding_of(stack))
    stack.eval()
    with torch.inference_mode():
        if stack.task is not None:
            return list(stack.logits(ids, mask))
        if stack.can_pack:
            logits = stack.network(input_ids=ids, attention_mask=mask).logits
        else:  # with virtual tokens, which only the stack knows to put in
            logits = stack.network.get_output_embeddings()(stack.hidden_states(ids, mask))
        return [row[: len(tokens)].float() for row, tokens in zip(logits, rows, strict=True)]


def plain_outputs(
    model: Any, rows: Sequence[Sequence[int]], padding: int, *, is_classifier: bool, one_by_one: bool = False
) -> list[Tensor]:
    """Return the logits of a model of the plain libraries, in the same shapes.

    ``one_by_one`` reads each row alone: plain PEFT pools a padded row with virtual tokens at its padding.
    """
    model.eval()
    batches = [[row] for row in rows] if one_by_one else [rows]
    result: list[Tensor] = []
    with torch.inference_mode():
        for batch in batches:
            ids, mask = padded(batch, padding)
            logits = model(input_ids=ids, attention_mask=mask).logits.float()
            for row, tokens in zip(logits, batch, strict=True):
                # Plain PEFT gives the logits of virtual tokens too, before the text's.
                result.append(row if is_classifier else row[len(row) - ids.shape[1] :][: len(tokens)])
    return result


def padding_of(stack: Stack) -> int:
    """Return the id that rows of the probe are padded with."""
    return int(stack.tokenizer.pad_token_id or 0)


def padded(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask, padded on the right: int64 [rows, tokens] each."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def compare(wanted: Sequence[Tensor], found: Sequence[Tensor], what: str, dtype: str = "float32") -> Measured:
    """Return the largest difference of logits.

    Parameters
    ----------
    wanted, found : sequences of Tensor
    what : str
        What was opened with what, for people.
    dtype : str
        What weights were rounded to between the two.

    Raises
    ------
    ExportError
        If it is larger than allowed, or a number is none.
    """
    difference = max(float((one - other).abs().max()) for one, other in zip(wanted, found, strict=True))
    limit = TOLERANCE
    if dtype in ROUNDING:
        limit = ROUNDING[dtype] * max(1.0, *(float(row.abs().max()) for row in wanted))
    if not difference <= limit:
        raise ExportError(
            f"export: {what} gives other outputs than the stack (largest difference of a logit {difference:.3g}, "
            f"allowed {limit:.3g}). Nothing was written."
        )
    return Measured(difference, limit, what, {})


@contextmanager
def quiet() -> Iterator[None]:
    """Open models without what the libraries say of heads and attributes that are about to go."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)
