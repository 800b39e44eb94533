"""Scrubbing on the way in: every text of a prepared folder, whatever builder wrote it, before the folder is seen.

The seam is `clinstack.notes.prepared.prepared_folder`: when a builder has written its tables, and before they take
their place, `scrub_folder` goes through all of them. So no builder knows of it, and a new one is scrubbed as well.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from clinstack.errors import InputError
from clinstack.files import read_json, write_json
from clinstack.notes.scan_sources import TEXT_COLUMNS
from clinstack.privacy.identifiers import PLACEHOLDER, Identifier, find_identifiers, open_engines
from clinstack.privacy.identifiers.identifier import merge
from clinstack.privacy.identifiers.of_patient import NAME as OF_PATIENT
from clinstack.privacy.identifiers.of_patient import OfPatient
from clinstack.privacy.identifiers.surrogates import Style, Surrogates, apply_edits, moved_places

Report = Callable[[str, int, int], None]
_ROWS = 2048
_KEY_BYTES = 32


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


def read_key(file: Path | None) -> bytes:
    """Read or make the key of a file, or draw one that nobody keeps.

    Raises
    ------
    InputError
        If others may read the file, or it does not hold 32 bytes in hexadecimal digits.
    """
    if file is None:
        return secrets.token_bytes(_KEY_BYTES)
    try:
        with open(file, "x", encoding="ascii", opener=_private) as made:
            made.write(secrets.token_hex(_KEY_BYTES) + "\n")
    except FileExistsError:
        if not file.is_file():
            raise InputError(f"{file} is no file; name one for the key of --scrub.") from None
    except OSError as error:
        raise InputError(f"{file} cannot be written ({type(error).__name__}); name another for the key.") from None
    if file.stat().st_mode & 0o077:
        raise InputError(f"{file}: others may read this key; chmod 600 it.")
    try:
        key = bytes.fromhex(file.read_text(encoding="ascii").strip())
    except ValueError:
        key = b""
    if len(key) < _KEY_BYTES:
        raise InputError(
            f"{file} is no key: {2 * _KEY_BYTES} hexadecimal digits are needed; name a new file to make one."
        )
    return key


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def scrub_folder(folder: Path, scrub: Scrub, report: Report, scratch: Path) -> dict[str, Any]:
    """Replace the identifiers in all texts of a folder that is being prepared.

    The texts are searched once. What is found in any text of a patient is then looked for in all of that patient's
    texts (`OfPatient`), so that an example, which is cut from a note, loses a name that only the rest of the note gives
    away. Maps of sections move with the text. In memory are a batch of rows, and the names and numbers of each patient
    as long as the tables are written; on disk go nothing but the new texts.

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
    with (scratch / "found.jsonl").open("w+", encoding="utf-8") as spool:
        for file in files:
            for batch in _batches(file):
                spool.write(_as_line(_search(batch, _columns(file), scrub.engines, patients)))
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


def _search(
    batch: Any, columns: Sequence[str], engines: Sequence[str], patients: dict[str, OfPatient]
) -> list[list[list[Identifier]]]:
    """Return the findings of each column and row, and learn from them."""
    result = []
    owners = _patients(batch)
    for column in columns:
        found = []
        searched: dict[str | None, list[Identifier]] = {None: [], "": []}  # instructions repeat their notes
        for owner, text in zip(owners, batch.column(column).to_pylist(), strict=True):
            if text not in searched:
                searched[text] = find_identifiers(text, engines)
            items = searched[text]
            if items:
                patients.setdefault(owner, OfPatient()).learn(text, items)
            found.append(items)
        result.append(found)
    return result


def _as_line(found: list[list[list[Identifier]]]) -> str:
    """Write positions of a batch as one line."""
    plain = [[[(item.start, item.end, item.kind, item.engine) for item in row] for row in column] for column in found]
    return json.dumps(plain, separators=(",", ":")) + "\n"


def _of_line(line: str) -> list[list[list[Identifier]]]:
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
