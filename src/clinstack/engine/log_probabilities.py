"""Log probabilities of whole answers under a Stack, and under the Stack as it was before it was aligned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from clinstack.tokens.batches import pad
from clinstack.tokens.preferences import Pair

IGNORED = -100
Advance = Callable[[int, int], None]
"""Called with the tokens and the pairs of each batch."""
_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 26}
"""Logits at once, as in `clinstack.engine.next_token`."""


@dataclass(frozen=True)
class PairScores:
    """What a model gives to the answers of pairs: float64 sums in nats, shape [pairs], in the order of the pairs."""

    chosen: Tensor
    rejected: Tensor


def token_log_probabilities(stack: Stack, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
    """Return the log probability of each label given the tokens before it, with gradients where they are enabled.

    Only the labelled positions meet the output layer, a chunk at a time, and a chunk's logits are made again in the
    backward pass: nothing of the vocabulary's size is kept.

    Parameters
    ----------
    input_ids, attention_mask : int64 tensors [rows, tokens]
    labels : int64 tensor [rows, tokens]
        The token itself where it is scored, -100 elsewhere; the first of a row never is.

    Returns
    -------
    float32 tensor [rows, tokens - 1]
        Position ``i`` is that of token ``i + 1``; 0 where nothing is scored.
    """
    hidden = stack.hidden_states(input_ids, attention_mask)[:, :-1]
    targets = labels[:, 1:]
    scored = targets != IGNORED
    output: Any = stack.network.get_output_embeddings()
    cap = getattr(stack.network.config, "final_logit_softcapping", None)
    compute = partial(_log_probabilities, output.weight, getattr(output, "bias", None), cap)
    chosen, wanted = hidden[scored], targets[scored]
    size = _chunk(hidden, output.weight)
    parts = [
        checkpoint(compute, chosen[at : at + size], wanted[at : at + size], use_reentrant=False)
        for at in range(0, len(wanted), size)
    ]
    result = hidden.new_zeros(targets.shape, dtype=torch.float32)
    return result.masked_scatter(scored, torch.cat(parts)) if parts else result


def _log_probabilities(
    weight: Tensor, bias: Tensor | None, cap: float | None, hidden: Tensor, labels: Tensor
) -> Tensor:
    return -F.cross_entropy(_logits(weight, bias, cap, hidden), labels, reduction="none")


def _logits(weight: Tensor, bias: Tensor | None, cap: float | None, hidden: Tensor) -> Tensor:
    """Return the output layer's logits in float32."""
    logits = F.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)).float()
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _chunk(hidden: Tensor, weight: Tensor) -> int:
    """Return how many positions meet the output layer at once."""
    return max(1, _LOGITS.get(hidden.device.type, _LOGITS["cuda"]) // len(weight))


def pair_scores(stack: Stack, pairs: Sequence[Pair], batch_size: int, advance: Advance | None = None) -> PairScores:
    """Return the log probabilities of the answers of pairs, summed over their tokens, without gradients.

    Parameters
    ----------
    stack : Stack
        As it is now; in evaluation mode, or without dropout.
    batch_size : int
        Pairs at once; the longest first, so that memory runs out at once or never.
    advance : callable, optional
    """
    chosen = torch.zeros(len(pairs), dtype=torch.float64)
    rejected = torch.zeros(len(pairs), dtype=torch.float64)
    order = sorted(range(len(pairs)), key=lambda place: (-pairs[place].longest, place))
    for at in range(0, len(order), batch_size):
        places = order[at : at + batch_size]
        input_ids, mask, labels = (tensor.to(stack.device) for tensor in pair_rows(stack, [pairs[i] for i in places]))
        with torch.no_grad():
            logs = token_log_probabilities(stack, input_ids, mask, labels).double().sum(1).cpu()
        chosen[places], rejected[places] = logs.chunk(2)
        if advance is not None:
            advance(sum(pairs[place].tokens for place in places), len(places))
    return PairScores(chosen, rejected)


def token_divergence(
    stack: Stack,
    adapters: Sequence[AdapterRecipe],
    pairs: Sequence[Pair],
    batch_size: int,
    advance: Advance | None = None,
) -> Tensor | None:
    """Return the Kullback-Leibler divergence of the trained stack from the reference at the chosen answers' tokens.

    Over the whole vocabulary, ``sum of p (log p - log r)`` with ``p`` of the trained stack and ``r`` of the reference,
    summed over the positions of each answer: float64 [pairs], in nats.

    None where an adapter was continued or the base trained whole: the reference's weights are then gone.
    """
    if any(adapter.is_trainable and (adapter.path is not None or adapter.method == "full") for adapter in adapters):
        return None
    result = torch.zeros(len(pairs), dtype=torch.float64)
    order = sorted(range(len(pairs)), key=lambda place: (-pairs[place].longest, place))
    for at in range(0, len(order), batch_size):
        places = order[at : at + batch_size]
        rows = pair_rows(stack, [pairs[place] for place in places])
        # The first half of the rows are the chosen answers.
        input_ids, mask, labels = (tensor[: len(places)].to(stack.device) for tensor in rows)
        scored = labels[:, 1:] != IGNORED
        with torch.no_grad():
            hidden = stack.hidden_states(input_ids, mask)[:, :-1][scored]
            with as_reference(stack, adapters):
                before = stack.hidden_states(input_ids, mask)[:, :-1][scored]
            each = torch.zeros(scored.shape, dtype=torch.float64)
            each[scored.cpu()] = _divergence(stack, hidden, before)
        result[places] = each.sum(1)
        if advance is not None:
            advance(sum(pairs[place].tokens for place in places), len(places))
    return result


def _divergence(stack: Stack, hidden: Tensor, before: Tensor) -> Tensor:
    """Return the divergence at each position, float64 [positions] on the CPU, a chunk at a time."""
    output: Any = stack.network.get_output_embeddings()
    cap = getattr(stack.network.config, "final_logit_softcapping", None)
    size = _chunk(hidden, output.weight)
    parts = []
    for at in range(0, len(hidden), size):
        now, then = (
            F.log_softmax(_logits(output.weight, getattr(output, "bias", None), cap, part[at : at + size]), -1)
            for part in (hidden, before)
        )
        parts.append((now.exp() * (now - then)).sum(-1).double().cpu())
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts])


def pair_rows(stack: Stack, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Return input ids, mask and labels of pairs, int64 [2 * pairs, tokens]: first all chosen, then all rejected."""
    rows = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    input_ids, mask = pad(
        [np.asarray([*prompt, *answer]) for prompt, answer in rows], int(stack.tokenizer.pad_token_id)
    )
    labels = torch.full_like(input_ids, IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return input_ids, mask, labels


@contextmanager
def as_reference(stack: Stack, adapters: Sequence[AdapterRecipe]) -> Iterator[None]:
    """Let the stack compute as it was before it was aligned, for a while: without the adapters that begin here.

    Those that are continued must hold their first weights, as they do before the first step. A base that is trained
    whole does too, so it is not read again.
    """
    new = [adapter.name for adapter in adapters if adapter.path is None and adapter.method != "full"]
    with ExitStack() as contexts:
        if new:  # without names, `switched_off` would take all of them
            contexts.enter_context(stack.switched_off(*new))
        yield
