"""Scrubbing on the way in: every text of a prepared folder, whatever builder wrote it, before the folder is seen.

The seam is `clinstack.notes.prepared.prepared_folder`: when a builder has written its tables, and before they take
their place, `scrub_folder` goes through all of them. So no builder knows of it, and a new one is scrubbed as well.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from clinstack.files import read_json, write_json
from clinstack.notes.scan_sources import TEXT_COLUMNS
from clinstack.privacy.identifiers import PLACEHOLDER, Identifier, find_identifiers, open_engines
from clinstack.privacy.identifiers.identifier import merge
from clinstack.privacy.identifiers.key import read_key
from clinstack.privacy.identifiers.of_patient import NAME as OF_PATIENT
from clinstack.privacy.identifiers.of_patient import OfPatient
from clinstack.privacy.identifiers.surrogates import Style, Surrogates, apply_edits, moved_places
from clinstack.processes import WorkerPool, worker_pool

Report = Callable[[str, int, int], None]
Found = list[list[list[Identifier]]]
"""Findings of each column, row by row."""
_ROWS = 2048
_WORTH_PROCESSES = 20_000
"""Rows from which on starting processes pays."""
_AHEAD = 12
"""Batches that wait for their findings."""


@dataclass
class Scrub:
    """What is asked for, and what came of it.

    Parameters
    ----------
    style : {"surrogates", "tags"}
        Invented identifiers, or ``[NAME]``, ``[DATE]`` and so on.
    engines : tuple of str
        As `clinstack.privacy.identifiers.engines.open_engine` takes them, the most trusted first.
    key_file : Path or None
        Holds the key in hexadecimal digits, and is made where it is missing, readable by its owner alone. None draws a
        key that is forgotten when all is written: then nobody can repeat or test the replacements.

    Attributes
    ----------
    counts : Counter of str
        Identifiers of each kind that were replaced.
    texts, texts_changed : int
    """

    style: Style = "surrogates"
    engines: tuple[str, ...] = ("patterns",)
    key_file: Path | None = None
    counts: Counter[str] = field(default_factory=Counter)
    texts: int = 0
    texts_changed: int = 0

    def facts(self) -> dict[str, Any]:
        """Return what ``prepare.json`` says of it."""
        return {
            "style": self.style,
            "engines": [name.partition(":")[0] for name in self.engines],
            "key": "forgotten" if self.key_file is None else "kept by its owner",
            "texts": self.texts,
            "texts_changed": self.texts_changed,
            "identifiers": dict(sorted(self.counts.items())),
            "complete": False,
        }


_CURRENT: ContextVar[Scrub | None] = ContextVar("scrub", default=None)


@contextmanager
def scrubbing(scrub: Scrub) -> Iterator[Scrub]:
    """Scrub every folder that is prepared inside the block.

    Raises
    ------
    InputError
        If an engine is not there or the key cannot be used, before anything is prepared.
    """
    open_engines(scrub.engines)
    Surrogates(read_key(scrub.key_file), scrub.style)
    token = _CURRENT.set(scrub)
    try:
        yield scrub
    finally:
        _CURRENT.reset(token)


def current_scrub() -> Scrub | None:
    """Return what `scrubbing` was called with, None outside of it."""
    return _CURRENT.get()


def scrub_folder(folder: Path, scrub: Scrub, report: Report, scratch: Path) -> dict[str, Any]:
    """Replace the identifiers in all texts of a folder that is being prepared.

    The texts are searched once. What is found in any text of a patient is then looked for in all of that patient's
    texts (`OfPatient`), so that an example, which is cut from a note, loses a name that only the rest of the note
    gives away. Maps of sections move with the text. In memory are some batches of rows, and each patient's names and
    numbers as long as the tables are written; nothing but the new texts stays on disk.

    Parameters
    ----------
    folder : Path
        With the tables of a builder, not yet in its place.
    scrub : Scrub
        Gets the counts.
    report : callable
        Called with a description, the rows done and the rows in all.
    scratch : Path
        For positions of findings, removed by the caller.

    Returns
    -------
    dict
        The content of ``prepare.json``, with ``scrub``.
    """
    surrogates = Surrogates(read_key(scrub.key_file), scrub.style)
    files = [file for file in sorted(folder.rglob("*.parquet")) if scratch not in file.parents and _columns(file)]
    patients: dict[str, OfPatient] = {}
    total = 2 * sum(_rows(file) for file in files)
    done = 0
    with (scratch / "found.jsonl").open("w+", encoding="utf-8") as spool, _searcher(total // 2) as search:
        for file in files:
            columns = _columns(file)
            for batch, found in search(_batches(file), columns, scrub.engines):
                _learn(batch, columns, found, patients)
                spool.write(_as_line(found))
                done += batch.num_rows
                report("Finding identifiers", done, total)
        spool.seek(0)
        for file in files:
            done += _rewrite(file, spool, scrub, surrogates, patients)
            report("Finding identifiers", done, total)
    content = {**read_json(folder / "prepare.json"), "scrub": scrub.facts()}
    write_json(folder / "prepare.json", content)
    return content


def _columns(file: Path) -> list[str]:
    """Return the columns of text of a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return [
        field.name
        for field in pq.read_schema(file)
        if field.name in TEXT_COLUMNS and (pa.types.is_string(field.type) or pa.types.is_large_string(field.type))
    ]


def _rows(file: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(file).num_rows)


def _batches(file: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, pre_buffer=False) as table:
        yield from table.iter_batches(batch_size=_ROWS)


