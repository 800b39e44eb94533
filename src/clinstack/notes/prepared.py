"""The folder that every builder writes, in one step at its end: notes, splits, examples, attrition, data sheet."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinstack import __version__
from clinstack.database import connect
from clinstack.errors import InputError
from clinstack.files import read_json, replacing_directory, write_json
from clinstack.notes.attrition import Attrition
from clinstack.notes.splits import SPLITS, assign_splits
from clinstack.tasks import Task

if TYPE_CHECKING:
    import pyarrow as pa

    from clinstack.notes.sheet.datasheet import TaskDescriptions
    from clinstack.notes.text_store import TextStore

Progress = Callable[[str, int, int], None]
MEMORY_LIMIT = "1GB"
"""Of DuckDB, which spills to disk beyond it; with Arrow's batches a builder stays below 2 GiB."""
NOTES_COLUMNS = ("note_id", "patient_id", "encounter_id", "charttime", "note_type", "text", "source")
"""Of the table of notes."""
_ROW_GROUP = 2048
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_WORDS = ("No space left", "Disk quota exceeded", "File too large", "max_temp_directory_size")
"""DuckDB and Arrow pass on the system's message without its number."""


class PreparedFolder:
    """A folder of Notes while it is written.

    Attributes
    ----------
    folder : Path
        Temporary place; it becomes the folder asked for when all is written.
    scratch : Path
        For files that are gone at the end.
    connection : duckdb.DuckDBPyConnection
        An on-disk database in ``scratch`` that keeps to `MEMORY_LIMIT`.
    progress : callable or None
        Called with a description, the units done and the units in all.
    """

    def __init__(self, folder: Path, connection: Any, progress: Progress | None) -> None:
        self.folder = folder
        self.scratch = folder / ".scratch"
        self.connection = connection
        self.progress = progress
        self.at_end: list[Callable[[], None]] = []
        """Called when all else is written, just before the folder takes its place."""
        self._finished = False
        self._descriptions: TaskDescriptions | None = None

    def report(self, description: str, done: int, total: int) -> None:
        """Show progress."""
        if self.progress:
            self.progress(description, done, total)

    def split_patients(self, patient_ids: Iterable[str], seed: int) -> dict[str, int]:
        """Write ``splits.parquet`` by `assign_splits`; make the table ``splits``; return the patients of each split."""
        return self.use_splits(assign_splits(patient_ids, seed))

    def use_splits(self, split: dict[str, str]) -> dict[str, int]:
        """Write ``splits.parquet`` and the table ``splits`` (patient_id, split) from a given split of the patients."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"patient_id": list(split), "split": list(split.values())})
        pq.write_table(table, self.folder / "splits.parquet")
        self.connection.register("new_splits", table)
        self.connection.execute("CREATE OR REPLACE TABLE splits AS SELECT * FROM new_splits")
        self.connection.unregister("new_splits")
        return {name: sum(value == name for value in split.values()) for name in SPLITS}

    def write_notes(self, query: str, total: int, store: TextStore, source: str) -> None:
        """Write ``notes/notes.parquet``.

        Parameters
        ----------
        query : str
            Yields ``note_id, patient_id, encounter_id, charttime, note_type`` and ``place``, the number of the text in
            ``store``, in the order to write.
        total : int
            Rows of the query.
        store : TextStore
            Has the texts.
        source : str
            For the column of that name.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / "notes" / "notes.parquet"
        path.parent.mkdir()
        schema = pa.schema(
            [(name, pa.timestamp("us") if name == "charttime" else pa.string()) for name in NOTES_COLUMNS]
        )
        done = 0
        self.report("Writing notes", 0, total)
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in self.connection.cursor().sql(query).to_arrow_reader(_ROW_GROUP):
                table = pa.table(
                    {
                        **{name: batch.column(name) for name in NOTES_COLUMNS[:5]},
                        "text": store.array(batch.column("place").to_pylist()),
                        "source": pa.array([source] * batch.num_rows, pa.string()),
                    }
                )
                writer.write_table(table.cast(schema))
                done += batch.num_rows
                self.report("Writing notes", done, total)

    def write_admissions(self, query: str) -> None:
        """Write ``admissions.parquet``: who was admitted, for the data sheet and for prediction times."""
        self.copy(query, self.folder / "admissions.parquet")

    def copy(self, query: str, path: Path) -> None:
        """Write a query's rows to a Parquet file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.connection.execute(
            f"COPY ({query}) TO '{quoted(path)}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP})"
        )

    def write_examples(self, task: Task, query: str, attrition: Attrition, facts: dict[str, Any]) -> dict[str, int]:
        """Write the examples of a task.

        Parameters
        ----------
        task : Task
            Saved as ``task.yaml``.
        query : str
            Yields ``example_id, patient_id, encounter_id, text, label, split`` in the order to write; each text gets
            its map of sections beside it.
        attrition : Attrition
            Saved with the counts of each split in ``attrition.json``.
        facts : dict
            Further keys of ``attrition.json``.

        Returns
        -------
        dict of str to int
            Rows of each split.
        """
        with ExamplesWriter(self.folder / "examples" / task.name, task) as writer:
            for batch in self.connection.cursor().sql(query).to_arrow_reader(_ROW_GROUP):
                writer.write(batch)
        return self.finish_task(task, attrition, facts)

    def finish_task(self, task: Task, attrition: Attrition, facts: dict[str, Any]) -> dict[str, int]:
        """Count what was written for a task and save its attrition."""
        import pyarrow as pa

        target = self.folder / "examples" / task.name
        summary = {split: self._summary(target / f"{split}.parquet", task) for split in SPLITS}
        write_json(target / "attrition.json", {"task": task.name, "steps": attrition.steps, "splits": summary, **facts})
        if self._descriptions is None:
            from clinstack.notes.sheet.datasheet import TaskDescriptions

            self._descriptions = TaskDescriptions()
        self._descriptions.start(target)
        pa.default_memory_pool().release_unused()
        return {split: content["rows"] for split, content in summary.items()}

    def _summary(self, path: Path, task: Task) -> dict[str, Any]:
        """Count the rows, patients and labels of one file of examples."""
        file = f"'{quoted(path)}'"
        execute = self.connection.execute
        rows, patients = execute(f"SELECT count(*), count(DISTINCT patient_id) FROM {file}").fetchone()
        value = "unnest(label)" if task.kind == "multilabel" else "label"
        found = dict(
            execute(f"SELECT value, count(*) FROM (SELECT {value} AS value FROM {file}) GROUP BY value").fetchall()
        )
        keys = task.classes if task.kind == "multilabel" else range(len(task.classes))
        counts = {name: found.get(key, 0) for name, key in zip(task.classes, keys, strict=True)}
        return {"rows": rows, "patients": patients, "labels": counts}

    def finish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Write ``prepare.json`` and return its content; the data sheet follows when the database is closed.

        ``facts`` names at least ``source`` and ``synthetic``.
        """
        content = {**facts, "clinstack": __version__}
        write_json(self.folder / "prepare.json", content)
        self._finished = True
        return content

    def scrub(self) -> None:
        """Replace the identifiers in all texts, where that is asked for (`clinstack.notes.scrub.scrubbing`)."""
        from clinstack.notes.scrub import current_scrub, scrub_folder

        wanted = current_scrub()
        if wanted is None or not self._finished:
            return
        if self.at_end:
            raise InputError("Files that are exported beside the folder are not scrubbed; leave one of the two out.")
        if self._descriptions:
            self._descriptions.close()  # they described the texts as they were
            self._descriptions = None
        scrub_folder(self.folder, wanted, self.report, self.scratch)

    def describe(self) -> None:
        """Write the data sheet of a finished folder."""
        from clinstack.notes.sheet.datasheet import write_datasheet

        if self._finished:
            self.report("Writing the data sheet", 0, 1)
            described = self._descriptions.results() if self._descriptions else None
            write_datasheet(self.folder, described=described)
            self.report("Writing the data sheet", 1, 1)

    def close(self) -> None:
        """Stop what works beside the builder."""
        if self._descriptions:
            self._descriptions.close()


