"""Labels of `prepare table`: a column of a hospital's table to class indices or lists of codes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from clinstack.errors import InputError
from clinstack.notes.attrition import Attrition
from clinstack.notes.corpus import KEY_WORDS, Corpus, training_counts
from clinstack.notes.sources.source_tables import SourceTables
from clinstack.notes.table.columns import columns_of, first, load, refuse_empty, wrong
from clinstack.notes.table.spec import LabelSpec
from clinstack.recipe import suggest
from clinstack.tasks import Task

_TRUTH = {"0": 0, "0.0": 0, "false": 0, "f": 0, "no": 0, "n": 0, "1": 1, "1.0": 1, "true": 1, "t": 1, "yes": 1, "y": 1}
_MOST_CLASSES = 1000
LONGEST_SHOWN = 40
"""A longer value is not shown: the column may be the wrong one, and hold notes."""


def write_task(tables: SourceTables, corpus: Corpus, spec: LabelSpec, all_in_splits: bool) -> dict[str, int]:
    """Read the labels of a task, join them to the notes and write the examples.

    Returns
    -------
    dict of str to int
        Rows of each split.

    Raises
    ------
    InputError
        Naming the row: an empty key or label, a class that is not known, two labels of one key, a label of another
        patient or encounter than its note's, codes that were read as numbers.
    """
    key = spec.key
    assert key is not None  # the spec checks it
    connection, facts = tables.connection, dict[str, Any]()
    facts["label_rows"] = read_label_rows(tables, spec)
    _refuse_foreign(tables, spec)
    if spec.kind == "multilabel":
        facts |= _collect_codes(tables, spec)
        names = spec.class_names
    else:
        names = _class_indices(tables, spec)
        facts["rows_repeated"] = _one_label_each(tables, spec)
    attrition = Attrition()
    corpus.join_texts(
        key,
        attrition,
        note_types=spec.note_types,
        admission_only=spec.text == "admission",
        timed=spec.before or "",
        all_in_splits=all_in_splits,
    )
    if spec.kind == "multilabel" and names is None:
        names = _frequent_codes(tables, spec, attrition)
    things = KEY_WORDS[key]
    facts[f"{things}_with_notes_and_no_label"] = connection.execute(
        f"SELECT count(DISTINCT {key}) FROM corpus WHERE {key} IS NOT NULL AND {key} NOT IN (SELECT key FROM labels)"
    ).fetchone()[0]
    task = Task(spec.name, spec.kind, tuple(names or ()), spec.description)
    facts |= {"key": key, "text": spec.text, "note_types": list(spec.note_types) if spec.note_types else None}
    rows = corpus.write_examples(task, attrition, facts)
    if not sum(rows.values()):
        raise InputError(
            f"labels.{spec.name}: no example is left; compare {key} in {tables.place(spec.table)} with the notes'. "
            + ", ".join(f"{step['step']}: {step['kept']:,}" for step in attrition.steps)
        )
    return rows


def read_label_rows(tables: SourceTables, spec: LabelSpec) -> int:
    """Make ``label_rows`` (row, key, label, and the other columns named) and check that key and label are filled."""
    columns = columns_of(spec)
    if spec.kind == "multilabel" and tables.reader(spec.table).numeric(_own_name(tables, spec)):
        raise InputError(
            f"{tables.place(spec.table)}: column {spec.label} is stored as numbers, so codes have lost their leading "
            f"zeros; export it as text."
        )
    load(tables, "label_rows", spec.table, columns, spec.where)
    for name in (spec.key, "label", *(["before"] if spec.before else [])):
        refuse_empty(tables, "label_rows", spec.table, columns, str(name))
    more = ", NULL::TIMESTAMP AS before" if spec.before is None else ""
    tables.connection.execute(
        f"CREATE OR REPLACE TABLE label_rows AS SELECT *, {spec.key} AS key{more} FROM label_rows"
    )
    return int(tables.connection.execute("SELECT count(*) FROM label_rows").fetchone()[0])


def _own_name(tables: SourceTables, spec: LabelSpec) -> str:
    """Return the column of labels as the source spells it."""
    return next(name for name in tables.reader(spec.table).columns if name.lower() == spec.label.lower())


def _refuse_foreign(tables: SourceTables, spec: LabelSpec) -> None:
    """Refuse a label whose patient or encounter is not that of the notes with its key."""
    for name in ("encounter_id", "patient_id"):
        if getattr(spec, name) is None or name == spec.key:
            continue
        found = first(
            tables.connection,
            f"SELECT label_rows.row, label_rows.{name}, corpus.{name} FROM label_rows "
            f"JOIN corpus ON corpus.{spec.key} = label_rows.key "
            f"WHERE label_rows.{name} IS DISTINCT FROM corpus.{name} ORDER BY 1, 3",
        )
        if found:
            wrong(
                tables,
                spec.table,
                found[0],
                f"{name} is {found[1]}, but the notes of this {spec.key} have {found[2]}; correct the row",
            )


def class_of(spec: LabelSpec) -> dict[str, int] | None:
    """Return what each value of the table means, None where the values themselves are the classes."""
    if isinstance(spec.classes, dict):
        names = list(dict.fromkeys(spec.classes.values()))
        return {value: names.index(name) for value, name in spec.classes.items()}
    if spec.classes is not None:
        found = {name: index for index, name in enumerate(spec.classes)}
        # Where "1" is the name of the first class, it is a name and no truth value.
        agrees = all(_TRUTH.get(name.lower(), index) == index for name, index in found.items())
        if spec.kind == "binary" and agrees:
            found |= _TRUTH
        return found
    return dict(_TRUTH) if spec.kind == "binary" else None


def _class_indices(tables: SourceTables, spec: LabelSpec) -> tuple[str, ...]:
    """Add ``class`` to ``label_rows``; return the names of the classes."""
    connection = tables.connection
    meaning, names = class_of(spec), spec.class_names
    values = [row[0] for row in connection.execute("SELECT DISTINCT label FROM label_rows ORDER BY 1").fetchall()]
    if meaning is None:
        if len(values) > _MOST_CLASSES or any(len(value) > LONGEST_SHOWN for value in values):
            raise InputError(
                f"{tables.place(spec.table)}: column {spec.label} has {len(values):,} different values, some of them "
                f"long; is it the column of the label? If so, name the classes under labels.{spec.name}.classes."
            )
        names = tuple(values)
        if len(names) < 3:
            raise InputError(
                f"{tables.place(spec.table)}: column {spec.label} has {len(names)} different values; a multiclass task "
                f"has at least three. Use kind: binary, or name the classes under labels.{spec.name}.classes."
            )
        meaning = {value: index for index, value in enumerate(names)}
    elif names is None:
        names = (f"not {spec.name}", spec.name)
    lowered = {value.lower(): index for value, index in meaning.items() if value in _TRUTH}
    known = {value: meaning.get(value, lowered.get(value.lower())) for value in values}
    pairs = pa.table({"label": pa.array(values, pa.string()), "class": pa.array(known.values(), pa.int64())})
    connection.register("meaning", pairs)
    connection.execute(
        "CREATE OR REPLACE TABLE classed AS SELECT label_rows.*, meaning.class "
        "FROM label_rows JOIN meaning USING (label)"
    )
    connection.unregister("meaning")
    unknown = first(connection, "SELECT row, label FROM classed WHERE class IS NULL ORDER BY row")
    if unknown:
        _unknown(tables, spec, unknown[0], unknown[1], list(spec.classes or ("0", "1")))
    return names


def _unknown(tables: SourceTables, spec: LabelSpec, row: int, value: str, known: list[str]) -> None:
    shown = f"is {value!r}, which" if len(value) <= LONGEST_SHOWN else f"is {len(value):,} characters long and"
    wrong(
        tables,
        spec.table,
        row,
        f"column {spec.label} {shown} is none of {', '.join(known)[:200]}.{suggest(value, known)} "
        f"Correct it, or name it under labels.{spec.name}.classes",
    )


def _one_label_each(tables: SourceTables, spec: LabelSpec) -> int:
    """Make ``labels`` (key, label, before); return the rows that say again what an earlier one said."""
    connection = tables.connection
    connection.execute(
        "CREATE OR REPLACE TABLE labels AS SELECT key, arg_min(class, row) AS label, "
        "arg_min(before, row) AS before, min(row) AS row FROM classed GROUP BY key"
    )
    twice = first(
        connection,
        "SELECT labels.row, classed.row, key, classed.class <> labels.label FROM classed JOIN labels USING (key) "
        "WHERE classed.class <> labels.label OR classed.before <> labels.before ORDER BY classed.row",
    )
    if twice:
        what = "label" if twice[3] else f"time in {spec.before}"
        wrong(
            tables,
            spec.table,
            twice[1],
            f"{spec.key} {twice[2]} has another {what} in row {twice[0]:,}; keep one of the rows",
        )
    rows, keys = connection.execute("SELECT (SELECT count(*) FROM classed), (SELECT count(*) FROM labels)").fetchone()
    return int(rows - keys)


def _collect_codes(tables: SourceTables, spec: LabelSpec) -> dict[str, Any]:
    """Make ``labels`` (key, label, before), the label a sorted list of codes; return what was left out."""
    connection = tables.connection
    separator = (spec.separator or "").replace("'", "''")
    cell = f"unnest(string_split(label, '{separator}'))" if spec.separator else "label"
    connection.execute(
        "CREATE OR REPLACE TABLE codes AS SELECT row, key, before, trim(code) AS code FROM "
        f"(SELECT row, key, before, {cell} AS code FROM label_rows) WHERE trim(code) <> ''"
    )
    empty = first(connection, "SELECT row FROM label_rows ANTI JOIN codes USING (row) ORDER BY row")
    if empty:
        wrong(tables, spec.table, empty[0], f"column {spec.label} (label) holds no code; leave the row out")
    facts: dict[str, Any] = {}
    if spec.classes is None:
        _refuse_numbers(tables, spec)
        long = first(connection, f"SELECT row FROM codes WHERE length(code) > {LONGEST_SHOWN} ORDER BY row")
        if long:
            remedy = "is it the column of the codes, and separator what stands between them?"
            wrong(
                tables, spec.table, long[0], f"column {spec.label} is longer than {LONGEST_SHOWN} characters; {remedy}"
            )
    else:
        facts["labels_unlisted"] = _map_codes(tables, spec)
    if spec.before:
        twice = first(connection, "SELECT key FROM codes GROUP BY key HAVING count(DISTINCT before) > 1 ORDER BY key")
        if twice:
            raise InputError(
                f"{tables.place(spec.table)}: the rows of {spec.key} {twice[0]} have different times in {spec.before}; "
                f"give them one."
            )
    connection.execute(
        "CREATE OR REPLACE TABLE labels AS SELECT key, list_sort(list(DISTINCT code)) AS label, min(before) AS before "
        "FROM codes GROUP BY key"
    )
    repeated = "SELECT count(*) - count(DISTINCT (key, code)) FROM codes"
    return facts | {"codes_repeated": connection.execute(repeated).fetchone()[0]}


def _map_codes(tables: SourceTables, spec: LabelSpec) -> int:
    """Turn codes into the classes that the spec names; return how many were dropped."""
    connection = tables.connection
    meaning = spec.classes if isinstance(spec.classes, dict) else {name: name for name in spec.classes or ()}
    connection.register("meaning", pa.table({"code": list(meaning), "name": list(meaning.values())}))
    connection.execute(
        "CREATE OR REPLACE TABLE mapped AS SELECT row, key, before, codes.code, name FROM codes "
        "LEFT JOIN meaning ON meaning.code = codes.code"
    )
    connection.unregister("meaning")
    unknown = first(connection, "SELECT row, code FROM mapped WHERE name IS NULL ORDER BY row, code")
    if unknown and spec.unlisted == "error":
        _unknown(tables, spec, unknown[0], unknown[1], list(meaning))
    dropped = connection.execute("SELECT count(*) FROM mapped WHERE name IS NULL").fetchone()[0]
    connection.execute(
        "CREATE OR REPLACE TABLE codes AS SELECT row, key, before, name AS code FROM mapped WHERE name IS NOT NULL"
    )
    return int(dropped)


def _refuse_numbers(tables: SourceTables, spec: LabelSpec) -> None:
    """Refuse codes such as 66.0 where every code of digits ends so: a program took the column for numbers."""
    row = first(
        tables.connection,
        r"SELECT min(row) FROM codes WHERE regexp_full_match(code, '\d+(\.\d*)?') "
        r"HAVING bool_and(regexp_full_match(code, '\d+\.0'))",
    )
    if row and row[0] is not None:
        wrong(
            tables,
            spec.table,
            row[0],
            f"column {spec.label} holds a code such as 66.0, as do all its codes of digits: they were read as numbers "
            f"and have lost their leading zeros. Export the column as text, or name the codes under "
            f"labels.{spec.name}.classes if they are right",
        )


def _frequent_codes(tables: SourceTables, spec: LabelSpec, attrition: Attrition) -> tuple[str, ...]:
    """Return the codes of at least ``minimum_count`` training texts; keep these alone in ``labels``."""
    counts = training_counts(tables.connection)
    names = tuple(sorted(code for code, count in counts.items() if count >= spec.minimum_count))
    if not names:
        raise InputError(
            f"labels.{spec.name}: no code of {tables.place(spec.table)} has {spec.minimum_count} training texts; lower "
            f"minimum_count, or compare {spec.key} with the notes'."
        )
    connection = tables.connection
    connection.register("frequent", pa.table({"name": list(names)}))
    connection.execute(
        "CREATE OR REPLACE TABLE labels AS SELECT key, list_sort(list(code)) AS label, min(before) AS before "
        "FROM (SELECT key, before, unnest(label) AS code FROM labels) SEMI JOIN frequent ON frequent.name = code "
        "GROUP BY key"
    )
    connection.unregister("frequent")
    kept = connection.execute("SELECT count(*) FROM joined JOIN labels USING (key)").fetchone()[0]
    attrition.step(f"with a code that {spec.minimum_count} or more training texts have", kept)
    return names
