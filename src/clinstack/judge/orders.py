"""In which order a judge sees the answers: drawn by a seed and the example, and turned so that places balance.

Judges prefer an answer for its place (Wang et al. 2024, "Large Language Models are not Fair Evaluators"; Zheng et al.
2023). So each answer is shown in several places, and the mean over them counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

Mode = Literal["pairs", "all"]


@dataclass(frozen=True)
class Presentation:
    """One question to the judge: which answers it sees, and in which order.

    Parameters
    ----------
    example_id : str
    shown : tuple of str
        Labels of the answers from the first place to the last. The judge sees letters instead.
    order : int
        Number of the presentation among those of the same answers, from 0.
    """

    example_id: str
    shown: tuple[str, ...]
    order: int


def presentations(
    example_ids: Sequence[str], labels: Sequence[str], mode: Mode, orders: int, seed: int
) -> list[Presentation]:
    """Return every question to the judge, example by example.

    ``pairs``: each pair of labels both ways round; which way comes first is drawn. ``all``: all labels at once, in
    ``orders`` orders. These are turns of one drawn order, so that each label stands once in each place when there are
    as many orders as labels; after a full turn a new order is drawn.

    What is drawn depends on the seed, the example and the set of labels, and on nothing else: another sample of
    examples, or the labels in another order, changes no presentation.
    """
    groups = list(combinations(sorted(labels), 2)) if mode == "pairs" else [tuple(sorted(labels))]
    count = 2 if mode == "pairs" else orders
    return [
        Presentation(example, _turned(group, seed, example, order), order)
        for example in example_ids
        for group in groups
        for order in range(count)
    ]


def _turned(labels: Sequence[str], seed: int, example_id: str, order: int) -> tuple[str, ...]:
    block, turn = divmod(order, len(labels))
    drawn = sorted(labels, key=lambda label: _rank(seed, example_id, block, labels, label))
    return tuple(drawn[turn:] + drawn[:turn])


def _rank(seed: int, example_id: str, block: int, labels: Sequence[str], label: str) -> bytes:
    return hashlib.sha256(repr((seed, example_id, block, tuple(labels), label)).encode()).digest()
