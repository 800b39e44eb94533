"""The published tasks from the tables, as Notes and as the published files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from clinstack.errors import InputError
from clinstack.notes.attrition import Attrition
from clinstack.notes.labels import LENGTH_OF_STAY_CLASSES
from clinstack.notes.mimic3.admissions import make_candidates
from clinstack.notes.mimic3.official.admission_text import DEATH_RULES, official_mortality_text
from clinstack.notes.mimic3.official.export import FILES, export_codes, export_rows
from clinstack.notes.mimic3.official.labels import (
    AdmissionFacts,
    OfficialCodes,
    length_of_stay_labels,
    shuffled,
)
from clinstack.notes.mimic3.official.texts import OfficialAdmission
from clinstack.notes.prepared import ExamplesWriter, PreparedFolder
from clinstack.notes.sections.find import sections_type
from clinstack.notes.sources.source_tables import SourceTables
from clinstack.notes.splits import SPLITS
from clinstack.notes.text_store import TextStore
from clinstack.notes.ventilation.examples import label_with_texts, ventilation_task
from clinstack.notes.ventilation.options import VentilationOptions
from clinstack.tasks import Task

SHUFFLE_SEED = 123
"""Of the published scripts."""
_BATCH = 512


@dataclass(frozen=True)
class LabelledText:
    """An example: admission, patient, number of the text, label as pandas wrote it; and a split of the task's own."""

    hadm: int
    subject: int
    text: int
    label: Any
    split: str | None = None


