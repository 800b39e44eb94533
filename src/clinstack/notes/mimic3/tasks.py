"""The examples of MIMIC-III's tasks from the summaries: as published, or with the published errors put right."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from clinstack.notes.attrition import Attrition
from clinstack.notes.death_mentions import RULES, death_rule, may_tell_death, without_charted_death
from clinstack.notes.labels import (
    LENGTH_OF_STAY_CLASSES,
    diagnosis_category,
    label_codes,
    label_length_of_stay,
    label_mortality,
    procedure_category,
)
from clinstack.notes.mimic3.admission_texts import AdmissionTexts, build_texts
from clinstack.notes.mimic3.admissions import admissions_without_split, attrition_start, make_candidates
from clinstack.notes.mimic3.changes import Changes, compare_codes, compare_texts
from clinstack.notes.mimic3.official.admission_text import official_mortality_text
from clinstack.notes.mimic3.official.build import OfficialBuilder
from clinstack.notes.mimic3.official.labels import (
    OfficialCodes,
    diagnosis_groups,
    length_of_stay_labels,
    official_admissions,
    procedure_groups,
)
from clinstack.notes.mimic3.official.texts import official_rows, official_texts
from clinstack.notes.mimic3.options import CODE_TABLES, Mimic3Options
from clinstack.notes.mimic3.summaries import Summaries
from clinstack.notes.prepared import ExamplesWriter, PreparedFolder
from clinstack.notes.sections.find import section_map, section_rows, sections_type
from clinstack.notes.sources.source_tables import SourceTables
from clinstack.notes.splits import SPLITS
from clinstack.notes.text_store import TextStore
from clinstack.notes.ventilation.examples import label_with_texts, ventilation_task
from clinstack.notes.ventilation.options import VentilationOptions
from clinstack.tasks import Task

_BATCH = 512


def write_official_tasks(
    prepared: PreparedFolder,
    tables: SourceTables,
    codes: dict[str, OfficialCodes],
    summaries: Summaries,
    raw: TextStore,
    split_of: dict[int, str],
    chosen: tuple[str, ...],
    admission_only: bool,
    export: Path | None,
    ventilation: VentilationOptions,
) -> dict[str, dict[str, int]]:
    """Write the tasks as the published scripts do; return the rows of each split of each task."""
    admissions = official_admissions(prepared.connection, len(tables.reader("ADMISSIONS").columns))
    attrition = attrition_start(prepared)
    everybody = attrition.copy()
    grown = {hadm for hadm, facts in admissions.items() if not facts.newborn}
    with TextStore(prepared.scratch / "official.bin") as store:
        rows = official_rows(summaries, raw, grown, attrition)
        report = partial(prepared.report, "Reading discharge summaries")
        texts = official_texts(rows, summaries, raw, store, admission_only, attrition, report)
        builder = OfficialBuilder(
            prepared, tables, admissions, codes, texts, store, split_of, admission_only, export, ventilation
        )
        counts = {}
        for done, name in enumerate(chosen):
            prepared.report("Writing tasks", done, len(chosen))
            # Texts of its own: the steps that concern discharge summaries are not this task's.
            own = name == "prolonged_ventilation" and ventilation.text == "before"
            counts[name] = builder.write(name, everybody if own else attrition)
        prepared.report("Writing tasks", len(chosen), len(chosen))
    return counts


@dataclass
class _Labelled:
    """A task's labels, waiting to be written beside the texts."""

    task: Task
    attrition: Attrition
    facts: dict[str, Any]
    label: dict[int, Any]
    text: dict[int, int] = field(default_factory=dict)
    """Texts of this task's own, by admission: numbers in the store."""
    split: dict[int, str] = field(default_factory=dict)
    """Splits of this task's own, by admission."""
    own_texts: bool = False
    """Whether no text comes from the discharge summaries."""


