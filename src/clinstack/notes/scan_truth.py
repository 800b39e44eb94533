"""Recall and precision of a scan where the identifiers are known: the synthetic cohort's."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clinstack.errors import InputError
from clinstack.evaluate.bootstrap import Estimate, draw_patients, percentile_interval
from clinstack.notes.scan_sources import Texts
from clinstack.privacy.identifiers import KINDS, PLACEHOLDER, Identifier

_COLUMNS = ("ROW_ID", "SUBJECT_ID", "START", "END", "KIND", "FORM", "HELD_OUT")
RESAMPLES = 1000


class ScanTruth:
    """Compares findings with what stands in ``identifiers.csv.gz``.

    An identifier counts as found when findings cover all its letters and digits, whatever kind they say: so nothing of
    it would stay after scrubbing. A finding counts as right when it shares a character with an identifier.

    Parameters
    ----------
    path : Path
        The file of a cohort that was written with ``--identifiers``.

    Raises
    ------
    InputError
        If the file cannot be read or lacks a column.
    """

    def __init__(self, path: Path) -> None:
        self._truth: dict[str, list[tuple[int, int, str, bool, str]]] = {}
        self._path = path
        self._seen: set[str] = set()
        self.known: list[tuple[str, str, bool, bool, str]] = []
        """Patient, kind, whether held out, whether found, form; one for each identifier."""
        self.findings: list[tuple[str, str, bool]] = []
        """Patient, kind, whether right; one for each finding."""
        try:
            with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                missing = next((name for name in _COLUMNS if name not in (reader.fieldnames or ())), None)
                if missing is not None:
                    raise InputError(f"{path}: the column {missing} is missing; write the cohort again.")
                for row in reader:
                    entry = int(row["START"]), int(row["END"]), row["KIND"], row["HELD_OUT"] == "1", row["FORM"]
                    self._truth.setdefault(row["ROW_ID"], []).append(entry)
        except (OSError, EOFError, ValueError) as error:
            raise InputError(
                f"{path} is not the list of a cohort's identifiers ({type(error).__name__}); it is named "
                "identifiers.csv.gz, beside the tables that `clinstack prepare cohort --identifiers` wrote."
            ) from None

    def __call__(self, part: Texts, found: Sequence[Sequence[Identifier]]) -> None:
        """Compare a part of NOTEEVENTS with its findings."""
        if part.note_ids is None or part.patient_ids is None:
            raise InputError(
                f"{part.file}: with --truth, scan the cohort's NOTEEVENTS, which has ROW_ID and SUBJECT_ID."
            )
        for note, patient, text, items in zip(part.note_ids, part.patient_ids, part.texts, found, strict=True):
            known = self._truth.get(note, [])
            self._seen.add(note)
            identifiers = [item for item in items if item.kind != PLACEHOLDER]
            if any(end > len(text) for _, end, *_ in known):
                raise InputError(f"{self._path}: its notes were not scanned; name the NOTEEVENTS of the same cohort.")
            for start, end, kind, held_out, form in known:
                covered = all(
                    any(item.start <= place < item.end for item in identifiers)
                    for place in range(start, end)
                    if text[place].isalnum()
                )
                self.known.append((str(patient), kind, held_out, covered, form))
            for item in identifiers:
                right = any(item.start < end and start < item.end for start, end, *_ in known)
                self.findings.append((str(patient), item.kind, right))

    def figures(self, seed: int = 0) -> dict[str, Any]:
        """Return recall, precision and F1 by kind and over all, with 95 % intervals over patients.

        ``known`` counts identifiers in the formats that the patterns were written for, ``held_out`` has the recall of
        the other formats. A finding may be right by an identifier of either.

        Raises
        ------
        InputError
            If notes of the truth were not scanned.
        """
        missing = len(self._truth.keys() - self._seen)
        if missing:
            raise InputError(
                f"{self._path}: {missing} of its notes were not scanned; name the NOTEEVENTS of the same cohort."
            )
        patients = sorted({row[0] for row in self.known} | {row[0] for row in self.findings})
        draws = draw_patients(patients, RESAMPLES, seed)
        place = {patient: number for number, patient in enumerate(draws.patients.tolist())}

        def ratio(rows: list[tuple[str, bool]]) -> tuple[Estimate, np.ndarray[Any, Any]]:
            hits, all_ = np.zeros(len(place)), np.zeros(len(place))
            for patient, hit in rows:
                all_[place[patient]] += 1
                hits[place[patient]] += hit
            with np.errstate(invalid="ignore", divide="ignore"):
                resampled = (hits @ draws.counts) / (all_ @ draws.counts)
            if not rows:
                return {"value": None, "interval": None}, resampled
            return {"value": float(hits.sum() / all_.sum()), "interval": percentile_interval(resampled)}, resampled

        def entry(kind: str | None) -> dict[str, Any]:
            known = [(row[0], row[3]) for row in self.known if kind in (None, row[1]) and not row[2]]
            held_out = [(row[0], row[3]) for row in self.known if kind in (None, row[1]) and row[2]]
            findings = [(row[0], row[2]) for row in self.findings if kind in (None, row[1])]
            (recall, recalls), (precision, precisions) = ratio(known), ratio(findings)
            with np.errstate(invalid="ignore", divide="ignore"):
                resampled = 2 * recalls * precisions / (recalls + precisions)
            value, share = recall["value"], precision["value"]
            f1 = None
            if isinstance(value, float) and isinstance(share, float):
                f1 = 2 * value * share / (value + share) if value + share else 0.0
            return {
                "known": len(known),
                "found": len(findings),
                "recall": recall,
                "precision": precision,
                "f1": {"value": f1, "interval": None if f1 is None else percentile_interval(resampled)},
                "held_out_known": len(held_out),
                "held_out_recall": ratio(held_out)[0],
            }

        kinds = {row[1] for row in self.known} | {row[1] for row in self.findings}
        return {"all": entry(None), **{kind: entry(kind) for kind in KINDS if kind in kinds}}

    def forms(self) -> dict[str, dict[str, int]]:
        """Return how many identifiers of each form there are, and how many were found."""
        result: dict[str, dict[str, int]] = {}
        for _, _, _, covered, form in self.known:
            counts = result.setdefault(form, {"known": 0, "found": 0})
            counts["known"] += 1
            counts["found"] += covered
        return dict(sorted(result.items()))