@dataclass
class OfficialBuilder:
    """Writes the published tasks.

    Parameters
    ----------
    prepared : PreparedFolder
        Gets the examples.
    tables : SourceTables
        Opened; the connection of ``prepared`` has ADMISSIONS and the tables of codes.
    admissions : dict
        From `official_admissions`.
    codes : dict of str to OfficialCodes
        Of the tasks that have codes, from `read_official_codes`.
    texts : list of OfficialAdmission
        From `official_texts`.
    store : TextStore
        Has their texts, and gets those that mortality changes.
    split_of : dict of int to str
        The split of each patient; a patient without one is left out.
    admission_only : bool
        Whether the texts are cut to the admission sections, for the names of the files.
    export : Path or None
        Folder of the published files.
    ventilation : VentilationOptions
        Of the fifth task, which the published scripts do not build.
    """

    prepared: PreparedFolder
    tables: SourceTables
    admissions: dict[int, AdmissionFacts]
    codes: dict[str, OfficialCodes]
    texts: list[OfficialAdmission]
    store: TextStore
    split_of: dict[int, str]
    admission_only: bool
    export: Path | None
    ventilation: VentilationOptions

    def write(self, name: str, start: Attrition) -> dict[str, int]:
        """Write a task; return the rows of each split."""
        attrition = start.copy()
        rows, task, facts = getattr(self, f"_{name}")(attrition)
        listed = [row for row in rows if self._split(row)]
        attrition.step("of a patient in one of the splits", len(listed))
        with ExamplesWriter(self.prepared.folder / "examples" / name, task) as writer:
            for split in SPLITS:
                chosen = shuffled([row for row in listed if self._split(row) == split], SHUFFLE_SEED)
                if self.export and name in FILES:
                    named = ((row.hadm, row.text, row.label) for row in chosen)
                    export_rows(self.export, name, split, self.admission_only, named, self.store)
                for batch in self._batches(chosen, split, task):
                    writer.write(batch)
        if self.export and task.kind == "multilabel":
            export_codes(self.export, name, list(task.classes))
        return self.prepared.finish_task(task, attrition, {"compat": "official", **facts})

    def _split(self, row: LabelledText) -> str | None:
        return row.split or self.split_of.get(row.subject)

    def _batches(self, rows: Sequence[LabelledText], split: str, task: Task) -> Iterator[pa.Table]:
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            hadm = [str(row.hadm) for row in part]
            if task.kind == "multilabel":
                label = pa.array([row.label.split(",") for row in part], pa.list_(pa.string()))
            else:
                label = pa.array([int(row.label) for row in part], pa.int64())
            yield pa.table(
                {
                    "example_id": hadm,
                    "patient_id": [str(row.subject) for row in part],
                    "encounter_id": hadm,
                    "text": self.store.array(row.text for row in part),
                    "label": label,
                    # Readers find the sections themselves; the published files know nothing of them.
                    "sections": pa.nulls(len(part), sections_type()),
                    "split": [split] * len(part),
                }
            )

    def _mortality(self, attrition: Attrition) -> tuple[list[LabelledText], Task, dict[str, Any]]:
        flags = {hadm: facts.died for hadm, facts in self.admissions.items()}
        wrong = next((hadm for hadm, flag in flags.items() if flag not in (None, 0, 1)), None)
        if wrong is not None:
            raise InputError(
                f"{self.tables.place('ADMISSIONS')}: HOSPITAL_EXPIRE_FLAG of HADM_ID {wrong} is neither 0 nor 1."
            )
        known = [item for item in self.texts if flags[item.hadm] is not None]
        attrition.step("HOSPITAL_EXPIRE_FLAG is there", len(known))
        rows = []
        for item in known:
            text = self.store.text(item.text)
            safe = official_mortality_text(text)
            if safe is not None:
                number = item.text if safe == text else self.store.add(safe.encode())
                rows.append(LabelledText(item.hadm, item.subject, number, flags[item.hadm]))
        attrition.step(f"text without: {', '.join(DEATH_RULES)}", len(rows))
        return rows, Task("mortality", "binary", ("survived", "died"), "Death in the hospital."), {}

    def _length_of_stay(self, attrition: Attrition) -> tuple[list[LabelledText], Task, dict[str, Any]]:
        labels = length_of_stay_labels(self.admissions)
        rows = [
            LabelledText(item.hadm, item.subject, item.text, labels[item.hadm])
            for item in self.texts
            if self.admissions[item.hadm].died == 0
        ]
        attrition.step("left the hospital alive", len(rows))
        description = "Length of stay of those who left alive, days rounded to a tenth."
        return rows, Task("length_of_stay", "multiclass", LENGTH_OF_STAY_CLASSES, description), {}

    def _diagnoses(self, attrition: Attrition) -> tuple[list[LabelledText], Task, dict[str, Any]]:
        return self._codes("diagnoses", "DIAGNOSES_ICD", attrition)

    def _procedures(self, attrition: Attrition) -> tuple[list[LabelledText], Task, dict[str, Any]]:
        return self._codes("procedures", "PROCEDURES_ICD", attrition)

    def _codes(self, name: str, table: str, attrition: Attrition) -> tuple[list[LabelledText], Task, dict[str, Any]]:
        codes = self.codes[name]
        if not codes.classes:
            raise InputError(f"{self.tables.place(table)} holds no code; {name} has nothing to predict.")
        by_hadm = {item.hadm: item for item in self.texts}
        rows = [
            LabelledText(hadm, by_hadm[hadm].subject, by_hadm[hadm].text, groups)
            for hadm, groups in codes.by_admission()
            if hadm in by_hadm
        ]
        attrition.step(f"with a code in {table}", len(rows))
        description = f"Groups of codes of {table} as published, those of newborns included."
        return rows, Task(name, "multilabel", tuple(codes.classes), description), {}

    def _prolonged_ventilation(self, attrition: Attrition) -> tuple[list[LabelledText], Task, dict[str, Any]]:
        connection = self.prepared.connection
        by_hadm = {item.hadm: item for item in self.texts}
        # Texts of its own: whether a discharge summary was written later must not matter.
        own = self.ventilation.text == "before"
        make_candidates(connection, None if own else list(by_hadm))
        found = label_with_texts(self.prepared, self.tables, attrition, self.ventilation, self.store)
        patient = dict(connection.execute("SELECT hadm, subject FROM grown").fetchall())
        rows = [
            LabelledText(
                hadm,
                patient[hadm],
                found.text[hadm] if own else by_hadm[hadm].text,
                label,
                found.split.get(hadm),
            )
            for hadm, label in found.label.items()
        ]
        return rows, ventilation_task(self.ventilation), found.facts
