"""The YAML file of `prepare table`: which columns of a hospital's own tables are what."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from clinstack.errors import InputError
from clinstack.notes.corpus import Key
from clinstack.notes.sources.source_tables import is_address
from clinstack.recipe import Section, explain, read_yaml

_PASSWORD = re.compile(r"://[^/@]*:[^/]*@|[?&]password=", re.IGNORECASE)
_ENDING = re.compile(r"\.(csv|csv\.gz|parquet)$", re.IGNORECASE)


def _word(value: object) -> object:
    """Take a whole number for its digits; refuse what YAML turned into something else."""
    if isinstance(value, bool):
        raise ValueError("YAML reads yes, no, on, off, true and false as a truth value; write it in quotes")
    if isinstance(value, int):
        return str(value)
    if value is not None and not isinstance(value, str | list | dict):
        raise ValueError("write it in quotes, so that it stays as it is")
    return value


Word = Annotated[str, BeforeValidator(_word)]
Column = Annotated[str, BeforeValidator(_word), Field(min_length=1)]
Where = dict[str, Word | tuple[Word, ...]]
"""Column to the value, or the values, that the rows to keep have in it."""


def _table(value: object) -> object:
    return _ENDING.sub("", value) if isinstance(value, str) else value


Table = Annotated[str, BeforeValidator(_table), Field(min_length=1)]


class NotesSpec(Section):
    """Where the notes are; every key but ``table`` and ``where`` names a column."""

    table: Table
    note_id: Column
    patient_id: Column
    encounter_id: Column | None = None
    charttime: Column | None = None
    note_type: Column | None = None
    text: Column
    where: Where = Field(default_factory=dict)


class LabelSpec(Section):
    """A task: a column of labels, joined to the notes by note, encounter or patient."""

    name: str
    kind: Literal["binary", "multiclass", "multilabel"]
    table: Table
    note_id: Column | None = None
    encounter_id: Column | None = None
    patient_id: Column | None = None
    label: Column
    classes: tuple[Word, ...] | dict[Word, Word] | None = None
    """In the order of the head's outputs; or what stands in the table, and what it means."""
    separator: str | None = Field(default=None, min_length=1)
    """Between the codes of one cell; without it a row has one code."""
    unlisted: Literal["error", "drop"] = "error"
    """Codes that ``classes`` does not name."""
    minimum_count: int = Field(default=1, ge=1)
    """Training texts that make a code a class, where ``classes`` names none."""
    before: Column | None = None
    """A time in the table of labels; only notes charted before it count."""
    note_types: tuple[Word, ...] | None = None
    text: Literal["full", "admission"] = "full"
    """admission: what the notes of the key say was known on admission."""
    where: Where = Field(default_factory=dict)
    description: str = ""

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"{name!r}: use small letters, digits and '_', beginning with a letter")
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> LabelSpec:
        if self.key is None:
            raise ValueError(f"label {self.name}: name the column of note_id, encounter_id or patient_id")
        names = self.class_names
        if names is not None and len(set(names)) != len(names):
            raise ValueError(f"label {self.name}: a class is named twice")
        if self.kind == "binary" and names is not None and len(names) != 2:
            raise ValueError(f"label {self.name}: a binary task has two classes, the second is the positive one")
        if self.kind == "multiclass" and names is not None and len(names) < 3:
            raise ValueError(f"label {self.name}: a multiclass task has at least three classes; use binary for two")
        if names is not None and not names:
            raise ValueError(f"label {self.name}: classes is empty; name them, or remove the key")
        multilabel_only = {"separator", "unlisted", "minimum_count"} & self.model_fields_set
        if self.kind != "multilabel" and multilabel_only:
            raise ValueError(f"label {self.name}: {', '.join(sorted(multilabel_only))} belong to kind: multilabel")
        if "minimum_count" in self.model_fields_set and self.classes is not None:
            raise ValueError(f"label {self.name}: minimum_count finds the classes; remove it or classes")
        return self

    @property
    def key(self) -> Key | None:
        """What the labels are joined by: the narrowest key that is named; the others are checked."""
        keys: tuple[Key, ...] = ("note_id", "encounter_id", "patient_id")
        return next((name for name in keys if getattr(self, name) is not None), None)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes in order, None where they are to be found in the table."""
        if isinstance(self.classes, dict):
            return tuple(dict.fromkeys(self.classes.values()))
        return self.classes


class SplitsSpec(Section):
    """The split by patient: drawn by ``seed``, or read from a table."""

    seed: int = Field(default=0, ge=0)
    table: Table | None = None
    patient_id: Column | None = None
    split: Column | None = None

    @model_validator(mode="after")
    def _table_or_seed(self) -> SplitsSpec:
        named = (self.table, self.patient_id, self.split)
        if any(named) and not all(named):
            raise ValueError("splits: name table, patient_id and split, or a seed alone")
        if self.table and "seed" in self.model_fields_set:
            raise ValueError("splits: a table leaves nothing to draw; remove seed")
        return self


class AdmissionsSpec(Section):
    """Who was admitted, for the data sheet; every key but ``table`` and ``where`` names a column."""

    table: Table
    encounter_id: Column
    patient_id: Column
    admitted: Column | None = None
    discharged: Column | None = None
    age: Column | None = None
    sex: Column | None = None
    ethnicity: Column | None = None
    insurance: Column | None = None
    language: Column | None = None
    admission_type: Column | None = None
    died: Column | None = None
    where: Where = Field(default_factory=dict)


class TableSpec(Section):
    """The whole file."""

    source: str
    """A folder of csv or Parquet files, a DuckDB or SQLite file, or ``postgresql://…``."""
    synthetic: bool = False
    notes: NotesSpec
    labels: tuple[LabelSpec, ...] = ()
    splits: SplitsSpec = SplitsSpec()
    admissions: AdmissionsSpec | None = None

    @field_validator("source")
    @classmethod
    def _no_password(cls, source: str) -> str:
        if _PASSWORD.search(source):
            raise ValueError("a password does not belong in a file; take it out and use PGPASSWORD or ~/.pgpass")
        return source

    @model_validator(mode="after")
    def _labels_fit_notes(self) -> TableSpec:
        names = [label.name for label in self.labels]
        for label in self.labels:
            if names.count(label.name) > 1:
                raise ValueError(f"labels: the name {label.name} stands twice")
            needs: dict[str, str] = {str(label.key): f"its key {label.key}"}
            if label.before:
                needs["charttime"] = "before"
            if label.note_types is not None:
                needs["note_type"] = "note_types"
            for column, wanted_by in needs.items():
                if getattr(self.notes, column) is None:
                    raise ValueError(f"label {label.name}: {wanted_by} needs notes.{column}, which is not named")
        return self


