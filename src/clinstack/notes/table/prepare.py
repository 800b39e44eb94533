"""From a hospital's own tables to Notes: a YAML file says which column is what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clinstack.database import connect
from clinstack.files import sha256_file
from clinstack.notes.corpus import COLUMNS, Corpus
from clinstack.notes.prepared import PreparedFolder, Progress, prepared_folder
from clinstack.notes.sources.source_tables import SourceTables, is_address, shown
from clinstack.notes.splits import SPLITS
from clinstack.notes.table.columns import (
    batches,
    check_columns,
    columns_of,
    first,
    load,
    parts_of,
    refuse_empty,
    wrong,
)
from clinstack.notes.table.labels import LONGEST_SHOWN, write_task
from clinstack.notes.table.spec import AdmissionsSpec, NotesSpec, SplitsSpec, TableSpec, load_spec

_SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("val", "valid", "dev"), "validation")
_DIED = {"0": 0, "false": 0, "f": 0, "no": 0, "1": 1, "true": 1, "t": 1, "yes": 1}
_MOST_SHOWN = 8


def prepare_table(spec_path: Path, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Prepare notes and the examples of the tasks that a spec names.

    Parameters
    ----------
    spec_path : Path
        YAML file as in `table_spec.EXAMPLE`.
    out : Path
        Folder to write, in one step at the end; an earlier output there is replaced, anything else is refused.
    progress : callable, optional
        Called with a description, the units done and the units in all.

    Returns
    -------
    dict
        The content of ``prepare.json``.

    Raises
    ------
    InputError
        If the spec, a table, a column or a value is wrong; nothing is written then.
    """
    spec = load_spec(spec_path)
    with prepared_folder(out, progress) as folder:
        tables = SourceTables(folder.connection, spec.source, progress)
        check_columns(spec, tables)
        with Corpus(folder) as corpus:
            _read_notes(tables, spec.notes, corpus)
            counts: dict[str, Any] = corpus.deduplicate()
            _check_notes(tables, spec, folder.connection)
            counts["patients"] = _split(tables, spec.splits, folder, corpus)
            left_out = _patients_in_no_split(folder.connection)
            if left_out:
                counts["patients_in_no_split"] = left_out
            counts["notes"] = corpus.write_notes("table")
            if spec.admissions:
                counts["admissions"] = _write_admissions(tables, spec.admissions, folder)
            counts["examples"] = {label.name: write_task(tables, corpus, label, not left_out) for label in spec.labels}
        return folder.finish(
            {
                "source": "table",
                "synthetic": spec.synthetic,
                "seed": None if spec.splits.table else spec.splits.seed,
                "spec": sha256_file(spec_path),
                "database": shown(spec.source) if is_address(spec.source) else Path(spec.source).name,
                "tables": tables.hashes(),
                "counts": counts,
            }
        )


@dataclass(frozen=True)
class CheckedPart:
    """What a part of a spec reads.

    Parameters
    ----------
    key : str
        Of the spec, such as ``notes``.
    place : str
        The table.
    rows : int
        Those of its first rows that ``where`` keeps.
    columns : list of tuple
        Name in clinstack, column in the table, how many of these rows fill it.
    values : list of str
        Values of the label in these rows, the first few; none where one is long, and the column perhaps a wrong one.
    """

    key: str
    place: str
    rows: int
    columns: list[tuple[str, str, int]]
    values: list[str]


def check_table(spec_path: Path) -> list[CheckedPart]:
    """Look for what a spec names, and at the first rows of each table, without writing anything.

    Raises
    ------
    InputError
        If the spec, a table, a column, or the type of a value in the first rows is wrong.
    """
    spec = load_spec(spec_path)
    found = []
    with connect() as connection:
        tables = SourceTables(connection, spec.source)
        check_columns(spec, tables)
        for key, part in parts_of(spec).items():
            table, columns = part.table or "", columns_of(part)
            rows = next(batches(tables, table, columns, getattr(part, "where", {})), None)
            count = 0 if rows is None else rows.num_rows
            filled = [
                (name, column, 0 if rows is None else count - rows[name].null_count)
                for name, (column, _) in columns.items()
            ]
            values: list[str] = []
            if rows is not None and "label" in columns:
                values = sorted(set(rows["label"].drop_null().to_pylist()))[:_MOST_SHOWN]
            if any(len(value) > LONGEST_SHOWN for value in values):
                values = []
            found.append(CheckedPart(key, tables.place(table), count, filled, values))
    return found


def _read_notes(tables: SourceTables, spec: NotesSpec, corpus: Corpus) -> None:
    columns = columns_of(spec)
    kinds = {"charttime": pa.timestamp("us"), "text": pa.large_string()}
    for batch in batches(tables, spec.table, columns, spec.where):
        for name in ("note_id", "patient_id"):
            empty = pc.fill_null(pc.equal(batch[name], ""), True)
            if pc.any(empty).as_py():
                row = batch["row"].filter(empty)[0].as_py()
                wrong(tables, spec.table, row, f"column {columns[name][0]} ({name}) is empty; fill it in")
        for name in COLUMNS:
            if name not in batch.column_names:
                batch = batch.append_column(name, pa.nulls(batch.num_rows, kinds.get(name, pa.string())))
        encounter = batch["encounter_id"]
        encounter = pc.if_else(pc.equal(encounter, ""), pa.scalar(None, encounter.type), encounter)
        batch = batch.set_column(batch.schema.get_field_index("encounter_id"), "encounter_id", encounter)
        if spec.note_type is None:
            kind = pa.array(["Note"] * batch.num_rows, pa.string())
            batch = batch.set_column(batch.schema.get_field_index("note_type"), "note_type", kind)
        corpus.add(batch.select(list(COLUMNS)))


