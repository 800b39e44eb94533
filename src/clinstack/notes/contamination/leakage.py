"""Phrases that may give a label away, counted by task and split.

A phrase proves nothing: "hospice" may be where a patient came from. What tells is the prevalence of the label among
the examples with the phrase and among those without; where they are far apart, a model can score without medicine. In
an admission text the phrases of the outcome should be rare; in full discharge summaries they are everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinstack.errors import InputError
from clinstack.notes.contamination.compared_files import prepared_tasks
from clinstack.notes.row_batches import batches
from clinstack.notes.splits import SPLITS
from clinstack.tasks import Task

Progress = Callable[[str, int, int], None]
_DAYS = r"\d+\s*(?:days?|d)\b"
PHRASES: dict[str, dict[str, str]] = {
    "mortality": {
        "expired": r"\bexpired\b",
        "died": r"\bdied\b",
        "passed away": r"\bpassed\s+away\b",
        "deceased": r"\bdeceased\b",
        "demise": r"\bdemise\b",
        "pronounced dead": r"\bpronounced\s+(?:dead|deceased|expired)\b",
        "time of death": r"\btime\s+of\s+death\b",
        "autopsy": r"\b(?:autopsy|post-?mortem)\b",
        "comfort measures only": r"\bcomfort\s+(?:measures|care)(?:\s+only)?\b|\bcmo\b",
        "hospice": r"\bhospice\b",
        "care withdrawn": r"\bwithdr[ae]w(?:n|al)?\s+(?:of\s+)?(?:care|life\s+support|support)\b"
        r"|\b(?:care|life\s+support)\s+was\s+withdrawn\b|\bterminal(?:ly)?\s+extubat",
    },
    "length_of_stay": {
        "day N of admission": r"\b(?:hospital|icu|micu|sicu|ccu)\s+day\s*#?\s*\d+"
        r"|\bhd\s*#?\s*\d+\b|\bday\s+#?\d+\s+of\s+(?:admission|hospitali[sz]ation|(?:his|her|the)\s+stay)\b",
        "prolonged stay": r"\b(?:prolonged|lengthy|extended|long)\s+(?:hospital\s+|icu\s+)?"
        r"(?:stay|course|hospitali[sz]ation|admission)\b",
        "brief stay": r"\b(?:brief|short|uneventful|overnight)\s+(?:hospital\s+|icu\s+)?(?:stay|hospitali[sz]ation)\b",
        "length of stay": r"\blength\s+of\s+(?:hospital\s+)?stay\b|\blos\b\s*(?:[:=]|was\b|of\b|\d)",
        "discharged on": r"\b(?:was|were|is)\s+discharged\b|\bdischarged\s+(?:on|home|to)\b|\bday\s+of\s+discharge\b",
        "discharge date": r"\bdischarge\s+date\b|\bdate\s+of\s+discharge\b",
    },
    "prolonged_ventilation": {
        "tracheostomy": r"\btrach(?:s|ed|eostom(?:y|ies)|eotomy)?\b",
        "intubated for N days": rf"\b(?:intubated|ventilated|on\s+(?:the\s+)?vent(?:ilator)?)\s+(?:for|x)\s*{_DAYS}",
        "ventilator day N": r"\b(?:vent(?:ilator)?|intubation)\s+day\s*#?\s*\d+",
        "failed extubation": r"\bfail(?:ed|ure)\s+(?:of\s+|to\s+)?(?:extubat\w*|wean\w*)"
        r"|\breintubat|\bre-intubat|\bextubation\s+fail",
        "prolonged ventilation": r"\bprolonged\s+(?:mechanical\s+)?(?:ventilat\w*|intubation|wean\w*)"
        r"|\bventilator[- ]dependen",
        "extubated": r"\bextubated\b",
        "PEG with tracheostomy": r"\btrach\w*\s*(?:/|and|&|\+)\s*peg\b",
    },
    "diagnoses": {
        "discharge diagnosis": r"\bdischarge\s+diagnos[ei]s\b",
        "final diagnosis": r"\bfinal\s+diagnos[ei]s\b",
        "primary diagnosis": r"\b(?:primary|principal)\s+diagnos[ei]s\b",
        "secondary diagnosis": r"\bsecondary\s+diagnos[ei]s\b",
        "diagnosed with": r"\b(?:was|were|been)\s+(?:found\s+to\s+have|diagnosed\s+with)\b",
        "an ICD code": r"\bicd[- ]?(?:9|10)\b",
    },
    "procedures": {
        "s/p": r"\bs/p\s+\w+",
        "status post": r"\bstatus[- ]post\b",
        "underwent": r"\bunderwent\b",
        "postoperative day": r"\bpost-?\s?op(?:erative)?\s+day\b|\bpod\s*#?\s*\d+",
        "taken to the operating room": r"\btaken\s+to\s+(?:the\s+)?(?:or|operating\s+room|cath\w*\s+lab)\b",
        "procedure performed": r"\b(?:procedures?\s+performed|major\s+surgical\s+or\s+invasive\s+procedure)\b",
    },
}
"""Case-insensitive patterns (RE2) by task and name."""


def check_leakage(data: Path, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Count the examples with phrases that may give the label away.

    Parameters
    ----------
    data : Path
        A prepared folder; tasks without phrases of their own are left out.
    progress : callable, optional
        Called with a description, the files done and the files in all.

    Returns
    -------
    list of dict
        One row for each task and split: ``task``, ``split``, ``examples``, ``with_phrase``, ``phrases`` (examples by
        phrase), and ``prevalence``: by class, the share ``with`` and ``without`` a phrase, null where there are none.
        Binary tasks name the positive class only; multilabel tasks have no prevalence.

    Raises
    ------
    InputError
        If the folder is not prepared, or a file or column is missing.
    """
    tasks = [name for name in prepared_tasks(data) if name in PHRASES]
    rows = []
    for done, name in enumerate(tasks):
        if progress:
            progress("Counting leakage phrases", done, len(tasks))
        folder = data / "examples" / name
        rows += [_count(Task.load(folder), folder / f"{split}.parquet", split) for split in SPLITS]
    if progress:
        progress("Counting leakage phrases", len(tasks), len(tasks))
    return rows


