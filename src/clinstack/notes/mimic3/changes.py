"""What the default builder of MIMIC-III's tasks changes against the published one, fix by fix, in rows.

The numbers are those of the quirks in docs/mimic3.md. A row is an example's admission; one that a fix removes or brings
in counts too. Each fix is counted by itself, the others being in place, so the rows of several fixes may be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from clinstack.notes.attrition import Attrition
from clinstack.notes.mimic3.admission_texts import AdmissionTexts
from clinstack.notes.mimic3.official.labels import official_codes
from clinstack.notes.mimic3.official.texts import OfficialRows, official_rows
from clinstack.notes.mimic3.summaries import DISCHARGE_SUMMARY, Summaries
from clinstack.notes.text_store import TextStore

_SENTENCES: dict[str, tuple[int, str]] = {
    "leading_zeros": (1, "Codes keep their leading zeros (0331 is not 33.1), because nothing is read as a number."),
    "v_codes": (2, "V codes are cut to their category of three characters, as other codes are."),
    "label_list": (3, "Classes are the categories that enough training admissions have; the rest leaves the labels."),
    "order_of_notes": (4, "Notes of an admission are joined by date, report before addendum, then ROW_ID."),
    "duplicates_across_patients": (4, "Equal texts are dropped within a patient alone; across patients they stay."),
    "categories_trimmed": (4, "A category with blanks around it is read as the same category."),
    "sections": (5, "Sections end where the next one begins: empty, last and unusual ones are found."),
    "sections_found": (5, "Admissions kept that the published expressions find no main section in."),
    "sections_lost": (5, "Admissions left out where the published expressions take other text for a main section."),
    "empty_brackets": (6, 'A section that holds "[]" alone is empty.'),
    "line_breaks": (7, "Line breaks are handled the same whatever pandas is installed; with pandas 2 and later the "
                       "published scripts write no rows at all."),
    "death_false_positives": (8, "Kept: admissions that only match a part of a word, or something else that expired."),
    "death_more_mentions": (8, "Left out: admissions whose death is told in words that the published rules miss."),
    "death_other_text": (8, "All charted deaths of the patient leave exam and medication, not the first of each."),
    "exact_hours": (9, "Stays are binned by their exact length, not by days rounded to a tenth."),
    "negative_stays": (9, "Stays that end before they begin are rejected, not class 0."),
    "errors": (10, "Notes marked as errors are left out."),
    "addenda_alone": (10, "Admissions with addenda and no report are kept."),
    "boolean_flag": (11, "Whether texts are cut is a real choice; the published flag is on for any word, also False."),
    "patients_in_no_list": (12, "Patients in none of the split lists are left out, as published, but counted."),
    "sum_of_durations": (13, "Durations of ventilation are added up; published is the span with its pauses."),
    "split_by_patient": (13, "Prolonged ventilation is split by patient; published by admission."),
    "deaths_told": (14, "Texts that tell the patient's death stay in this task, as published; counted as a leak."),
}  # fmt: skip


@dataclass
class Changes:
    """Admissions that each fix touches.

    Attributes
    ----------
    everywhere : dict of str to set of int
        By fix, for every task.
    by_task : dict of str to dict of str to set of int
        By task and fix.
    """

    everywhere: dict[str, set[int]] = field(default_factory=dict)
    by_task: dict[str, dict[str, set[int]]] = field(default_factory=dict)

    def note(self, task: str, fix: str, admissions: Iterable[int]) -> None:
        """Remember the admissions of a task that a fix touches."""
        self.by_task.setdefault(task, {})[fix] = set(admissions)

    def rows(self, task: str, concerned: set[int]) -> list[dict[str, Any]]:
        """Return the entries for ``attrition.json``: ``fix``, ``quirk``, ``rows`` and ``what``.

        ``concerned`` are the admissions that the task has or would have without a fix.
        """
        found = {fix: admissions & concerned for fix, admissions in self.everywhere.items()}
        found |= self.by_task.get(task, {})
        return [
            {"fix": fix, "quirk": quirk, "rows": len(found[fix]), "what": what}
            for fix, (quirk, what) in _SENTENCES.items()
            if fix in found
        ]


def compare_texts(
    texts: AdmissionTexts, summaries: Summaries, raw: TextStore, grown: set[int], admission_only: bool
) -> tuple[Changes, OfficialRows]:
    """Compare which notes are joined, in which order, and which sections are found."""
    official = official_rows(summaries, raw, grown, Attrition())
    errors, trimmed = set[int](), set[int]()
    for row in range(len(summaries)):
        hadm = summaries.hadm[row]
        if hadm is not None and hadm in grown and summaries.has_text[row]:
            if summaries.category[row] == DISCHARGE_SUMMARY:
                errors |= {hadm} if summaries.error[row] else set()
            elif summaries.category[row].strip() == DISCHARGE_SUMMARY:
                trimmed.add(hadm)
    both = texts.rows.keys() & official.joined.keys()
    changes = Changes(
        {
            "order_of_notes": {
                hadm
                for hadm in both
                if texts.rows[hadm] != official.joined[hadm] and set(texts.rows[hadm]) == set(official.joined[hadm])
            },
            "duplicates_across_patients": official.repeated_elsewhere,
            "categories_trimmed": trimmed,
            "line_breaks": set(),
            "boolean_flag": set(),
            "errors": errors,
        }
    )
    if admission_only:
        changes.everywhere |= {
            "sections": texts.other_sections,
            "sections_found": texts.gained,
            "sections_lost": texts.lost,
            "empty_brackets": texts.brackets,
        }
    return changes, official


def compare_codes(
    connection: Any,
    table: str,
    columns: int,
    official: Callable[[pa.Array], pa.Array],
    category: Callable[[str], str],
) -> tuple[set[int], set[int]]:
    """Compare the groups of codes that admissions get.

    Returns
    -------
    zeros, groups : set of int
        Admissions whose groups differ because of how pandas read the codes, and because of how codes are cut.
    """
    read = official_codes(connection, table, columns, official, ("HADM_ID",))
    guessed = {hadm: set(groups.split(",")) for hadm, groups in read.by_admission()}
    query = f"SELECT HADM_ID, ICD9_CODE FROM {table} WHERE trim(ICD9_CODE) <> '' AND HADM_ID IS NOT NULL"
    rows = connection.cursor().sql(query).to_arrow_table()
    plain: dict[int, set[str]] = {}
    ours: dict[int, set[str]] = {}
    codes = rows["ICD9_CODE"].combine_chunks()
    for hadm, code, group in zip(
        rows["HADM_ID"].to_pylist(), codes.to_pylist(), official(codes).to_pylist(), strict=True
    ):
        plain.setdefault(hadm, set()).add(group)
        ours.setdefault(hadm, set()).add(category(code))
    zeros = {hadm for hadm, groups in plain.items() if guessed.get(hadm) != groups}
    return zeros, {hadm for hadm, groups in plain.items() if ours[hadm] != groups}
