"""Findings against thresholds, and the verdict that they come to.

A finding is one figure of one attack with its 95 % interval; higher is always worse. What holds of one:

- *leaking* when the interval's lower end lies above the threshold;
- *clean* when its upper end does not;
- *inconclusive* when the threshold lies inside: there were too few notes or patients to say.

A count without an interval, such as of identifiers, is compared by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

Verdict = Literal["clean", "leaking", "inconclusive"]


def judge(value: float, interval: Sequence[float] | None, threshold: float) -> Verdict:
    """Return what one figure says.

    Parameters
    ----------
    value : float
        Higher is worse; not a number where it could not be computed.
    interval : sequence of two floats, or None
        Of 95 %; None for a count.
    threshold : float
    """
    low, high = (value, value) if interval is None else interval
    if any(math.isnan(number) for number in (value, low, high)):
        return "inconclusive"
    if low > threshold:
        return "leaking"
    return "clean" if high <= threshold else "inconclusive"


def finding(name: str, value: float, interval: Sequence[float] | None, threshold: float) -> dict[str, Any]:
    """Return one row of a section's ``findings``.

    Parameters
    ----------
    name : str
        What was measured, with the attack's name, such as ``membership.loss.auroc``.
    value, interval, threshold
        As `judge` takes them.

    Returns
    -------
    dict
        ``name``, ``value``, ``interval``, ``threshold``, ``verdict``; what is not a number is None, as JSON has none.
    """
    return {
        "name": name,
        "value": _number(value),
        "interval": None if interval is None else [_number(end) for end in interval],
        "threshold": threshold,
        "verdict": judge(value, interval, threshold),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