def load_spec(path: Path) -> TableSpec:
    """Read and validate the file; a relative source is looked for beside it.

    Raises
    ------
    InputError
        With every wrong key, and the nearest right one where a key is unknown.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file. `clinstack prepare table --example` prints one to begin with.")
    values: dict[str, Any] = read_yaml(path)
    try:
        spec = TableSpec.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error, TableSpec)}") from None
    if is_address(spec.source):
        return spec
    place = Path(spec.source).expanduser()
    return spec.model_copy(update={"source": str(place if place.is_absolute() else path.parent / place)})


EXAMPLE = """\
# What is what in a hospital's own tables. Run: clinstack prepare table this.yaml --out DATA [--check]

source: tables            # beside this file: a folder of csv, csv.gz or Parquet files; a DuckDB or SQLite file;
                          # or postgresql://user@host/database (password from PGPASSWORD or ~/.pgpass)

notes:
  table: notes            # tables/notes.csv
  note_id: id             # on the right: your names of the columns
  patient_id: patient
  encounter_id: visit     # may be left out, as may charttime and note_type
  charttime: written_at
  note_type: kind
  text: body
  where: {status: [final, amended]}   # only these rows

labels:                   # one entry for each task; leave it out for notes alone
  - name: readmission
    kind: binary
    table: outcomes
    encounter_id: visit   # one text for each encounter; or note_id, or patient_id
    label: readmitted     # 0/1, true/false, or the names of the classes
    classes: ["not readmitted", "readmitted within 30 days"]   # the second is the positive one
    text: admission       # what was known on admission; full (the default): whole notes
    description: Readmission within 30 days.

  - name: triage
    kind: multiclass
    table: outcomes
    encounter_id: visit
    label: triage
    classes: {"1": red, "2": yellow, "3": green}   # what stands in the table, and what it means
    before: triaged_at    # only notes charted before this time
    note_types: [Nursing]

  - name: diagnoses
    kind: multilabel
    table: diagnoses
    encounter_id: visit
    patient_id: patient   # checked against the notes
    label: icd10          # one code in a row; or several in a cell, with separator: ";"
    minimum_count: 10     # training texts that make a code a class

splits: {seed: 0}         # by patient, 70/10/20; or {table: splits, patient_id: patient, split: part}

admissions:               # for the data sheet; every column but the two keys may be left out
  table: visits
  encounter_id: visit
  patient_id: patient
  admitted: admitted_at
  discharged: discharged_at
  age: age
  sex: sex
"""
"""Printed by ``--example``; a test prepares tables of this shape with it."""
