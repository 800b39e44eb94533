"""What membership attacks read of a language model: each note's loss and Min-K%++, in one pass over the notes.

::

    hidden [tokens, size] ── chunk ─▶ log-probabilities [chunk, vocabulary] ─┬─▶ of the token that stands there
                                                                             └─▶ mean and deviation under themselves

    note      t0    t1    t2    t3    t4    t5          the lowest k % of (log p - mean) / deviation are averaged
    score          -0.2   1.1  -2.9   0.7  -1.4

Nothing of the vocabulary's size is kept beyond a chunk, and of a batch only one number a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clinstack.engine.language_modelling import usable_layout
from clinstack.engine.precision import forward_precision
from clinstack.engine.progress import progress_bar
from clinstack.model.stack import Stack
from clinstack.tokens.documents import Documents
from clinstack.tokens.encode import document_ends
from clinstack.tokens.layout import NoteRows
from clinstack.tokens.pack import IGNORED, PackedBatch, Segments, one_in_each_row, pack_segments, split_documents

_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Log-probabilities at once: on a CPU 256 positions of a vocabulary of 4,096, which stay in its cache meanwhile."""
_LEAST_DEVIATION = 1e-4
"""Of log-probabilities; where a model is sure of one token they have none, and a score would divide rounding by it."""


@dataclass(frozen=True)
class AttackLosses:
    """What a model gives to notes, or to the answers of examples; all arrays have the shape [notes].

    Parameters
    ----------
    tokens : int64 array
        Predicted tokens.
    nll : float64 array
        Summed loss in nats.
    window_tokens, window_nll : int64 array, float64 array
        The same of a note's first tokens.
    min_k : float64 array
        Mean log-probability of the least likely tokens (Min-K% Prob, Shi et al. 2024, "Detecting Pretraining Data from
        Large Language Models"). NaN where nothing is predicted, or it was not asked for.
    min_k_plus_plus : float64 array
        The same of standardized log-probabilities.
    """

    tokens: NDArray[np.int64]
    nll: NDArray[np.float64]
    window_tokens: NDArray[np.int64]
    window_nll: NDArray[np.float64]
    min_k: NDArray[np.float64]
    min_k_plus_plus: NDArray[np.float64]


def note_beginnings(stack: Stack, documents: Documents, context: int) -> NoteRows:
    """Lay the beginnings of notes out in rows: begin token, text, and the end token of those that fit in ``context``.

    A longer note ends in the middle, as its first row did in training. ``cut`` of the rows counts the predicted tokens
    that this leaves out.
    """
    whole = documents.between(*document_ends(stack.tokenizer))
    segments = split_documents(whole.lengths, context)
    first = np.flatnonzero(segments.start == 0)
    kept = Segments(segments.document[first], segments.start[first], segments.stop[first])
    layout = usable_layout(stack, "packed")
    rows = pack_segments(kept, context) if layout == "packed" else one_in_each_row(kept)
    cut = int(whole.predictions.sum()) - int(kept.lengths.sum())
    return NoteRows(whole, kept, rows, layout, context, stack.tokenizer.pad_token_id or 0, cut)


