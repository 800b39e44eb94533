"""Any table with ids and texts, read in parts of fixed row ranges, however long it is.

::

    files, row groups     |----------|------|----------------|---|
    rows                  0                                      n
    parts                 |-- 0 --|-- 1 --|-- 2 --|-- 3 --|- 4 --|      the same whatever the files' own borders

What of a table is in memory is a part, and eight bytes a row while ids are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clinstack.errors import InputError
from clinstack.notes.read import SPLITS, examples_files, notes_files, section_spans
from clinstack.notes.row_batches import check_columns
from clinstack.notes.sections.find import SectionSpan
from clinstack.notes.sources.csv_rows import CsvRows
from clinstack.notes.sources.table_readers import as_texts
from clinstack.recipe import PredictRecipe, suggest
from clinstack.recipe.predict import EmptyText

_ENDINGS = (".parquet", ".csv", ".csv.gz")
_BATCH_ROWS = 512
ID, PATIENT, TEXT, SECTIONS = "example_id", "patient_id", "text", "sections"


@dataclass
class TextPart:
    """The rows of one part that have a text to read, column by column.

    Parameters
    ----------
    number : int
    left_out : int
        Rows without text that are not among the others.
    """

    number: int
    example_ids: list[str] = field(default_factory=list)
    patient_ids: list[str | None] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    sections: list[list[SectionSpan] | None] | None = None
    left_out: int = 0


@dataclass(frozen=True)
class _Slice:
    """A few rows: the columns under clinstack's names, ids and texts as text, an empty one null."""

    file: Path
    first: int
    """In the whole table, from 0."""
    numbers: NDArray[np.int64]
    """In their file, from 1, as its owner counts them."""
    columns: pa.Table


