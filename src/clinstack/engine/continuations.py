"""How far a model's greedy continuation of a prefix follows the text that really stands there, without decoding.

::

    read      p0 p1 p2 | c0 c1 c2 c3         one pass over prefix and true continuation together
    likeliest          | c0 c1 xx c3         of each position given all true tokens before it
    run                  2                   leading positions whose likeliest token is the true one

Greedy decoding from the prefix writes the likeliest token, and goes on from it. As long as each was the true one, it
reads the true text, so its first ``run`` tokens are the true ones and the next is not: one pass gives exactly what
decoding token by token gives, for all lengths at once. The same pass gives the probability that a draw at temperature
1 is the true continuation (Hayes et al. 2024, "Measuring memorization through probabilistic discoverable extraction",
section 3), as the sum of the logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clinstack.engine.precision import forward_precision
from clinstack.engine.progress import progress_bar
from clinstack.model.stack import Stack
from clinstack.tokens.documents import Documents
from clinstack.tokens.layout import lay_out
from clinstack.tokens.pack import IGNORED

_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 26}
"""Logits at once, as in `clinstack.engine.next_token`."""


@dataclass(frozen=True)
class Window:
    """A piece of a text: what a model is given, and what follows there.

    Parameters
    ----------
    tokens : int64 array
        Prefix and continuation, one after the other.
    prefix : int
        Tokens of the prefix, at least one.
    """

    tokens: NDArray[np.int64]
    prefix: int

    @property
    def continuation(self) -> NDArray[np.int64]:
        """What follows the prefix."""
        return self.tokens[self.prefix :]


@dataclass(frozen=True)
class Followed:
    """What a model does with windows, in their order.

    Parameters
    ----------
    runs : int64 array [windows]
        Tokens of each continuation that greedy decoding writes before the first that differs.
    logs : float64 array [windows, longest continuation]
        Logarithm of the probability of each token of a continuation, given all before it; 0 behind its end.
    """

    runs: NDArray[np.int64]
    logs: NDArray[np.float64]


def follow(stack: Stack, windows: Sequence[Window], batch_size: int, title: str | None = None) -> Followed:
    """Return how far a stack follows each window, in evaluation mode and without gradients.

    Parameters
    ----------
    stack : Stack
        A language model, as it is now: what is switched off stays so.
    windows : sequence of Window
    batch_size : int
        Windows of the longest size that are read at once; more of shorter ones.
    title : str, optional
        Of the progress bar, which counts windows.

    Raises
    ------
    ValueError
        If a window has no prefix or no continuation.
    """
    if any(not 0 < window.prefix < len(window.tokens) for window in windows):
        raise ValueError("a window needs a prefix and a continuation of one token at least")
    if not windows:
        return Followed(np.zeros(0, dtype=np.int64), np.zeros((0, 0)))
    prefixes = torch.tensor([window.prefix for window in windows])
    lengths = np.array([len(window.tokens) for window in windows])
    right = np.zeros((len(windows), int((lengths - prefixes.numpy()).max())), dtype=bool)
    logs = np.zeros(right.shape)
    rows = lay_out(
        Documents.of([window.tokens for window in windows]),
        "bucketed",
        int(lengths.max()),
        int(stack.tokenizer.pad_token_id or 0),
    )
    batches = rows.in_order(batch_size)
    stack.eval()
    with torch.inference_mode(), forward_precision(stack), progress_bar(title, len(windows), unit="tokens") as bar:
        for batch in (rows.collate(batches[number]) for number in range(len(batches))):
            owners = batch.documents.flatten()
            # Position i reads token i and predicts token i + 1 of its window.
            places = batch.position_ids.flatten() + 1 - prefixes[owners.clamp(min=0)]
            asked = (owners >= 0) & (places >= 0) & (batch.labels.flatten() != IGNORED)
            on_device = batch.to(stack.device)
            hidden = stack.hidden_states(on_device.input_ids, on_device.attention_mask, on_device.position_ids)
            chosen = asked.to(stack.device)
            likeliest, log = _likeliest(stack, hidden.flatten(0, 1)[chosen], on_device.labels.flatten()[chosen])
            place = owners[asked].numpy(), places[asked].numpy()
            right[place], logs[place] = likeliest, log
            bar.advance(batch.predictions, steps=len(set(owners[asked].tolist())))
    # The first wrong one; behind a continuation's end everything counts as wrong.
    runs = np.logical_and.accumulate(right, axis=1).sum(1)
    return Followed(runs.astype(np.int64), logs)


def _likeliest(stack: Stack, hidden: Tensor, labels: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return whether each label is the likeliest token, and the logarithm of its probability, a chunk at a time."""
    output: Any = stack.network.get_output_embeddings()
    bias = getattr(output, "bias", None)
    cap = getattr(stack.network.config, "final_logit_softcapping", None)
    weight = output.weight.to(hidden.dtype)
    size = max(1, _LOGITS.get(hidden.device.type, _LOGITS["cuda"]) // len(weight))
    right, logs = [np.zeros(0, dtype=bool)], [np.zeros(0)]
    for at in range(0, len(labels), size):
        wanted = labels[at : at + size]
        logits = torch.nn.functional.linear(
            hidden[at : at + size], weight, None if bias is None else bias.to(hidden.dtype)
        ).float()
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        right.append((logits.argmax(1) == wanted).cpu().numpy())
        logs.append(-torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double().cpu().numpy())
    return np.concatenate(right), np.concatenate(logs)