def largest_gap(row: dict[str, Any]) -> tuple[str, float, float] | None:
    """Return the class whose prevalence differs most with and without a phrase, and both; None if unknown."""
    known = [
        (name, shares["with"], shares["without"])
        for name, shares in (row["prevalence"] or {}).items()
        if shares["with"] is not None and shares["without"] is not None
    ]
    return max(known, key=lambda item: abs(item[1] - item[2]), default=None)


def _count(task: Task, file: Path, split: str) -> dict[str, Any]:
    patterns = PHRASES[task.name]
    phrases = dict.fromkeys(patterns, 0)
    examples, hits = 0, 0
    classes = np.zeros((2, len(task.classes)), np.int64)
    for first, batch in batches(file, ("text", "label")):
        text = pc.fill_null(batch["text"].cast(pa.large_string()), "")
        found = np.zeros(len(batch), bool)
        for name, pattern in patterns.items():
            matches = pc.match_substring_regex(text, pattern, ignore_case=True).to_numpy(zero_copy_only=False)
            phrases[name] += int(matches.sum())
            found |= matches
        examples += len(batch)
        hits += int(found.sum())
        if task.kind != "multilabel":
            labels = pc.fill_null(batch["label"], -1).to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero((labels < 0) | (labels >= len(task.classes)))
            if len(wrong):
                row = first + int(wrong[0]) + 1
                raise InputError(f"{file}, row {row}: the label is no class index; prepare the examples again.")
            for side in (0, 1):
                classes[side] += np.bincount(labels[found == bool(side)], minlength=len(task.classes))
    prevalence = None
    if task.kind != "multilabel":
        without, with_phrase = (counts / counts.sum() if counts.sum() else None for counts in classes)
        named = list(enumerate(task.classes))[1 if task.kind == "binary" else 0 :]
        prevalence = {
            name: {
                "with": None if with_phrase is None else round(float(with_phrase[place]), 4),
                "without": None if without is None else round(float(without[place]), 4),
            }
            for place, name in named
        }
    return {
        "task": task.name,
        "split": split,
        "examples": examples,
        "with_phrase": hits,
        "phrases": phrases,
        "prevalence": prevalence,
    }
