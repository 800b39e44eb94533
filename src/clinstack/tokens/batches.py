"""Batches of examples of similar length, so that little padding is computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clinstack.tokens.documents import Tokens

_POOL = 16
"""Batches in a pool that is sorted by length: larger saves more padding, smaller leaves more chance."""


def shuffled_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the batches of an epoch: shuffled, then sorted by length within pools of batches, then shuffled.

    A pure function of its arguments, so that a resumed epoch has the same batches.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    batches: list[list[int]] = []
    pool = batch_size * _POOL
    for start in range(0, len(order), pool):
        part = sorted(order[start : start + pool].tolist(), key=lambda index: lengths[index])
        batches += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
    return [batches[index] for index in random.permutation(len(batches))]


def sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches for evaluation: by length, longest first, so that memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


def pad(sequences: Sequence[Tokens], filler: int) -> tuple[Tensor, Tensor]:
    """Pad on the right.

    Returns
    -------
    input_ids, attention_mask : int64 tensors [rows, tokens]
    """
    width = max(len(sequence) for sequence in sequences)
    input_ids = np.full((len(sequences), width), filler, dtype=np.int64)
    mask = np.zeros((len(sequences), width), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(mask)
