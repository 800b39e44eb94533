"""Findings against thresholds, and the verdict that they come to.

A finding is one figure of one attack with its 95 % interval; higher is always worse. What holds of one:

- *leaking* when the interval's lower end lies above the threshold;
- *clean* when its upper end does not;
- *inconclusive* when the threshold lies inside: there were too few notes or patients to say.

A count without an interval, such as of identifiers, is compared by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from clinstack.privacy.finding_names import finding_name

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


REQUIRED = "membership"
"""The section that a clean verdict needs: every stack has notes that it was trained on and notes that it was not."""


def overall(findings: Mapping[str, Sequence[Mapping[str, Any]]]) -> Verdict:
    """Return what the findings of an audit come to.

    - *leaking* when any finding is;
    - *clean* when membership was tested, each section that was tested is decided (see `is_decided`), and no finding
      that stayed undecided has its value above its threshold;
    - else *inconclusive*: nothing was found, but too little could be tested to say so.

    Parameters
    ----------
    findings : mapping of str to sequence of findings
        Of each section that was tested; an empty one could not decide anything.
    """
    everything = [item for section in findings.values() for item in section]
    if any(item["verdict"] == "leaking" for item in everything):
        return "leaking"
    decided = all(is_decided(section) for section in findings.values())
    if REQUIRED in findings and decided and not any(is_suspicious(item) for item in everything):
        return "clean"
    return "inconclusive"


def is_decided(section: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a section says that there is no leak by one measure at least, whichever attack it is of.

    A measure is what a finding's name ends in, such as ``auroc``: that one membership attack is clean says little where
    another one could not be decided.
    """
    by_measure: dict[str, list[bool]] = {}
    for item in section:
        by_measure.setdefault(item["name"].rpartition(".")[2], []).append(item["verdict"] == "clean")
    return any(all(of_attacks) for of_attacks in by_measure.values())


def is_suspicious(item: Mapping[str, Any]) -> bool:
    """Whether a figure lies above its threshold, though its interval does not."""
    return item["verdict"] == "inconclusive" and item["value"] is not None and item["value"] > item["threshold"]


def sentence(
    verdict: Verdict,
    findings: Mapping[str, Sequence[Mapping[str, Any]]],
    tested: Sequence[str],
    not_tested: Sequence[str],
) -> str:
    """Say in plain words what an audit found, what it tested, what it did not, and what that does not mean.

    Parameters
    ----------
    verdict : {"clean", "leaking", "inconclusive"}
    findings : mapping of str to sequence of findings
        As `overall` takes them.
    tested, not_tested : sequence of str
        Parts of a sentence, of which none ends it.
    """
    did = f"Tested: {'; '.join(tested)}." if tested else "Nothing was tested."
    did_not = f"Not tested: {'; '.join(not_tested)}."
    return " ".join((_finding_sentence(verdict, findings), did, did_not, MEANING[verdict]))


MEANING: dict[Verdict, str] = {
    "clean": (
        "A clean verdict says that these attacks found nothing on these notes. It does not prove that no other attack "
        "would, and it guarantees nothing to a single patient."
    ),
    "leaking": (
        "Whoever has the weights can do what is above a threshold here; treat them as confidential as the notes that "
        "they were trained on."
    ),
    "inconclusive": (
        "An inconclusive verdict is no evidence for release: audit more notes of more patients, or treat the weights "
        "as confidential as the notes."
    ),
}
"""What each verdict means, and what it does not."""


def _finding_sentence(verdict: Verdict, findings: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    everything = [item for section in findings.values() for item in section]
    if verdict == "leaking":
        above = [[item for item in section if item["verdict"] == "leaking"] for section in findings.values()]
        first = [describe(section[0]) for section in above if section]
        more = sum(map(len, above)) - len(first)
        return f"Above the threshold: {'; '.join(first)}{f'; and {more} more' if more else ''}."
    if verdict == "clean":
        undecided = sum(item["verdict"] == "inconclusive" for item in everything)
        but = f"; {undecided} could not be decided, and lie below theirs" if undecided else ""
        return f"No figure of {len(everything)} lies above its threshold{but}."
    if REQUIRED not in findings:
        return "Membership of the training notes was not tested, so nothing can be said of them."
    open_ones = [describe(item) for item in everything if item["verdict"] == "inconclusive"]
    missing = [f"{name}: nothing could be decided" for name, section in findings.items() if not section]
    return f"Too little could be tested to say: {'; '.join([*open_ones, *missing])}."


def describe(item: Mapping[str, Any]) -> str:
    """Return a finding in words, such as ``Membership, loss: AUROC 0.91 (0.85 to 0.95), threshold 0.65``."""
    value = "unknown" if item["value"] is None else f"{item['value']:.3g}"
    ends = item["interval"]
    between = "" if ends is None or None in ends else f" ({ends[0]:.3g} to {ends[1]:.3g})"
    return f"{finding_name(item['name'])} {value}{between}, threshold {item['threshold']:g}"