@dataclass
class _DefaultTasks:
    """What the default builder's tasks are made from."""

    prepared: PreparedFolder
    tables: SourceTables
    texts: AdmissionTexts
    changes: Changes
    minimum_count: int
    options: Mimic3Options
    everybody: Attrition
    """The steps before those that concern discharge summaries."""

    def labels(self) -> dict[int, Any]:
        return dict(self.prepared.connection.execute("SELECT hadm, label FROM labelled ORDER BY hadm").fetchall())

    def mortality(self, attrition: Attrition) -> _Labelled:
        """Label, and leave out admissions whose text tells the death."""
        label_mortality(self.prepared.connection, attrition)
        label = self.labels()
        own: dict[int, int] = {}
        removed = dict.fromkeys(RULES, 0)
        told, missed, other = set[int](), set[int](), set[int]()
        for hadm in list(label):
            text = self.texts.store.text(self.texts.text[hadm])
            if not may_tell_death(text):
                continue
            safe = without_charted_death(text)
            rule = death_rule(safe)
            official = official_mortality_text(text)
            if rule:
                removed[rule] += 1
                del label[hadm]
                missed |= {hadm} if official is not None else set()
                continue
            if safe != text:
                own[hadm] = self.texts.store.add(safe.encode())
            if official is None:
                told.add(hadm)
            elif official != safe:
                other.add(hadm)
        kept = attrition.steps[-1]["kept"]
        for rule, count in removed.items():
            kept -= count
            attrition.step(f"text free of: {rule}", kept)
        self.changes.note("mortality", "death_false_positives", told)
        self.changes.note("mortality", "death_more_mentions", missed)
        self.changes.note("mortality", "death_other_text", other)
        task = Task("mortality", "binary", ("survived", "died"), "Death in the hospital.")
        return _Labelled(task, attrition, {}, label, own)

    def length_of_stay(self, attrition: Attrition) -> _Labelled:
        """Label those who left alive by their exact stay."""
        label_length_of_stay(self.prepared.connection, attrition)
        label = self.labels()
        columns = len(self.tables.reader("ADMISSIONS").columns)
        facts = official_admissions(self.prepared.connection, columns)
        timed = {hadm: item for hadm, item in facts.items() if item.admitted and item.discharged}
        published = {hadm: kind for hadm, kind in length_of_stay_labels(timed).items() if facts[hadm].died == 0}
        self.changes.note(
            "length_of_stay", "exact_hours", {hadm for hadm in label if published.get(hadm) != label[hadm]}
        )
        self.changes.note(
            "length_of_stay",
            "negative_stays",
            {hadm for hadm in published if hadm in self.texts.text and _negative(timed[hadm])},
        )
        description = "Length of stay of those who left alive."
        task = Task("length_of_stay", "multiclass", LENGTH_OF_STAY_CLASSES, description)
        return _Labelled(task, attrition, {}, label)

    def diagnoses(self, attrition: Attrition) -> _Labelled:
        """Label by ICD-9 categories."""
        category = partial(diagnosis_category, v_characters=self.options.v_characters)
        return self._codes("diagnoses", attrition, diagnosis_groups, category, "ICD-9 categories of the admission.")

    def procedures(self, attrition: Attrition) -> _Labelled:
        """Label by ICD-9 procedure categories."""
        description = "ICD-9 procedure categories of the admission."
        return self._codes("procedures", attrition, procedure_groups, procedure_category, description)

    def _codes(
        self,
        name: str,
        attrition: Attrition,
        group: Callable[[pa.Array], pa.Array],
        category: Callable[[str], str],
        description: str,
    ) -> _Labelled:
        table = CODE_TABLES[name]
        connection = self.prepared.connection
        facts = label_codes(connection, attrition, table, self.minimum_count, category)
        columns = len(self.tables.reader(table).columns)
        zeros, groups = compare_codes(connection, table, columns, group, category)
        here = self.texts.text.keys()
        self.changes.note(name, "leading_zeros", zeros & here)
        if name == "diagnoses":
            self.changes.note(name, "v_codes", groups & here)
        self.changes.note(name, "label_list", facts.pop("shortened"))
        task = Task(name, "multilabel", tuple(facts.pop("classes")), description)
        return _Labelled(task, attrition, facts, self.labels())

    def prolonged_ventilation(self, attrition: Attrition) -> _Labelled:
        """Label by the ventilation rules."""
        options, connection = self.options.ventilation, self.prepared.connection
        if options.text == "before":
            # Texts of its own: whether a discharge summary was written later must not matter.
            make_candidates(connection, None)
            attrition = self.everybody.copy()
        found = label_with_texts(self.prepared, self.tables, attrition, options, self.texts.store)
        make_candidates(connection, self.texts.hadm)
        if options.source != "labels" and options.definition == "sum":
            differ = connection.execute("SELECT hadm FROM measured WHERE by_span <> by_sum").fetchall()
            self.changes.note("prolonged_ventilation", "sum_of_durations", {row[0] for row in differ})
        self.changes.note("prolonged_ventilation", "split_by_patient", () if options.use_file_split else found.label)
        own_texts = options.text == "before"
        task = ventilation_task(options)
        return _Labelled(task, attrition, found.facts, found.label, found.text, found.split, own_texts)


def _negative(facts: Any) -> bool:
    return bool(facts.discharged < facts.admitted)