class TextTable:
    """The files of a table, read as one.

    Parameters
    ----------
    files : sequence of Path
        Of one kind.
    names : dict of str to str
        ``example_id``, ``text`` and where known ``patient_id``, and how the files spell them.
    keys : dict of str to str
        The same, and the key of the recipe that says so.
    empty : {"refuse", "read", "leave_out"}
        What a row without text comes to.

    Raises
    ------
    InputError
        If a file or a column is missing, or cannot hold ids or texts.
    """

    def __init__(self, files: Sequence[Path], names: dict[str, str], keys: dict[str, str], empty: EmptyText) -> None:
        self.files = list(files)
        self._names, self._keys, self._empty = names, keys, empty
        for file in self.files:
            self._check(file)

    @classmethod
    def of(cls, recipe: PredictRecipe) -> TextTable:
        """Return the table that a recipe names.

        Raises
        ------
        InputError
            As the class does.
        """
        empty = recipe.treats_empty_text
        if recipe.table is not None:
            names = {ID: recipe.id_column or ID, TEXT: recipe.text_column or TEXT}
            if recipe.patient_column is not None:
                names[PATIENT] = recipe.patient_column
            if len(set(names.values())) < len(names):
                # Ids stand in predictions, where no text belongs.
                raise InputError("id_column, text_column and patient_column: name a column of its own for each.")
            keys = {ID: "id_column", TEXT: "text_column", PATIENT: "patient_column"}
            return cls(_files(Path(recipe.table)), names, keys, empty)
        if recipe.examples is not None:
            wanted = SPLITS if recipe.split is None else (recipe.split,)
            files = [file for file in examples_files(Path(recipe.examples)) if file.stem in wanted]
            return cls(files, {name: name for name in (ID, PATIENT, TEXT)}, {}, empty)
        files = [file for file in notes_files(Path(str(recipe.notes))) if file.name != "splits.parquet"]
        return cls(files, {ID: "note_id", PATIENT: "patient_id", TEXT: "text"}, {}, empty)

    def _check(self, file: Path) -> None:
        if _is_csv(file):
            columns = CsvRows(file).header
        else:
            check_columns(file, ())
            schema = pq.read_schema(file)
            columns = list(schema.names)
        for name, column in self._names.items():
            key = self._keys.get(name)
            if column not in columns:
                near = suggest(column, columns) or f" It has {', '.join(columns)[:300]}."
                remedy = f" Name the right one as {key}=COLUMN." if key else " Prepare the folder again."
                raise InputError(f"{key or file.parent.name}: {file} has no column {column}.{near}{remedy}")
            if name == TEXT and not _is_csv(file) and not _holds_text(schema.field(column).type):
                raise InputError(
                    f"{key or file.parent.name}: the column {column} of {file} holds {schema.field(column).type}, no "
                    f"text. Name the right one as {key or 'text_column'}=COLUMN, or write it as text."
                )

    # ------------------------------------------------------------------ one look at all rows

    def survey(self) -> int:
        """Read the table once and return how many rows it has.

        Raises
        ------
        InputError
            Naming the row: an id that is empty or stands twice, a text that is missing where that is refused, or bytes
            that are no text.
        """
        hashes: list[NDArray[np.int64]] = []
        rows = 0
        for part in self._slices((ID, TEXT)):
            self._refuse_empty(part, ID, "give every row an id of its own")
            if self._empty == "refuse":
                self._refuse_empty(
                    part, TEXT, "empty_text=leave_out leaves such rows out, empty_text=read scores an empty note"
                )
            ids = part.columns[ID].to_pylist()
            hashes.append(np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids)))
            rows += len(ids)
        if not rows:
            raise InputError(f"{self.files[0]} has no rows; there is nothing to predict.")
        ordered = np.sort(np.concatenate(hashes))
        suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if suspects:
            self._refuse_doubles(suspects)
        return rows

    def _refuse_empty(self, part: _Slice, name: str, remedy: str) -> None:
        missing = part.columns[name].is_null()
        if pc.any(missing).as_py():
            row = int(part.numbers[missing.to_pylist().index(True)])
            raise InputError(f"{part.file}, row {row:,}: the column {self._names[name]} is empty; {remedy}.")

    def _refuse_doubles(self, suspects: set[int]) -> None:
        """Raise when ids with one of these hashes are truly the same."""
        seen: dict[str, str] = {}
        for part in self._slices((ID,)):
            for value, number in zip(part.columns[ID].to_pylist(), part.numbers.tolist(), strict=True):
                if hash(value) not in suspects:
                    continue
                here = f"{part.file}, row {number:,}"
                if value in seen:
                    other = ", or name another column as id_column=COLUMN" if self._keys else ""
                    raise InputError(
                        f"{here}: its {self._names[ID]} stands in {seen[value]} already; give every row an id of its "
                        f"own{other}."
                    )
                seen[value] = here

    # ------------------------------------------------------------------ part by part

    def parts(self, rows_per_part: int, wanted: Collection[int], *, sections: bool) -> Iterator[TextPart]:
        """Yield the parts that are wanted, in order; row groups without any of them are not read.

        Parameters
        ----------
        rows_per_part : int
        wanted : collection of int
            Numbers of parts, from 0.
        sections : bool
            Whether to read the column ``sections`` where there is one of lists.
        """
        names = [name for name in (ID, PATIENT, TEXT) if name in self._names]

        def is_wanted(first: int, stop: int) -> bool:
            return any(number in wanted for number in range(first // rows_per_part, (stop - 1) // rows_per_part + 1))

        part: TextPart | None = None
        for rows in self._slices(names, is_wanted, sections=sections):
            at = 0
            while at < len(rows.numbers):
                number = (rows.first + at) // rows_per_part
                stop = min(len(rows.numbers), (number + 1) * rows_per_part - rows.first)
                if number in wanted:
                    if part is not None and part.number != number:
                        yield part
                        part = None
                    part = part or TextPart(number)
                    self._add(part, rows, at, stop)
                at = stop
        if part is not None:
            yield part

    def _add(self, part: TextPart, rows: _Slice, begin: int, stop: int) -> None:
        chosen = rows.columns.slice(begin, stop - begin)
        texts = chosen[TEXT].to_pylist()
        kept = [place for place, text in enumerate(texts) if text or self._empty != "leave_out"]
        part.left_out += len(texts) - len(kept)
        ids = chosen[ID].to_pylist()
        patients = chosen[PATIENT].to_pylist() if PATIENT in self._names else [None] * len(texts)
        known = None
        if SECTIONS in chosen.column_names:
            known = section_spans(chosen, rows.file, int(rows.numbers[begin]))
        if part.sections is None and known is not None:
            part.sections = [None] * len(part.texts)
        part.example_ids += [ids[place] for place in kept]
        part.patient_ids += [patients[place] for place in kept]
        part.texts += [texts[place] or "" for place in kept]
        if part.sections is not None:
            part.sections += [None if known is None else known[place] for place in kept]

    # ------------------------------------------------------------------ few rows at a time

    def _slices(
        self, names: Sequence[str], wanted: Callable[[int, int], bool] | None = None, *, sections: bool = False
    ) -> Iterator[_Slice]:
        """Yield rows in their order; ``wanted`` says of a range whether it has to be read, where that can be chosen."""
        first = 0
        for file in self.files:
            numbered = self._csv(file, names) if _is_csv(file) else self._parquet(file, names, first, wanted, sections)
            rows = 0
            for begin, numbers, columns in numbered:
                yield _Slice(file, first + begin, numbers, columns)
                rows = begin + len(numbers)
            first += rows if _is_csv(file) else pq.read_metadata(file).num_rows

    def _csv(self, file: Path, names: Sequence[str]) -> Iterator[tuple[int, NDArray[np.int64], pa.Table]]:
        done = 0
        columns = [self._names[name] for name in names]
        for rows in CsvRows(file).batches(list(dict.fromkeys(columns))):
            values = [rows.batch.column(column) for column in columns]
            yield done, rows.numbers, pa.Table.from_arrays(values, list(names))
            done += len(rows.numbers)

    def _parquet(
        self,
        file: Path,
        names: Sequence[str],
        first: int,
        wanted: Callable[[int, int], bool] | None,
        sections: bool,
    ) -> Iterator[tuple[int, NDArray[np.int64], pa.Table]]:
        done = 0
        columns = [self._names[name] for name in names]
        try:
            # A page at a time: a table may be one row group of a million rows.
            with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as table:
                with_sections = sections and _lists_sections(table.schema_arrow)
                read = list(dict.fromkeys([*columns, *([SECTIONS] if with_sections else [])]))
                for group in range(table.num_row_groups):
                    rows = table.metadata.row_group(group).num_rows
                    if wanted is not None and rows and not wanted(first + done, first + done + rows):
                        done += rows
                        continue
                    for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=read):
                        values = [_texts(batch, column, file, done + 1) for column in columns]
                        whole = pa.Table.from_arrays(values, list(names))
                        if with_sections:
                            whole = whole.append_column(SECTIONS, batch.column(SECTIONS))
                        yield done, np.arange(done + 1, done + 1 + len(batch)), whole
                        done += len(batch)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{file} is damaged near row {done + 1:,} ({type(error).__name__}).") from None


def _texts(batch: pa.RecordBatch, column: str, file: Path, first: int) -> pa.Array:
    """Return a column as text, an empty text as null: in csv the two are the same."""
    values = as_texts(batch.column(column), column, str(file), first)
    return pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.large_string()), values)


def _files(table: Path) -> list[Path]:
    """Return the files of a table.

    Raises
    ------
    InputError
        If there are none, or they are of several kinds.
    """
    if table.is_file():
        if not table.name.endswith(_ENDINGS):
            raise InputError(f"table: {table} is no {', '.join(_ENDINGS)}; export it as one of them.")
        return [table]
    if not table.is_dir():
        raise InputError(f"table: {table} does not exist.")
    files = sorted(file for file in table.iterdir() if file.name.endswith(_ENDINGS) and file.is_file())
    if not files:
        raise InputError(f"table: the folder {table} has no {', '.join(_ENDINGS)}.")
    if len({_is_csv(file) for file in files}) > 1:
        raise InputError(f"table: the folder {table} has Parquet and csv files; name a folder of one kind, or a file.")
    return files


def _is_csv(file: Path) -> bool:
    return not file.name.endswith(".parquet")


def _holds_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _lists_sections(schema: pa.Schema) -> bool:
    """Whether there is a column of sections as Notes have it."""
    if SECTIONS not in schema.names:
        return False
    kind = schema.field(SECTIONS).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and pa.types.is_struct(kind.value_type))