def _check_notes(tables: SourceTables, spec: TableSpec, connection: Any) -> None:
    """Refuse a note identifier that stands twice and, where encounters are used, one of two patients."""
    table = spec.notes.table
    twice = first(
        connection,
        "SELECT list_sort(list(row))[1:2], note_id FROM corpus GROUP BY note_id HAVING count(*) > 1 ORDER BY min(row)",
    )
    if twice:
        wrong(tables, table, twice[0][1], f"note_id {twice[1]} stands in row {twice[0][0]:,} too; keep one of the rows")
    if not (spec.admissions or any(label.key == "encounter_id" for label in spec.labels)):
        return
    shared = first(
        connection,
        "SELECT max(row), encounter_id, arg_min(patient_id, row), arg_max(patient_id, row) FROM corpus "
        "WHERE encounter_id IS NOT NULL GROUP BY encounter_id HAVING count(DISTINCT patient_id) > 1 ORDER BY 1",
    )
    if shared:
        wrong(tables, table, shared[0], f"encounter_id {shared[1]} has notes of two patients; correct them")


def _split(tables: SourceTables, spec: SplitsSpec, folder: PreparedFolder, corpus: Corpus) -> dict[str, int]:
    """Write ``splits.parquet``; return the patients of each split."""
    if not spec.table:
        return folder.split_patients(corpus.patients(), spec.seed)
    columns = columns_of(spec)
    load(tables, "split_rows", spec.table, columns, {})
    for name in ("patient_id", "split"):
        refuse_empty(tables, "split_rows", spec.table, columns, name)
    split: dict[str, str] = {}
    for row, patient, value in folder.connection.execute(
        "SELECT row, patient_id, split FROM split_rows ORDER BY row"
    ).fetchall():
        name = _SPLIT_NAMES.get(value.lower(), "")
        if not name:
            wrong(tables, spec.table, row, f"column {spec.split} is none of {', '.join(SPLITS)}; correct it")
        if split.setdefault(patient, name) != name:
            wrong(tables, spec.table, row, f"the patient {patient} is also in {split[patient]}; keep one of the rows")
    known = set(corpus.patients())
    return folder.use_splits({patient: name for patient, name in split.items() if patient in known})


def _patients_in_no_split(connection: Any) -> int:
    query = "SELECT count(DISTINCT patient_id) FROM corpus ANTI JOIN splits USING (patient_id)"
    return int(connection.execute(query).fetchone()[0])


def _write_admissions(tables: SourceTables, spec: AdmissionsSpec, folder: PreparedFolder) -> int:
    """Write ``admissions.parquet`` of the patients in ``splits``; return the number of admissions."""
    connection, columns = folder.connection, columns_of(spec)
    load(tables, "admission_rows", spec.table, columns, spec.where)
    for name in ("encounter_id", "patient_id"):
        refuse_empty(tables, "admission_rows", spec.table, columns, name)
    twice = first(
        connection,
        "SELECT list_sort(list(row))[1:2], encounter_id FROM admission_rows GROUP BY encounter_id "
        "HAVING count(*) > 1 ORDER BY min(row)",
    )
    if twice:
        what = f"encounter_id {twice[1]} stands in row {twice[0][0]:,} too; keep one of the rows"
        wrong(tables, spec.table, twice[0][1], what)
    foreign = first(
        connection,
        "SELECT admission_rows.row, encounter_id FROM admission_rows JOIN corpus USING (encounter_id) "
        "WHERE corpus.patient_id <> admission_rows.patient_id ORDER BY 1",
    )
    if foreign:
        wrong(tables, spec.table, foreign[0], f"encounter_id {foreign[1]} has notes of another patient; correct it")
    if spec.admitted and spec.discharged:
        early = first(connection, "SELECT row FROM admission_rows WHERE discharged < admitted ORDER BY row")
        if early:
            what = f"{spec.discharged} is before {spec.admitted}; correct the row, or leave one of the times empty"
            wrong(tables, spec.table, early[0], what)
    kept = [f'"{name}"' for name in columns if name != "died"]
    if spec.died:
        cases = " ".join(f"WHEN '{value}' THEN {flag}" for value, flag in _DIED.items())
        value = f"CASE lower(died) {cases} END"
        other = first(
            connection, f"SELECT row FROM admission_rows WHERE died IS NOT NULL AND {value} IS NULL ORDER BY row"
        )
        if other:
            wrong(tables, spec.table, other[0], f"column {spec.died} is neither 0 nor 1; correct it")
        kept.append(f"({value})::BIGINT AS died")
    folder.write_admissions(
        f"SELECT {', '.join(kept)} FROM admission_rows SEMI JOIN splits USING (patient_id) "
        "ORDER BY patient_id, encounter_id"
    )
    query = "SELECT count(*) FROM admission_rows SEMI JOIN splits USING (patient_id)"
    return int(connection.execute(query).fetchone()[0])