def attack_losses(
    stack: Stack,
    rows: NoteRows,
    batch_size: int,
    *,
    min_k: float | None = 0.2,
    window: int | None = None,
    description: str | None = None,
) -> AttackLosses:
    """Return loss, Min-K% and Min-K%++ of each note under a stack as it is now.

    Min-K%++ (Zhang et al. 2025, "Min-K%++: Improved Baseline for Detecting Pre-Training Data from Large Language
    Models", equations 3 and 4): at each position ``(log p(token) - mean) / deviation``, with mean and standard
    deviation of the log-probabilities of all tokens under the model's own distribution there; the lowest ``min_k`` of
    these, rounded down but one at least, are averaged.

    Parameters
    ----------
    rows : NoteRows or AnswerRows
        One segment for each note, as `note_beginnings` and `lay_out_pairs` make them; of answers, prompts are read and
        not scored.
    batch_size : int
        Rows at once, which bounds the memory.
    min_k : float or None
        Share of a note's predicted tokens. None leaves Min-K% and Min-K%++ out, which are NaN then: losses only, by the
        same arithmetic, so that a stack that computes what its base does has the base's losses to the last bit.
    window : int, optional
        Predicted tokens of a note that are also summed apart, from its first; all of them when not given.
    """
    if len(np.unique(rows.segments.document)) < len(rows.segments):
        raise ValueError("a note stands in several segments; lay out its beginning only")
    notes = len(rows.documents)
    tokens, window_tokens = np.zeros(notes, dtype=np.int64), np.zeros(notes, dtype=np.int64)
    nll, window_nll = np.zeros(notes), np.zeros(notes)
    lowest, lowest_standardized = np.full(notes, np.nan), np.full(notes, np.nan)
    batches = rows.in_order(batch_size)
    stack.eval()
    with torch.inference_mode(), forward_precision(stack), progress_bar(description, len(batches)) as bar:
        for chosen in batches:
            batch = rows.collate(chosen)
            scores = _token_scores(stack, batch.to(stack.device), standardize=min_k is not None)
            logs, standardized = (part.cpu().double().numpy() for part in scores)
            owners = batch.documents[batch.labels != IGNORED].numpy()
            edges = np.flatnonzero(np.diff(owners, prepend=-1, append=-1))
            for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
                note, length = int(owners[begin]), end - begin
                near = min(length, length if window is None else window)
                tokens[note], window_tokens[note] = length, near
                nll[note], window_nll[note] = -logs[begin:end].sum(), -logs[begin : begin + near].sum()
                if min_k is not None:
                    count = max(1, int(length * min_k))
                    lowest[note] = np.partition(logs[begin:end], count - 1)[:count].mean()
                    lowest_standardized[note] = np.partition(standardized[begin:end], count - 1)[:count].mean()
            bar.advance(batch.predictions)
    return AttackLosses(tokens, nll, window_tokens, window_nll, lowest, lowest_standardized)


def _token_scores(stack: Stack, batch: PackedBatch, *, standardize: bool) -> tuple[Tensor, Tensor]:
    """Return log-probability and standardized log-probability of the predicted tokens, float32 [predictions].

    The second is empty without ``standardize``.
    """
    logs: list[Tensor] = []
    standardized: list[Tensor] = []
    hidden, labels = predicted_states(stack, batch)
    for chunk, distribution in log_distributions(stack, hidden):
        # Far below what float32 can hold as a probability, which is 0 there; 0 times minus infinity is no number.
        distribution.clamp_(min=-1e4)
        own = distribution.gather(1, labels[chunk, None])[:, 0]
        logs.append(own)
        if not standardize:
            continue
        probabilities = distribution.exp()
        mean = torch.linalg.vecdot(probabilities, distribution)
        # Of differences, as the difference of squares loses its digits where the model is sure.
        probabilities *= distribution.sub_(mean[:, None]).square_()
        deviation = probabilities.sum(1).sqrt_().clamp_(min=_LEAST_DEVIATION)
        standardized.append((own - mean) / deviation)
    nothing = hidden.new_zeros(0, dtype=torch.float32)
    return torch.cat([nothing, *logs]), torch.cat([nothing, *standardized])


def predicted_states(stack: Stack, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Return the hidden states that predict a token, [predictions, size], and these tokens, [predictions]."""
    hidden = stack.hidden_states(batch.input_ids, batch.attention_mask, batch.position_ids)
    predicts = batch.labels != IGNORED
    return hidden[predicts], batch.labels[predicts]


def log_distributions(stack: Stack, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield a slice of the positions and their log-probabilities, float32 [positions, vocabulary], a chunk at a time.

    Who takes them may overwrite them.
    """
    output: Any = stack.network.get_output_embeddings()
    weight, bias = output.weight, getattr(output, "bias", None)
    cap = getattr(stack.network.config, "final_logit_softcapping", None)
    size = max(1, _LOGITS.get(hidden.device.type, _LOGITS["cuda"]) // len(weight))
    for start in range(0, len(hidden), size):
        chunk = slice(start, min(start + size, len(hidden)))
        logits = F.linear(hidden[chunk], weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
        logits = logits.float()
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        yield chunk, F.log_softmax(logits, -1)
