"""One text for each admission, as the published script chose, ordered and joined them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clinstack.notes.attrition import Attrition
from clinstack.notes.mimic3.official.admission_text import official_admission_text
from clinstack.notes.mimic3.official.pandas_types import MISSING
from clinstack.notes.mimic3.summaries import DISCHARGE_SUMMARY, Summaries
from clinstack.notes.text_store import TextStore

_LONGEST_MISSING = max(map(len, MISSING))


@dataclass(frozen=True)
class OfficialAdmission:
    """An admission that has a text: its number, its patient, and the number of the text in a store."""

    hadm: int
    subject: int
    text: int


def official_order(days: list[str | None]) -> NDArray[np.int64]:
    """Return the order that pandas' unstable sort gave to dates, missing ones last.

    NumPy's quicksort of Python strings decides which of several notes of a day comes last; it is the same in every
    NumPy from 1.17 to 2.4.
    """
    present = np.array([index for index, day in enumerate(days) if day is not None], dtype=np.int64)
    missing = [index for index, day in enumerate(days) if day is None]
    keys = np.array([days[index] for index in present], dtype=object)
    return np.concatenate([present[keys.argsort(kind="quicksort")], np.array(missing, dtype=np.int64)])


@dataclass(frozen=True)
class OfficialRows:
    """Which rows of the summaries the published script joined.

    Attributes
    ----------
    joined : dict of int to list of int
        The rows of each admission that has a report, in the order of joining.
    subject : dict of int to int or None
        The patient of the last report.
    repeated_elsewhere : set of int
        Admissions that lost a text because another patient's later summary repeats it.
    """

    joined: dict[int, list[int]]
    subject: dict[int, int | None]
    repeated_elsewhere: set[int]


def official_rows(summaries: Summaries, raw: TextStore, grown: set[int], attrition: Attrition) -> OfficialRows:
    """Choose and order the summaries of each admission.

    Parameters
    ----------
    summaries, raw : Summaries, TextStore
        The rows of NOTEEVENTS and their texts.
    grown : set of int
        Admissions whose type is not NEWBORN.
    attrition : Attrition
        Gets the steps.
    """
    chosen, digests = list[int](), dict[int, bytes]()
    for row in range(len(summaries)):
        if summaries.hadm[row] in grown and summaries.category[row] == DISCHARGE_SUMMARY and summaries.has_text[row]:
            text = _until_nul(raw.bytes(summaries.text[row]))
            if len(text) > _LONGEST_MISSING or text.decode() not in MISSING:
                chosen.append(row)
                digests[row] = hashlib.blake2b(text, digest_size=16).digest()
    attrition.step("with a discharge summary", len({summaries.hadm[row] for row in chosen}))
    order = [chosen[place] for place in official_order([summaries.day[row] for row in chosen])]
    last_of_text = {digests[row]: row for row in order}
    elsewhere = {
        summaries.hadm[row] for row in order if summaries.subject[last_of_text[digests[row]]] != summaries.subject[row]
    }
    order = [row for row in order if last_of_text[digests[row]] == row]
    attrition.step("with a text that no later summary repeats", len({summaries.hadm[row] for row in order}))
    joined: dict[int, list[int]] = {}
    subject: dict[int, int | None] = {}
    for row in order:
        hadm = summaries.hadm[row]
        assert hadm is not None  # it is in grown
        joined.setdefault(hadm, []).append(row)
        if summaries.description[row] == "Report":
            subject[hadm] = summaries.subject[row]
    attrition.step("with a report, not addenda alone", len(subject))
    return OfficialRows(
        {hadm: joined[hadm] for hadm in sorted(subject)}, subject, {hadm for hadm in elsewhere if hadm is not None}
    )


def official_texts(
    rows: OfficialRows,
    summaries: Summaries,
    raw: TextStore,
    store: TextStore,
    admission_only: bool,
    attrition: Attrition,
    progress: Callable[[int, int], None],
) -> list[OfficialAdmission]:
    """Join the summaries of each admission and write the texts.

    Parameters
    ----------
    rows : OfficialRows
        From `official_rows`.
    summaries, raw : Summaries, TextStore
        The rows of NOTEEVENTS and their texts.
    store : TextStore
        Gets the texts of the result.
    admission_only : bool
        Whether a text is cut to its admission sections.
    attrition : Attrition
        Gets a step for it.
    progress : callable
        Called with the admissions done and in all.

    Returns
    -------
    list of OfficialAdmission
        In the order of the admissions' numbers.
    """
    result = []
    for done, (hadm, found) in enumerate(rows.joined.items(), 1):
        parts = [_until_nul(raw.bytes(summaries.text[row])) for row in found]
        text: str | None = b"\n\n".join(parts).decode().strip()
        if admission_only and text is not None:
            text = official_admission_text(text)
        subject = rows.subject[hadm]
        if text is not None and subject is not None:
            result.append(OfficialAdmission(hadm, subject, store.add(text.encode())))
        if done % 500 == 0 or done == len(rows.joined):
            progress(done, len(rows.joined))
    if admission_only:
        attrition.step("with a chief complaint, present illness or medical history", len(result))
    return result


def _until_nul(text: bytes) -> bytes:
    """Return what pandas read of a text: up to a NUL byte."""
    return text.split(b"\0", 1)[0]
