"""Identifiers in tables of notes, instructions and generations: counts, and positions on request, never the text."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinstack.errors import InputError
from clinstack.files import replacing_file
from clinstack.notes.scan_sources import Texts, find_tables, read_texts
from clinstack.privacy.identifiers import KINDS, Identifier, IdentifierCounts, find_identifiers, open_engines
from clinstack.processes import WorkerPool, worker_pool

if TYPE_CHECKING:
    import pyarrow.parquet as pq

Progress = Callable[[str, int, int], None]
Found = list[list[Identifier]]
Judge = Callable[[Texts, Found], None]
MOST_WORKERS = 64


@dataclass(frozen=True)
class ScanOptions:
    """How a scan reads and what it keeps.

    Parameters
    ----------
    engines : tuple of str
        As `clinstack.privacy.identifiers.engines.open_engine` takes them, the most trusted first.
    columns : tuple of str
        Columns of text; the usual ones where none is named.
    out : Path or None
        A Parquet file for the findings: file, column, row, note_id, patient_id, start, end, kind, engine.
    workers : int
        Processes that search.
    """

    engines: tuple[str, ...] = ("patterns",)
    columns: tuple[str, ...] = ()
    out: Path | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MOST_WORKERS:
            raise InputError(f"workers is {self.workers}; use 1 to {MOST_WORKERS}.")
        if self.out is not None and self.out.suffix != ".parquet":
            raise InputError(f"out: {self.out} must end in .parquet.")


def scan(
    paths: Sequence[Path],
    options: ScanOptions | None = None,
    progress: Progress | None = None,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Search tables for identifiers, some rows in memory at a time.

    Parameters
    ----------
    paths : sequence of Path
        Folders of Notes or instructions, Runs with generations, any table (Parquet, CSV, JSON lines) or text file.
    options : ScanOptions, optional
    progress : callable, optional
        Called with a description, the files done and the files in all.
    judge : callable, optional
        Called with each part and its findings, in the order of the tables.

    Returns
    -------
    dict
        What `IdentifierCounts.to_dict` has, of everything; ``files`` with the same of each file and column;
        ``without_text``, files of folders that have no column of text.

    Raises
    ------
    InputError
        If a path, a column or an engine is wrong.
    """
    options = options or ScanOptions()
    open_engines(options.engines)  # what is not installed is told before anything is read
    files = find_tables(paths)
    named = set(paths)
    total = IdentifierCounts()
    by_file: dict[str, dict[str, IdentifierCounts]] = {}
    without: list[str] = []
    with ExitStack() as stack:
        writer = stack.enter_context(_FindingsWriter(options.out)) if options.out is not None else None
        search = stack.enter_context(_Search(options))
        for done, file in enumerate(files):
            if progress:
                progress(f"Scanning {file.name}", done, len(files))
            counted = by_file.setdefault(str(file), {})
            for part, found in search(read_texts(file, options.columns, required=file in named)):
                counts = counted.setdefault(part.column, IdentifierCounts())
                for place, (text, items) in enumerate(zip(part.texts, found, strict=True)):
                    patient = part.patient_ids[place] if part.patient_ids is not None else None
                    counts.add(len(text), patient, items)
                    total.add(len(text), patient, items)
                if writer is not None:
                    writer.write(part, found)
                if judge is not None:
                    judge(part, found)
            if not counted:
                without.append(str(file))
        if progress:
            progress("Scanning", len(files), len(files))
    if not total.texts:
        raise InputError(f"{', '.join(map(str, paths))}: no text was found; name a column with --text.")
    return {
        **total.to_dict(),
        "searched_with": list(options.engines),
        "files": [
            {"file": file, "column": column, **counts.to_dict()}
            for file, columns in by_file.items()
            for column, counts in columns.items()
        ],
        "without_text": without,
    }


def search_texts(texts: list[str], engines: tuple[str, ...]) -> Found:
    """Search some texts; called in worker processes too."""
    return [find_identifiers(text, engines) for text in texts]


class _Search:
    """Searches parts in order, in this process or ahead in several."""

    def __init__(self, options: ScanOptions) -> None:
        self._options = options
        self._stack = ExitStack()
        self._pool: WorkerPool | None = None

    def __enter__(self) -> _Search:
        if self._options.workers > 1:
            self._pool = self._stack.enter_context(worker_pool(self._options.workers))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def __call__(self, parts: Iterable[Texts]) -> Iterator[tuple[Texts, Found]]:
        engines = self._options.engines
        if self._pool is None:
            for part in parts:
                yield part, search_texts(part.texts, engines)
            return
        waiting: deque[tuple[Texts, Future[Found]]] = deque()
        for part in parts:
            waiting.append((part, self._pool.submit(search_texts, part.texts, engines)))
            if len(waiting) > 2 * self._options.workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


class _FindingsWriter:
    """Writes one row for each finding; the file appears when all is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _FindingsWriter:
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = ("file", "column", "row", "note_id", "patient_id", "start", "end", "kind", "engine")
        numbers = ("row", "start", "end")
        self.schema = pa.schema([(name, pa.int64() if name in numbers else pa.string()) for name in texts])
        temporary = self._stack.enter_context(replacing_file(self._path))
        self._writer = self._stack.enter_context(pq.ParquetWriter(temporary, self.schema, compression="zstd"))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, part: Texts, found: Found) -> None:
        """Write the findings of a part."""
        import pyarrow as pa

        rows = [
            {
                "file": part.file,
                "column": part.column,
                "row": part.first + place,
                "note_id": part.note_ids[place] if part.note_ids is not None else None,
                "patient_id": part.patient_ids[place] if part.patient_ids is not None else None,
                "start": item.start,
                "end": item.end,
                "kind": item.kind,
                "engine": item.engine,
            }
            for place, items in enumerate(found)
            for item in items
        ]
        if rows and self._writer is not None:
            self._writer.write_table(pa.Table.from_pylist(rows, self.schema))


def check_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Return kinds as they are.

    Raises
    ------
    InputError
        If one is not known.
    """
    chosen = tuple(kinds)
    unknown = next((kind for kind in chosen if kind not in KINDS), None)
    if unknown is not None:
        raise InputError(f"{unknown!r} is no kind of identifier; there are {', '.join(KINDS)}.")
    return chosen
