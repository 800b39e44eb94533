"""One text for each of MIMIC-IV's admissions from its discharge summaries, and a task's examples from the texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clinstack.notes.attrition import Attrition
from clinstack.notes.death_mentions import RULES, death_rule, without_charted_death
from clinstack.notes.mimic4.notes import Mimic4Notes
from clinstack.notes.prepared import ExamplesWriter, PreparedFolder
from clinstack.notes.sections.find import admission_text_with_map, joined, section_map, section_rows, sections_type
from clinstack.processes import worker_pool
from clinstack.tasks import Task

_BATCH = 256
_WORTH_PROCESSES = 4000
"""Admissions from which on starting processes pays."""
_SCHEMA = pa.schema([("hadm", pa.int64()), ("text", pa.string()), ("sections", sections_type())])

Sections = list[dict[str, Any]]


def write_texts(notes: Mimic4Notes, admission_only: bool, attrition: Attrition) -> None:
    """Write the texts of the admissions in ``grown`` in the order of patient and admission; make the table ``written``.

    Reports and addenda of an admission are joined in the order of their charted time, reports first; an admission with
    addenda alone is left out.

    Parameters
    ----------
    notes : Mimic4Notes
        Deduplicated.
    admission_only : bool
        Whether a text holds only what was known on admission.
    attrition : Attrition
        Gets the steps.
    """
    folder, connection = notes.folder, notes.connection
    connection.execute(_SUMMARIES)
    found, reported = connection.execute(
        "SELECT count(DISTINCT hadm), count(DISTINCT hadm) FILTER (WHERE reported) FROM summaries"
    ).fetchall()[0]
    attrition.step("with a discharge summary", found)
    attrition.step("with a report, not addenda alone", reported)
    written, done = list[int](), 0
    folder.report("Reading discharge summaries", 0, reported)
    with pq.ParquetWriter(texts_file(folder), _SCHEMA, compression="zstd") as writer:
        for hadms, cuts in _cut_all(_batches(notes), admission_only, reported):
            rows = [(hadm, *cut) for hadm, cut in zip(hadms, cuts, strict=True) if cut is not None]
            if rows:
                columns = zip(*rows, strict=True)
                arrays = [pa.array(values, kind) for values, kind in zip(columns, _SCHEMA.types, strict=True)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))
            written += [row[0] for row in rows]
            done += len(hadms)
            folder.report("Reading discharge summaries", done, reported)
    if admission_only:
        attrition.step("with a chief complaint, present illness or medical history", len(written))
    connection.register("new_texts", pa.table({"hadm": pa.array(written, pa.int64())}))
    connection.execute("CREATE TABLE written AS SELECT hadm FROM new_texts")
    connection.unregister("new_texts")


def texts_file(folder: PreparedFolder) -> Path:
    """Return the scratch file of the texts (hadm, text, sections)."""
    return folder.scratch / "texts.parquet"


def _batches(notes: Mimic4Notes) -> Iterator[tuple[list[int], list[str]]]:
    """Yield admissions and their joined summaries."""
    cursor = notes.connection.cursor().execute(
        "SELECT hadm, place FROM summaries WHERE reported "
        "ORDER BY subject, hadm, charttime, addendum, note_seq, note_id"
    )
    rows = (row for batch in iter(lambda: cursor.fetchmany(_BATCH), []) for row in batch)
    hadms, texts = list[int](), list[str]()
    for hadm, places in groupby(rows, key=lambda row: row[0]):
        hadms.append(hadm)
        texts.append(joined(notes.store.text(place) for _, place in places))
        if len(hadms) == _BATCH:
            yield hadms, texts
            hadms, texts = [], []
    if hadms:
        yield hadms, texts


def cut_texts(texts: list[str], admission_only: bool) -> list[tuple[str, Sections] | None]:
    """Cut joined summaries to their admission part, and map the sections of what stays; None where nothing stays."""
    if not admission_only:
        return [(text, sections_of(text)) for text in texts]
    cuts = [admission_text_with_map(text) for text in texts]
    return [cut and (cut[0], [{"name": s.name, "start": s.start, "end": s.end} for s in cut[1]]) for cut in cuts]


def _cut_all(
    batches: Iterator[tuple[list[int], list[str]]], admission_only: bool, admissions: int
) -> Iterator[tuple[list[int], list[tuple[str, Sections] | None]]]:
    """Cut batch by batch, here or, where there are many admissions, in as many processes as there are cores."""
    with worker_pool() if admissions >= _WORTH_PROCESSES else nullcontext() as pool:
        waiting = []
        for hadms, texts in batches:
            if pool is None:
                yield hadms, cut_texts(texts, admission_only)
                continue
            waiting.append((hadms, pool.submit(cut_texts, texts, admission_only)))
            # Few at a time, so that neither texts nor results pile up.
            if len(waiting) > 8:
                done, future = waiting.pop(0)
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def sections_of(text: str) -> Sections:
    """Return the map of a text's sections as it stands in the examples."""
    return section_rows(section_map(text))


def write_examples(folder: PreparedFolder, task: Task, attrition: Attrition, facts: dict[str, Any]) -> dict[str, int]:
    """Write the texts that have a label in ``labelled`` in the order of patient and admission.

    Mortality leaves out texts that tell the patient's death, each rule a step of the attrition.

    Returns
    -------
    dict of str to int
        Rows of each split.
    """
    removed = dict.fromkeys(RULES, 0) if task.name == "mortality" else {}
    words, done, total = f"Writing {task.name}", 0, attrition.steps[-1]["kept"]
    folder.report(words, 0, total)
    with (
        ExamplesWriter(folder.folder / "examples" / task.name, task) as writer,
        pq.ParquetFile(texts_file(folder)) as texts,
    ):
        for batch in texts.iter_batches(2 * _BATCH):
            folder.connection.register("batch", pa.Table.from_batches([batch]))
            table = folder.connection.sql(_EXAMPLES).to_arrow_table()
            folder.connection.unregister("batch")
            done += table.num_rows
            writer.write(_without_deaths(table, removed) if removed else table)
            folder.report(words, done, total)
    for rule, number in removed.items():
        attrition.step(f"text free of: {rule}", attrition.steps[-1]["kept"] - number)
    return folder.finish_task(task, attrition, facts)


def _without_deaths(table: pa.Table, removed: dict[str, int]) -> pa.Table:
    """Drop texts that tell the patient's death, counting them by rule, and mend those where it was charted later."""
    before = table["text"].to_pylist()
    texts = [without_charted_death(text) for text in before]
    rules = [death_rule(text) for text in texts]
    for rule in rules:
        if rule:
            removed[rule] += 1
    maps = table["sections"].to_pylist()
    sections = [old if new == text else sections_of(new) for text, new, old in zip(before, texts, maps, strict=True)]
    for name, values in (("text", texts), ("sections", sections)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    return table.filter(pc.is_null(pa.array(rules, pa.string())))


_SUMMARIES = """
CREATE TABLE summaries AS
SELECT kept_notes.*, NOT bool_and(addendum) OVER (PARTITION BY kept_notes.hadm) AS reported
FROM kept_notes SEMI JOIN grown USING (hadm) WHERE kind = 'Discharge summary'
"""
_EXAMPLES = """
SELECT hadm::VARCHAR AS example_id, subject::VARCHAR AS patient_id, hadm::VARCHAR AS encounter_id, text, label,
    sections, split
FROM batch JOIN labelled USING (hadm) JOIN candidates USING (hadm) ORDER BY subject, hadm
"""
