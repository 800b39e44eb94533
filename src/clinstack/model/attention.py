"""Attention of packed documents, one at a time: exact, without a mask and without the pairs that it would hide.

::

    a row of two documents, A (5 tokens) and B (3 tokens); a query (line) sees a key (column) where a letter stands

         A A A A A B B B
     A   a . . . . . . .      a dense mask computes all 64 pairs and throws 43 of them away;
     A   a a . . . . . .      here each document is cut into blocks of queries, and a block
     A   a a a . . . . .      computes the keys from its document's first to its own last
     A   a a a a . . . .
     A   a a a a a . . .      (blocks of 2 queries: 2x2, 2x4, 1x5 pairs for A, 2x2, 1x3 for B)
     B   . . . . . b . .
     B   . . . . . b b .
     B   . . . . . b b b

On a CPU in float32 this takes about 0.6 of the time of PyTorch's kernel with a mask, and keeps nothing for the backward
pass but queries, keys and values. Elsewhere transformers' own attention is used.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "clinstack_documents"
"""Under which transformers finds the function that `use_document_attention` switches to."""
_BLOCK = 64
"""Queries in a block: smaller computes fewer hidden pairs, larger makes better matrix products."""


def use_document_attention(network: PreTrainedModel) -> None:
    """Let a network's layers attend document by document wherever a `boundaries_mask` is handed to them.

    With any other mask, or none, they go on with PyTorch's attention. Networks that need another one (capped
    attention scores) keep it.
    """
    if network.config._attn_implementation == "sdpa":
        network.set_attn_implementation(NAME)


def attends_by_document(network: PreTrainedModel) -> bool:
    """Whether a `boundaries_mask` may be handed to the network as it is now: float32 on a CPU."""
    weights = next(network.parameters())
    return (
        network.config._attn_implementation == NAME and weights.device.type == "cpu" and network.dtype == torch.float32
    )


def boundaries_mask(position_ids: Tensor) -> Tensor:
    """Return the lengths of packed documents as an attention mask, for networks with document attention.

    transformers hands a mask of four dimensions to the layers as it is.

    Parameters
    ----------
    position_ids : int64 tensor [rows, tokens]
        Beginning anew at 0 with each document; each row begins with 0.

    Returns
    -------
    int64 tensor [1, 1, 1, documents]
        In reading order over all rows.
    """
    starts = (position_ids.flatten() == 0).nonzero().flatten()
    ends = torch.cat([starts[1:], starts.new_tensor([position_ids.numel()])])
    return (ends - starts)[None, None, None]


def documents_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention in the form in which transformers calls it.

    Parameters
    ----------
    query, key, value : Tensor [rows, heads, tokens, size]
        Keys and values may have fewer heads, each shared by a group of the queries'.
    attention_mask : Tensor or None
        A `boundaries_mask`, or any mask of PyTorch's attention.

    Returns
    -------
    Tensor [rows, tokens, heads, size], and None for the weights.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    lengths = attention_mask.flatten()
    window = kwargs.get("sliding_window")
    # A window hides nothing within documents that are shorter.
    is_windowed = window is not None and window < query.shape[2] and window < int(lengths.max())
    # Autocast leaves queries and keys, which are turned in float32, and values in different dtypes.
    is_float32 = query.dtype == key.dtype == value.dtype == torch.float32
    if dropout or is_windowed or not is_float32:
        mask = _dense_mask(lengths, query.shape[0], query.shape[2], window)
        return documents_attention(module, query, key, value, mask, dropout, scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = cast(Tensor, document_attention(_by_head(query), _by_head(key), _by_head(value), lengths, scale))
    rows, _, tokens, _ = query.shape
    return output.view(rows, tokens, *output.shape[1:]), None


def _by_head(states: Tensor) -> Tensor:
    """Turn [rows, heads, tokens, size] into [heads, rows * tokens, size]."""
    return states.transpose(0, 1).flatten(1, 2).contiguous()


def _dense_mask(lengths: Tensor, rows: int, tokens: int, window: int | None) -> Tensor:
    """Return the same boundaries as a mask of all pairs, shape [rows, 1, tokens, tokens], true where a query sees."""
    document = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths).view(rows, tokens)
    place = torch.arange(tokens, device=lengths.device)
    distance = place[:, None] - place[None, :]
    seen = (document[:, :, None] == document[:, None, :]) & (distance >= 0)
    return (seen if window is None else seen & (distance < window))[:, None]


def _blocks(lengths: Tensor) -> list[tuple[int, int, int]]:
    """Return (first key, first query, end of both) of every block."""
    blocks = []
    begin = 0
    for length in lengths.tolist():
        for start in range(begin, begin + length, _BLOCK):
            blocks.append((begin, start, min(start + _BLOCK, begin + length)))
        begin += length
    return blocks


def _weights(query: Tensor, keys: Tensor, hidden: Tensor) -> Tensor:
    """Return a block's attention weights, shape [heads, queries, keys]; the last keys are the queries' own places."""
    scores = torch.bmm(query, keys.transpose(1, 2))
    own = query.shape[1]
    scores[:, :, -own:] += hidden[:own, :own]
    return torch._softmax(scores, -1, False, out=scores)


def _hidden(query: Tensor) -> Tensor:
    return query.new_full((_BLOCK, _BLOCK), float("-inf")).triu(1)


@torch.library.custom_op("clinstack::document_attention", mutates_args=())
def document_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Causal attention within documents that follow one another.

    Parameters
    ----------
    query, key, value : Tensor [heads, tokens, size]
    lengths : int64 tensor [documents]
        Their sum is the number of tokens.
    scale : float
        Of the scores.

    Returns
    -------
    Tensor [tokens, heads, size]
    """
    heads, tokens, size = query.shape
    output = query.new_empty(tokens, heads, size)
    by_head = output.transpose(0, 1)
    query = query * scale
    hidden = _hidden(query)
    for begin, start, end in _blocks(lengths):
        weights = _weights(query[:, start:end], key[:, begin:end], hidden)
        by_head[:, start:end] = torch.bmm(weights, value[:, begin:end])
    return output


@document_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scale: float) -> Tensor:
    heads, tokens, size = query.shape
    return query.new_empty(tokens, heads, size)


@torch.library.custom_op("clinstack::document_attention_backward", mutates_args=())
def document_attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values, shape [heads, tokens, size]; weights are computed again."""
    of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    gradient = gradient.transpose(0, 1).contiguous()
    query = query * scale
    hidden = _hidden(query)
    for begin, start, end in _blocks(lengths):
        own, queries, keys = gradient[:, start:end], query[:, start:end], key[:, begin:end]
        weights = _weights(queries, keys, hidden)
        of_value[:, begin:end].baddbmm_(weights.transpose(1, 2), own)
        of_weights = torch.bmm(own, value[:, begin:end].transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, query.dtype)
        of_query[:, start:end] = torch.bmm(of_scores, keys)
        of_key[:, begin:end].baddbmm_(of_scores.transpose(1, 2), queries)
    return of_query.mul_(scale), of_key, of_value


@document_attention_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    query, key, value, lengths = ctx.saved_tensors
    gradients = document_attention_backward(gradient, query, key, value, lengths, ctx.scale)
    return (*cast(tuple[Tensor, Tensor, Tensor], gradients), None, None)


document_attention.register_autograd(_backward, setup_context=_keep)
AttentionInterface.register(NAME, documents_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