class ExamplesWriter:
    """Writes the examples of a task, each to the file of its split; columns as in the contract, and ``sections``.

    Used as a context manager; nothing is kept in memory but the batch that is written, which is compressed while the
    caller makes the next one.
    """

    def __init__(self, target: Path, task: Task) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from clinstack.notes.sections.find import sections_type

        label = pa.list_(pa.string()) if task.kind == "multilabel" else pa.int64()
        target.mkdir(parents=True)
        task.save(target)
        self.schema = pa.schema(
            [
                ("example_id", pa.string()),
                ("patient_id", pa.string()),
                ("encounter_id", pa.string()),
                ("text", pa.string()),
                ("label", label),
                ("sections", sections_type()),
            ]
        )
        self._writers = {
            split: pq.ParquetWriter(target / f"{split}.parquet", self.schema, compression="zstd") for split in SPLITS
        }
        self._worker = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> ExamplesWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._wait()
        finally:
            self._worker.shutdown()
            for writer in self._writers.values():
                writer.close()

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Write rows with the columns of the contract and ``split``; ``sections`` is found in the text if missing."""
        self._wait()
        self._pending = self._worker.submit(self._write, batch)

    def _write(self, batch: pa.RecordBatch | pa.Table) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        from clinstack.notes.sections.find import section_map, section_rows

        table = pa.table(batch) if isinstance(batch, pa.RecordBatch) else batch
        if "sections" not in table.column_names:
            maps = [section_rows(section_map(text)) for text in table["text"].to_pylist()]
            table = table.append_column("sections", pa.array(maps, self.schema.field("sections").type))
        present = pc.unique(table["split"]).to_pylist()
        for split in present:
            rows = table if len(present) == 1 else table.filter(pc.equal(table["split"], split))
            self._writers[split].write_table(rows.select(self.schema.names).cast(self.schema))


@contextmanager
def prepared_folder(out: Path, progress: Progress | None = None) -> Iterator[PreparedFolder]:
    """Yield a `PreparedFolder` that takes the place of ``out`` when the block ends well.

    Raises
    ------
    InputError
        If ``out`` is a file, or a folder that `clinstack prepare` did not write; or if the disk is full.
    """
    refuse_other_folder(out)
    with full_disk_is_named(out), replacing_directory(out) as folder:
        scratch = folder / ".scratch"
        scratch.mkdir()
        with connect(scratch / "tables.duckdb") as connection:
            connection.execute(f"SET temp_directory = '{quoted(scratch / 'spill')}'")
            connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
            # DuckDB's own bar goes to standard output, in the middle of what a program may read there.
            connection.execute("SET enable_progress_bar = false")
            prepared = PreparedFolder(folder, connection, progress)
            try:
                yield prepared
            except BaseException:
                prepared.close()
                raise
        prepared.scrub()
        prepared.describe()
        prepared.close()
        for act in prepared.at_end:
            act()
        shutil.rmtree(scratch)


@contextmanager
def full_disk_is_named(out: Path) -> Iterator[None]:
    """Turn a full disk, whichever library met it, into one line that names the folder."""
    import duckdb

    try:
        yield
    except (OSError, duckdb.Error) as error:
        if getattr(error, "errno", None) in _FULL or any(words in str(error) for words in _FULL_IN_WORDS):
            raise InputError(
                f"{out}: the disk, or what may be written to it, is full. Nothing was changed there; free space or "
                f"name a folder on another disk."
            ) from None
        raise


def refuse_other_folder(out: Path) -> None:
    """Raise InputError unless ``out`` is absent, empty, or an earlier output of `clinstack prepare`."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the notes.")
    if any(out.iterdir()) and not (out / "prepare.json").is_file():
        raise InputError(f"{out} is not empty and was not written by `clinstack prepare`; name another folder.")


def is_synthetic_source(source: Path) -> bool:
    """Whether a folder of source tables says that it was invented by `clinstack prepare cohort`."""
    marker = source / "cohort.json"
    if not marker.is_file():
        return False
    try:
        return bool(read_json(marker).get("synthetic"))
    except (ValueError, AttributeError):
        raise InputError(f"{marker} is damaged; write the cohort again.") from None


def quoted(path: Path | str) -> str:
    """Return a path as it stands between single quotes in SQL."""
    return str(path).replace("'", "''")
