"""One text for each admission from its discharge summaries, with the map of its sections."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa

from clinstack.notes.attrition import Attrition
from clinstack.notes.cleaning import clean_texts
from clinstack.notes.mimic3.official.admission_text import official_sections
from clinstack.notes.mimic3.summaries import DISCHARGE_SUMMARY, Summaries
from clinstack.notes.prepared import PreparedFolder
from clinstack.notes.sections.find import (
    SectionSpan,
    admission_sections,
    admission_text_with_map,
    section_map,
    section_rows,
    sections_type,
)
from clinstack.notes.sections.headers import ADMISSION_SECTIONS
from clinstack.notes.text_store import TextStore
from clinstack.processes import WorkerPool, worker_pool

_BATCH = 256
_WORTH_PROCESSES = 4000
"""Admissions from which on starting processes pays."""


@dataclass
class AdmissionTexts:
    """Texts of admissions in the order of their numbers.

    Attributes
    ----------
    hadm : list of int
        The admissions that have a text.
    text : dict of int to int
        The number of each admission's text in ``store``.
    maps : list of pyarrow.Array
        Section maps, one after the other in the order of ``hadm``.
    rows : dict of int to list of int
        The rows of the summaries that each admission's text was joined from, in their order, also of admissions whose
        text was left out.
    other_sections, brackets : set of int
        Admissions where the published script finds another text in a section, and where it keeps an empty "[]".
    gained, lost : set of int
        Admissions with complaint, illness or history by our sections alone, and by the published ones alone.
    """

    store: TextStore
    hadm: list[int] = field(default_factory=list)
    text: dict[int, int] = field(default_factory=dict)
    maps: list[pa.Array] = field(default_factory=list)
    rows: dict[int, list[int]] = field(default_factory=dict)
    other_sections: set[int] = field(default_factory=set)
    brackets: set[int] = field(default_factory=set)
    gained: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)


def build_texts(
    prepared: PreparedFolder,
    summaries: Summaries,
    raw: TextStore,
    grown: set[int],
    store: TextStore,
    attrition: Attrition,
    *,
    admission_only: bool,
    keep_errors: bool,
    addenda_alone: bool,
) -> AdmissionTexts:
    """Clean, choose, order and join the summaries of each admission.

    Of equal texts of one patient a report is kept rather than an addendum, then the latest. Summaries and addenda of an
    admission are joined in the order of CHARTDATE, reports before addenda, then ROW_ID.

    Parameters
    ----------
    prepared : PreparedFolder
        For scratch files and progress.
    summaries, raw : Summaries, TextStore
        The rows of NOTEEVENTS and their texts.
    grown : set of int
        Admissions that are not a newborn's.
    store : TextStore
        Gets the texts.
    attrition : Attrition
        Gets the steps.
    admission_only : bool
        Whether a text is cut to what was known on admission.
    keep_errors : bool
        Whether notes marked as errors count.
    addenda_alone : bool
        Whether an admission that has addenda and no report counts.
    """
    with TextStore(prepared.scratch / "clean.bin") as clean:
        digests = _clean(summaries, raw, clean)
        usable = [
            row
            for row in range(len(summaries))
            if summaries.category[row].strip() == DISCHARGE_SUMMARY
            and digests[row]
            and (keep_errors or not summaries.error[row])
        ]
        best: dict[tuple[int | None, bytes], int] = {}
        for row in usable:
            key = (summaries.subject[row], digests[row])
            if key not in best or _rank(summaries, row) > _rank(summaries, best[key]):
                best[key] = row
        rows: dict[int, list[int]] = {}
        for row in sorted(best.values(), key=lambda row: _place(summaries, row)):
            hadm = summaries.hadm[row]
            if hadm is not None and hadm in grown:
                rows.setdefault(hadm, []).append(row)
        attrition.step("with a discharge summary", len(rows))
        if not addenda_alone:
            rows = {
                hadm: found
                for hadm, found in rows.items()
                if any(summaries.description[row] == "Report" for row in found)
            }
            attrition.step("with a report, not addenda alone", len(rows))
        result = AdmissionTexts(store, rows={hadm: rows[hadm] for hadm in sorted(rows)})
        _cut(prepared, result, summaries, clean, admission_only)
    if admission_only:
        attrition.step("with a chief complaint, present illness or medical history", len(result.hadm))
    return result


def _clean(summaries: Summaries, raw: TextStore, clean: TextStore) -> list[bytes]:
    """Write the cleaned texts under the same numbers; return a digest of each, empty where no text is left."""
    digests = []
    for start in range(0, len(summaries), _BATCH):
        numbers = summaries.text[start : start + _BATCH]
        texts = clean_texts(pa.array([raw.text(number) for number in numbers], pa.large_string()))
        for number in clean.add_all(texts).tolist():
            text = clean.bytes(number)
            digests.append(hashlib.blake2b(text, digest_size=16).digest() if text else b"")
    return digests


def _rank(summaries: Summaries, row: int) -> tuple[bool, str, int]:
    return summaries.description[row] == "Report", summaries.day[row] or "", summaries.note[row] or 0


def _place(summaries: Summaries, row: int) -> tuple[bool, str, bool, int]:
    day = summaries.day[row]
    return day is None, day or "", summaries.description[row] != "Report", summaries.note[row] or 0


@dataclass(frozen=True)
class _Cut:
    """An admission's text, its map, and how the published sections differ."""

    text: str | None
    spans: list[SectionSpan]
    other_sections: bool = False
    brackets: bool = False
    official: bool = True


