"""A corpus while it is prepared: notes of any source, cleaned, deduplicated, and joined to the texts of examples.

The texts lie in one scratch file, and only their numbers, keys and times are sorted: any number of notes fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from types import TracebackType
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from clinstack.notes.attrition import Attrition
from clinstack.notes.cleaning import clean_texts
from clinstack.notes.death_mentions import RULES, death_rule, without_charted_death
from clinstack.notes.prepared import NOTES_COLUMNS, ExamplesWriter, PreparedFolder
from clinstack.notes.sections.find import admission_text, joined
from clinstack.notes.splits import SPLITS
from clinstack.notes.text_store import TextStore
from clinstack.tasks import Task

Key = Literal["note_id", "encounter_id", "patient_id"]
KEY_WORDS: dict[Key, str] = {"note_id": "notes", "encounter_id": "encounters", "patient_id": "patients"}
_ROW_GROUP = 2048
COLUMNS = ("row", *NOTES_COLUMNS[:-1])
"""Of the batches that `Corpus.add` takes; ``row`` says where a note stood in its source."""


class Corpus:
    """The notes of a source. A context manager; the tables are in the folder's connection.

    ``corpus`` holds ``row, note_id, patient_id, encounter_id, charttime, note_type, number`` of every note that is not
    empty, and ``kept``: false for a text that the patient's notes repeat.
    """

    def __init__(self, folder: PreparedFolder) -> None:
        self.folder = folder
        self.connection = folder.connection
        self.read = 0
        self._store = TextStore(folder.scratch / "corpus.texts")
        self._joined: TextStore | None = None
        self.connection.execute(
            "CREATE TABLE filled (row BIGINT, note_id VARCHAR, patient_id VARCHAR, encounter_id VARCHAR, "
            "charttime TIMESTAMP, note_type VARCHAR, number BIGINT, digest UHUGEINT)"
        )

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._store.__exit__()
        if self._joined:
            self._joined.__exit__()

    def add(self, batch: pa.Table) -> None:
        """Clean and take in notes with the columns `COLUMNS`; those without text are only counted."""
        self.read += batch.num_rows
        texts = clean_texts(batch["text"].combine_chunks())
        filled = pc.fill_null(pc.greater(pc.binary_length(texts), 0), False)
        table = batch.set_column(batch.schema.get_field_index("text"), "text", texts).filter(filled)
        if not table.num_rows:
            return
        numbers = self._store.add_all(table["text"].combine_chunks())
        self.connection.register("new_notes", table.append_column("number", pa.array(numbers)))
        self.connection.execute(
            "INSERT INTO filled SELECT row, note_id, patient_id, encounter_id, charttime, note_type, number, "
            "md5_number(text) FROM new_notes"
        )
        self.connection.unregister("new_notes")

    def deduplicate(self) -> dict[str, int]:
        """Make ``corpus``: of equal texts of one patient that with an encounter is kept, then the latest.

        Returns
        -------
        dict of str to int
            Notes read, empty, repeated and kept, and texts that several patients share.
        """
        self.connection.execute(
            """
            CREATE TABLE corpus AS SELECT * EXCLUDE (digest), row_number() OVER (
                PARTITION BY patient_id, digest
                ORDER BY encounter_id IS NULL, charttime DESC NULLS LAST, row DESC
            ) = 1 AS kept
            FROM filled
            """
        )
        shared = self._value(
            "SELECT count(*) FROM (SELECT 1 FROM filled GROUP BY digest HAVING count(DISTINCT patient_id) > 1)"
        )
        filled = self._value("SELECT count(*) FROM filled")
        kept = self._value("SELECT count(*) FROM corpus WHERE kept")
        self.connection.execute("DROP TABLE filled")
        return {
            "notes_read": self.read,
            "notes_empty": self.read - filled,
            "notes_repeated_within_a_patient": filled - kept,
            "texts_shared_by_patients": shared,
        }

    def write_notes(self, source: str) -> int:
        """Write ``notes.parquet`` of the patients in ``splits``, by patient and time; return the number of notes."""
        total = self._value("SELECT count(*) FROM corpus SEMI JOIN splits USING (patient_id) WHERE kept")
        query = (
            "SELECT note_id, patient_id, encounter_id, charttime, note_type, number AS place FROM corpus "
            "SEMI JOIN splits USING (patient_id) WHERE kept ORDER BY patient_id, charttime, row"
        )
        self.folder.write_notes(query, total, self._store, source)
        return total

    def join_texts(
        self,
        key: Key,
        attrition: Attrition,
        *,
        note_types: Sequence[str] | None = None,
        admission_only: bool = False,
        timed: str = "",
        all_in_splits: bool = True,
    ) -> None:
        """Make the table ``joined`` (key, patient_id, encounter_id, split, number): one text for each labelled key.

        The notes of a key are joined in the order of time.

        Parameters
        ----------
        key : {"note_id", "encounter_id", "patient_id"}
            What ``labels.key`` holds; the table ``labels`` has a row for each key, and a time ``before`` if ``timed``.
        attrition : Attrition
            Gets the steps.
        note_types : sequence of str, optional
            Only these.
        admission_only : bool
            Keep what the joined text says was known on admission.
        timed : str
            What ``labels.before`` is, for the attrition: only notes charted before it count.
        all_in_splits : bool
            Whether every patient has a split.
        """
        things = KEY_WORDS[key]
        base = f"FROM labels JOIN corpus ON corpus.{key} = labels.key"
        attrition.step(f"labelled {things}", self._value("SELECT count(DISTINCT key) FROM labels"))
        conditions = list[str]()

        def narrow(words: str, condition: str) -> None:
            conditions.append(condition)
            count = self._value(f"SELECT count(DISTINCT key) {base} WHERE {' AND '.join(conditions)}")
            attrition.step(words, count)

        narrow("with a note", "true")
        if note_types is not None:
            listed = ", ".join("'" + name.replace("'", "''") + "'" for name in note_types)
            narrow("with a note of the types asked for", f"note_type IN ({listed})")
        if timed:
            narrow(f"with a note before {timed}", "charttime < labels.before")
        narrow("with a note that no other of the patient repeats", "kept")
        if not all_in_splits:
            narrow("of a patient in a split", "patient_id IN (SELECT patient_id FROM splits)")
        total = attrition.steps[-1]["kept"]
        query = (
            f"SELECT key, patient_id, {'NULL' if key == 'patient_id' else 'encounter_id'}, number {base} "
            f"WHERE {' AND '.join(conditions)} ORDER BY patient_id, key, charttime NULLS LAST, corpus.row"
        )
        self.connection.execute(
            "CREATE OR REPLACE TABLE joined (key VARCHAR, patient_id VARCHAR, encounter_id VARCHAR, number BIGINT)"
        )
        if self._joined:
            self._joined.__exit__()
        self._joined = TextStore(self.folder.scratch / "joined.texts")
        written, pending = 0, list[tuple[str, str, str | None, int]]()
        rows = _rows(self.connection, query)
        for done, (name, group) in enumerate(groupby(rows, key=lambda row: row[0]), 1):
            notes = list(group)
            text: str | None = joined(self._store.text(note[3]) for note in notes)
            if admission_only:
                text = admission_text(text or "")
            if text:
                pending.append((name, notes[0][1], notes[0][2], self._joined.add(text.encode())))
                written += 1
            if len(pending) >= _ROW_GROUP:
                self._store_joined(pending)
            if done % 1000 == 0 or done == total:
                self.folder.report(f"Joining the notes of {things}", done, total)
        self._store_joined(pending)
        if admission_only:
            attrition.step("with a chief complaint, present illness or medical history", written)
        self.connection.execute(
            "CREATE OR REPLACE TABLE joined AS SELECT joined.*, split FROM joined JOIN splits USING (patient_id)"
        )

    def _store_joined(self, pending: list[tuple[str, str, str | None, int]]) -> None:
        if not pending:
            return
        kinds = (pa.string(), pa.string(), pa.string(), pa.int64())
        columns = [pa.array(values, kind) for values, kind in zip(zip(*pending, strict=True), kinds, strict=True)]
        self.connection.register("new_texts", pa.table(columns, names=["key", "patient_id", "encounter_id", "number"]))
        self.connection.execute("INSERT INTO joined SELECT * FROM new_texts")
        self.connection.unregister("new_texts")
        pending.clear()

    def write_examples(
        self, task: Task, attrition: Attrition, facts: dict[str, Any], without_deaths: bool = False
    ) -> dict[str, int]:
        """Write the examples of the keys in ``labels`` (key, label) that have a text in ``joined``.

        Parameters
        ----------
        task : Task
            What ``label`` belongs to.
        attrition : Attrition
            Saved beside the examples.
        facts : dict
            Further keys of ``attrition.json``.
        without_deaths : bool
            Leave out texts that tell the patient's death, each rule a step of the attrition.

        Returns
        -------
        dict of str to int
            Rows of each split.
        """
        if self._joined is None:
            raise RuntimeError("join_texts comes before write_examples")
        kind = pa.list_(pa.string()) if task.kind == "multilabel" else pa.int64()
        query = (
            "SELECT key, patient_id, encounter_id, number, label, split FROM joined JOIN labels USING (key) "
            "ORDER BY patient_id, key"
        )
        words, done, removed = f"Writing {task.name}", 0, Counter[str]()
        total = self._value("SELECT count(*) FROM joined JOIN labels USING (key)")
        with ExamplesWriter(self.folder.folder / "examples" / task.name, task) as writer:
            for batch in self.connection.cursor().sql(query).to_arrow_reader(_ROW_GROUP // 4):
                texts = [self._joined.text(number) for number in batch["number"].to_pylist()]
                if without_deaths:
                    texts = [without_charted_death(text) for text in texts]
                rules = [death_rule(text) if without_deaths else None for text in texts]
                removed.update(rule for rule in rules if rule)
                columns = {
                    "example_id": batch["key"],
                    "patient_id": batch["patient_id"],
                    "encounter_id": batch["encounter_id"],
                    "text": pa.array(texts, pa.string()),
                    "label": batch["label"].cast(kind),
                    "split": batch["split"],
                }
                table = pa.table(columns)
                writer.write(table.filter(pa.array([rule is None for rule in rules])))
                done += batch.num_rows
                self.folder.report(words, done, total)
        for rule in RULES if without_deaths else ():
            attrition.step(f"text free of: {rule}", attrition.steps[-1]["kept"] - removed[rule])
        return self.folder.finish_task(task, attrition, facts)

    def patients(self) -> list[str]:
        """Return the patients who have a note."""
        return [row[0] for row in _rows(self.connection, "SELECT DISTINCT patient_id FROM corpus")]

    def _value(self, query: str) -> int:
        return int(self.connection.execute(query).fetchone()[0])


def training_counts(connection: Any) -> dict[str, int]:
    """Return how many training texts have each code of ``labels.label`` (a list)."""
    return dict(
        connection.execute(
            "SELECT code, count(*) FROM (SELECT key, unnest(label) AS code FROM labels) JOIN joined USING (key) "
            f"WHERE split = '{SPLITS[0]}' GROUP BY code"
        ).fetchall()
    )


def _rows(connection: Any, query: str) -> Iterator[tuple[Any, ...]]:
    cursor = connection.cursor().execute(query)
    while batch := cursor.fetchmany(_ROW_GROUP):
        yield from batch