def write_default_tasks(
    prepared: PreparedFolder,
    tables: SourceTables,
    summaries: Summaries,
    raw: TextStore,
    split_of: dict[int, str],
    chosen: tuple[str, ...],
    admission_only: bool,
    minimum_count: int,
    options: Mimic3Options,
) -> dict[str, dict[str, int]]:
    """Write the tasks with the published errors put right; return the rows of each split of each task."""
    start = attrition_start(prepared)
    everybody = start.copy()
    grown = {row[0] for row in prepared.connection.execute("SELECT hadm FROM grown").fetchall()}
    with TextStore(prepared.scratch / "texts.bin") as store:
        texts = build_texts(
            prepared,
            summaries,
            raw,
            grown,
            store,
            start,
            admission_only=admission_only,
            keep_errors=options.keep_errors,
            addenda_alone=options.addenda_alone,
        )
        changes, official = compare_texts(texts, summaries, raw, grown, admission_only)
        if options.addenda_alone:
            changes.everywhere["addenda_alone"] = texts.rows.keys() - official.joined.keys()
        if options.keep_errors:
            del changes.everywhere["errors"]
        if options.splits:
            changes.everywhere["patients_in_no_list"] = admissions_without_split(prepared.connection)
        make_candidates(prepared.connection, texts.hadm)
        kept = prepared.connection.execute("SELECT count(*) FROM candidates").fetchone()[0]
        if options.splits or kept != len(texts.hadm):
            start.step("of a patient in one of the splits", kept)
        builder = _DefaultTasks(prepared, tables, texts, changes, minimum_count, options, everybody)
        labelled = []
        for done, name in enumerate(chosen):
            prepared.report("Labelling tasks", done, len(chosen))
            labelled.append(getattr(builder, name)(start.copy()))
        prepared.report("Labelling tasks", len(chosen), len(chosen))
        return _write(prepared, texts, labelled, changes)


def _write(
    prepared: PreparedFolder, texts: AdmissionTexts, labelled: list[_Labelled], changes: Changes
) -> dict[str, dict[str, int]]:
    """Write all tasks in one pass over the texts, then what became of their rows."""
    told = _write_examples(prepared, texts, labelled)
    counts = {}
    for item in labelled:
        name = item.task.name
        if name != "mortality":
            changes.note(name, "deaths_told", told[name])
        # Those without a text here have none of any task's examples: which tasks they would have had is not asked.
        without = set().union(*changes.everywhere.values()) - texts.text.keys()
        outside = changes.everywhere.get("patients_in_no_list", set()) & texts.text.keys()
        concerned = set() if item.own_texts else set(item.label) | without | outside
        item.facts["changes"] = changes.rows(name, concerned)
        counts[name] = prepared.finish_task(item.task, item.attrition, item.facts)
    return {name: {split: rows[split] for split in SPLITS} for name, rows in counts.items()}


def _write_examples(prepared: PreparedFolder, texts: AdmissionTexts, labelled: list[_Labelled]) -> dict[str, set[int]]:
    """Write the examples; return the admissions of each task whose text tells the patient's death."""
    execute = prepared.connection.execute
    patient = dict(execute("SELECT hadm, subject FROM grown").fetchall())
    split_of = dict(execute("SELECT patient_id, split FROM splits").fetchall())
    maps = pa.chunked_array(texts.maps, type=sections_type())
    place_of = {hadm: place for place, hadm in enumerate(texts.hadm)}
    told: dict[str, set[int]] = {item.task.name: set() for item in labelled}
    admissions = sorted(place_of.keys() | {hadm for item in labelled for hadm in item.label})
    with ExitStack() as stack:
        examples = prepared.folder / "examples"
        writers = [stack.enter_context(ExamplesWriter(examples / item.task.name, item.task)) for item in labelled]
        for start in range(0, len(admissions), _BATCH):
            part = admissions[start : start + _BATCH]
            common = [texts.store.text(texts.text[hadm]) if hadm in place_of else "" for hadm in part]
            spans = maps.take(pa.array([place_of.get(hadm) for hadm in part], pa.int64())).combine_chunks()
            for item, writer in zip(labelled, writers, strict=True):
                places = [place for place, hadm in enumerate(part) if hadm in item.label]
                hadm = [part[place] for place in places]
                own = [item.text.get(number) for number in hadm]
                rows = [
                    common[place] if number is None else texts.store.text(number)
                    for place, number in zip(places, own, strict=True)
                ]
                told[item.task.name] |= {
                    number for number, text in zip(hadm, rows, strict=True) if may_tell_death(text) and death_rule(text)
                }
                sections = spans.take(pa.array(places, pa.int64()))
                if any(number is not None for number in own):
                    sections = pa.array(
                        [
                            span if number is None else section_rows(section_map(text))
                            for span, number, text in zip(sections.to_pylist(), own, rows, strict=True)
                        ],
                        sections_type(),
                    )
                ids = [str(number) for number in hadm]
                patients = [str(patient[number]) for number in hadm]
                splits = [item.split.get(number) or split_of[name] for number, name in zip(hadm, patients, strict=True)]
                writer.write(
                    pa.table(
                        {
                            "example_id": pa.array(ids, pa.string()),
                            "patient_id": pa.array(patients, pa.string()),
                            "encounter_id": pa.array(ids, pa.string()),
                            "text": pa.array(rows, pa.string()),
                            "label": pa.array([item.label[number] for number in hadm], label_type(item.task)),
                            "sections": sections,
                            "split": pa.array(splits, pa.string()),
                        }
                    )
                )
            prepared.report("Writing tasks", start + len(part), len(admissions))
    return told


def label_type(task: Task) -> pa.DataType:
    """Return the Arrow type of a task's labels."""
    return pa.list_(pa.string()) if task.kind == "multilabel" else pa.int64()