def cut_texts(texts: list[str], admission_only: bool) -> list[_Cut]:
    """Cut joined summaries to their admission part, and map the sections of what stays."""
    if not admission_only:
        return [_Cut(text, section_map(text)) for text in texts]
    result = []
    for text in texts:
        found = admission_text_with_map(text)
        ours = admission_sections(text)
        theirs = [" ".join(section.split()) for section in official_sections(text)]
        other = any(
            section != ours.get(name, "") and not (section == "[]" and name not in ours)
            for name, section in zip(ADMISSION_SECTIONS, theirs, strict=True)
        )
        brackets = "[]" in theirs
        kept, spans = found or (None, [])
        result.append(_Cut(kept, spans, other, brackets, any(theirs[:3])))
    return result


def _cut(
    prepared: PreparedFolder, result: AdmissionTexts, summaries: Summaries, clean: TextStore, admission_only: bool
) -> None:
    """Join and cut the texts of all admissions."""
    admissions = list(result.rows)

    def batches() -> Iterator[list[str]]:
        for start in range(0, len(admissions), _BATCH):
            yield [
                "\n\n".join(clean.text(summaries.text[row]) for row in result.rows[hadm])
                for hadm in admissions[start : start + _BATCH]
            ]

    done = 0
    with _mapper(len(admissions)) as mapper:
        for cuts in mapper(batches(), admission_only):
            spans = list[list[dict[str, str | int | None]]]()
            for hadm, cut in zip(admissions[done : done + len(cuts)], cuts, strict=True):
                result.other_sections |= {hadm} if cut.other_sections else set()
                result.brackets |= {hadm} if cut.brackets else set()
                if cut.text is None:
                    result.lost |= {hadm} if cut.official else set()
                    continue
                result.gained |= set() if cut.official else {hadm}
                result.hadm.append(hadm)
                result.text[hadm] = result.store.add(cut.text.encode())
                spans.append(section_rows(cut.spans))
            result.maps.append(pa.array(spans, sections_type()))
            done += len(cuts)
            prepared.report("Reading discharge summaries", done, len(admissions))


@contextmanager
def _mapper(admissions: int) -> Iterator[_Mapper]:
    """Yield what cuts batches, in this process or, where there are many, in as many as there are cores."""
    if admissions < _WORTH_PROCESSES:
        yield _Mapper(None)
        return
    with worker_pool() as pool:
        yield _Mapper(pool)


@dataclass(frozen=True)
class _Mapper:
    pool: WorkerPool | None

    def __call__(self, batches: Iterator[list[str]], admission_only: bool) -> Iterator[list[_Cut]]:
        if self.pool is None:
            for texts in batches:
                yield cut_texts(texts, admission_only)
            return
        # Few at a time, so that neither texts nor results pile up.
        waiting = []
        for texts in batches:
            waiting.append(self.pool.submit(cut_texts, texts, admission_only))
            if len(waiting) > 8:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