def _patients(batch: Any) -> list[str]:
    """Return whose each row is; a row of nobody is its own patient's."""
    names = batch.schema.names
    column = batch.column("patient_id").to_pylist() if "patient_id" in names else [None] * batch.num_rows
    ids = next((batch.column(name).to_pylist() for name in ("note_id", "example_id") if name in names), None)
    return [
        f"patient {patient}" if patient is not None else f"row {ids[row] if ids else row}"
        for row, patient in enumerate(column)
    ]


@contextmanager
def _searcher(rows: int) -> Iterator[_Searcher]:
    """Yield what searches batches: in this process or, where there are many rows, in as many as there are cores."""
    if rows < _WORTH_PROCESSES:
        yield _Searcher(None)
        return
    with worker_pool() as pool:
        yield _Searcher(pool)


@dataclass(frozen=True)
class _Searcher:
    pool: WorkerPool | None

    def __call__(
        self, batches: Iterator[Any], columns: Sequence[str], engines: tuple[str, ...]
    ) -> Iterator[tuple[Any, Found]]:
        """Yield each batch with the findings of its columns and rows, in order."""
        if self.pool is None:
            for batch in batches:
                yield batch, search_columns(_texts(batch, columns), engines)
            return
        waiting: deque[tuple[Any, Future[Found]]] = deque()
        for batch in batches:
            waiting.append((batch, self.pool.submit(search_columns, _texts(batch, columns), engines)))
            if len(waiting) > _AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


def _texts(batch: Any, columns: Sequence[str]) -> list[list[str | None]]:
    return [batch.column(column).to_pylist() for column in columns]


def search_columns(columns: list[list[str | None]], engines: tuple[str, ...]) -> Found:
    """Search columns of texts; called in worker processes too."""
    searched: dict[str | None, list[Identifier]] = {None: [], "": []}  # instructions repeat their notes
    for text in (text for column in columns for text in column):
        if text is not None and text not in searched:
            searched[text] = find_identifiers(text, engines)
    return [[searched[text] for text in column] for column in columns]


def _learn(batch: Any, columns: Sequence[str], found: Found, patients: dict[str, OfPatient]) -> None:
    """Take the names and numbers that a batch gives away."""
    owners = _patients(batch)
    for texts, items in zip(_texts(batch, columns), found, strict=True):
        for owner, text, inside in zip(owners, texts, items, strict=True):
            if text and inside:
                patients.setdefault(owner, OfPatient()).learn(text, inside)


def _as_line(found: Found) -> str:
    """Write positions of a batch as one line."""
    plain = [[[(item.start, item.end, item.kind, item.engine) for item in row] for row in column] for column in found]
    return json.dumps(plain, separators=(",", ":")) + "\n"


def _of_line(line: str) -> Found:
    return [[[Identifier(*item) for item in row] for row in column] for column in json.loads(line)]


def _rewrite(file: Path, spool: IO[str], scrub: Scrub, surrogates: Surrogates, patients: dict[str, OfPatient]) -> int:
    """Write a table anew with what was found; return its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _columns(file)
    temporary = file.with_name(f".{file.name}.scrubbed")
    rows = 0
    with pq.ParquetWriter(temporary, pq.read_schema(file), compression="zstd") as writer:
        for batch in _batches(file):
            owners = _patients(batch)
            table = pa.Table.from_batches([batch])
            for column, found in zip(columns, _of_line(spool.readline()), strict=True):
                texts, sections = [], []
                spans = (
                    batch.column("sections").to_pylist()
                    if column == "text" and "sections" in batch.schema.names
                    else None
                )
                for row, (text, items) in enumerate(zip(batch.column(column).to_pylist(), found, strict=True)):
                    changed, edits = _scrubbed(text, items, owners[row], scrub, surrogates, patients)
                    texts.append(changed)
                    if spans is not None:
                        sections.append(_moved(spans[row], edits))
                table = _with(table, column, texts)
                if spans is not None:
                    table = _with(table, "sections", sections)
            writer.write_table(table, row_group_size=_ROWS)
            rows += batch.num_rows
    temporary.replace(file)
    return rows


def _with(table: Any, column: str, values: list[Any]) -> Any:
    import pyarrow as pa

    place = table.schema.get_field_index(column)
    return table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type))


def _scrubbed(
    text: str | None,
    found: list[Identifier],
    owner: str,
    scrub: Scrub,
    surrogates: Surrogates,
    patients: dict[str, OfPatient],
) -> tuple[str | None, list[tuple[int, int, str]]]:
    if not text:
        return text, []
    known = patients.get(owner)
    if known is not None:
        names = list(dict.fromkeys(name for item in found for name in item.engine.split("+")))
        found = merge([*found, *known.find(text)], [*names, OF_PATIENT])
    edits = surrogates.edits(owner, text, found)
    scrub.texts += 1
    scrub.texts_changed += bool(edits)
    scrub.counts.update(item.kind for item in found if item.kind != PLACEHOLDER)
    return apply_edits(text, edits), edits


def _moved(spans: list[dict[str, Any]] | None, edits: list[tuple[int, int, str]]) -> list[dict[str, Any]] | None:
    """Return a map of sections that covers the text with its edits."""
    if not spans or not edits:
        return spans
    starts = moved_places([span["start"] for span in spans], edits)
    ends = moved_places([span["end"] for span in spans], edits)
    return [{**span, "start": start, "end": end} for span, start, end in zip(spans, starts, ends, strict=True)]
