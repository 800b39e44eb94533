"""Which adapters are added to the base's weights, so that no stack computes them beside it."""

from __future__ import annotations

from collections.abc import Sequence

from clinstack.errors import InputError
from clinstack.model.factors import Factors

Adapters = tuple[tuple[str, Factors], ...]
"""Hash of the weights and factors of each adapter, from the base upwards."""
FOLDS = ("auto", "always", "never")


def folds(fold: str, precision: tuple[str, str]) -> bool:
    """Return whether adapters are added to the base's weights.

    Parameters
    ----------
    fold : {"auto", "always", "never"}
        ``auto`` where the sum is exact to float32's own rounding.
    precision : (str, str)
        Dtype and quantization of the base.

    Raises
    ------
    InputError
        If nothing can be added to such weights.
    """
    if fold not in FOLDS:
        raise InputError(f"fold: {fold!r} is none of {', '.join(FOLDS)}.")
    dtype, quantize = precision
    if fold == "always" and quantize != "none":
        raise InputError(f"fold: nothing can be added to weights in {quantize}; use auto or never.")
    return fold == "always" or (fold == "auto" and dtype == "float32" and quantize == "none")


def adapters_to_fold(stacks: Sequence[Adapters]) -> Adapters:
    """Return the adapters at the bottom of stacks that leave the least to compute once they are folded.

    Candidates are what two stacks have in common at their bottom, and what lies beneath a stack's topmost adapter: that
    one is its own. A stack without the folded ones computes them once more, with the opposite sign.
    """
    candidates: dict[tuple[str, ...], Adapters] = {(): ()}
    for place, stack in enumerate(stacks):
        for depth in range(1, len(stack) + 1):
            bottom = stack[:depth]
            if depth < len(stack) or any(_hashes(other[:depth]) == _hashes(bottom) for other in stacks[:place]):
                candidates[_hashes(bottom)] = bottom
    return min(candidates.values(), key=lambda folded: sum(_rank_left(stack, folded) for stack in stacks))


def common_bottom(first: Adapters, second: Adapters) -> int:
    """Return how many adapters two stacks have in common, counted from the base."""
    count = 0
    for (one, _), (other, _) in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def _hashes(adapters: Adapters) -> tuple[str, ...]:
    return tuple(digest for digest, _ in adapters)


def _rank_left(stack: Adapters, folded: Adapters) -> int:
    """Return the rank that a stack still needs on top of what is folded."""
    same = common_bottom(stack, folded)
    return sum(factors.rank for _, factors in (*stack[same:], *folded[same:]))
