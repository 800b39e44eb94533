"""The strict csv reader: every value, every row's number, and each way in which a file can be broken."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clinstack.errors import InputError
from clinstack.notes.sources import csv_rows
from clinstack.notes.sources.csv_rows import CsvRows

VALUES = st.text(alphabet='ab",\n\r\0é\u2028\ud7ff 0', max_size=12)


def read(path: Path, containing: bytes | None = None) -> tuple[list[dict[str, Any]], list[int]]:
    rows, numbers = list[dict[str, Any]](), list[int]()
    reader = CsvRows(path)
    for found in reader.batches(reader.header, containing):
        rows += found.batch.to_pylist()
        numbers += found.numbers.tolist()
    return rows, numbers


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=30),
    all_quoted=st.booleans(),
    block=st.integers(1, 90),
    compressed=st.booleans(),
)
def test_values_and_numbers_are_those_of_the_file(
    tmp_path: Path, rows: list[tuple[str, str, str]], all_quoted: bool, block: int, compressed: bool
) -> None:
    text = io.StringIO(newline="")
    # Every field of a row empty and unquoted would be a blank line; the last column is a number here.
    quoting = csv.QUOTE_ALL if all_quoted else csv.QUOTE_NONNUMERIC
    writer = csv.writer(text, quoting=quoting, lineterminator="\n")
    writer.writerow(["A", "B", "TEXT", "N"])
    writer.writerows([*row, number] for number, row in enumerate(rows))
    path = tmp_path / ("t.csv.gz" if compressed else "t.csv")
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, 1) if compressed else data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_rows, "BLOCK", block)
        found, numbers = read(path)
    assert numbers == list(range(1, len(rows) + 1))
    assert [(row["A"] or "", row["B"] or "", row["TEXT"] or "") for row in found] == rows
    wanted = [index for index, row in enumerate(rows, 1) if "ab" in "".join([*row, str(index - 1)])]
    chosen = read(path, b"ab")[1]
    assert set(wanted) >= {number for number in wanted if number in chosen}
    assert set(chosen) >= {index for index, row in enumerate(rows, 1) if any("ab" in value for value in row)}


def test_the_hash_is_that_of_the_whole_file(tmp_path: Path) -> None:
    from clinstack.files import sha256_file

    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b'A,B\n1,"x"\n' * 5000))
    reader = CsvRows(path)
    assert sum(len(rows.numbers) for rows in reader.batches(["A"])) == 9999
    assert reader.digest == sha256_file(path)


def test_line_ends_marks_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfA,B\r\n1,"x\r\ny"\r\n\r\n2,z')
    assert read(path) == ([{"A": "1", "B": "x\r\ny"}, {"A": "2", "B": "z"}], [1, 3])
    path.write_bytes(b"A,B\n")
    assert read(path) == ([], [])


def test_a_note_of_ten_megabytes_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    note = 'He said "no".\n' * 750_000
    with path.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["A", "TEXT"], ["1", note], ["2", "short"]])
    rows, numbers = read(path)
    assert len(note) > 10_000_000
    assert numbers == [1, 2]
    assert rows[0]["TEXT"] == note


@pytest.mark.parametrize(
    "broken",
    [
        '1,"he said "no" to it"\n',
        '1,"never closed\n',
        '1,text" with a stray quote\n',
        '1,"closed" too early\n',
    ],
)
def test_a_broken_quote_is_named_by_its_row(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "NOTEEVENTS.csv"
    good = '1,"secret words, and\n a line"\n'
    row = 1_234_567
    with path.open("w", newline="") as file:
        file.write("A,TEXT\n")
        for _ in range(row // 1000):
            file.write(good * 1000)
        file.write(good * (row % 1000 - 1) + broken + good * 3)
    with pytest.raises(InputError, match=r"NOTEEVENTS\.csv, row 1,234,567 has a quote that is broken") as error:
        read(path)
    assert "secret" not in str(error.value)
    with pytest.raises(InputError, match="row 1,234,567 "):
        read(path, b"words that no row has")


def test_a_text_without_its_opening_quote_is_named_by_the_row_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('A,TEXT\n1,"fine"\n2,no quote\nhere"\n3,"fine"\n')
    with pytest.raises(InputError, match=r"row 3 has (1 fields|a quote that is broken)"):
        read(path)


@pytest.mark.parametrize(("line", "fields"), [("1,2,3", 3), ("1", 1)])
def test_too_many_or_too_few_fields_are_named(tmp_path: Path, line: str, fields: int) -> None:
    path = tmp_path / "t.csv"
    path.write_text("A,B\n" + "1,2\n" * 5 + line + "\n1,2\n")
    with pytest.raises(InputError, match=f"row 6 has {fields} fields where the header has 2 columns"):
        read(path)


def test_a_wrong_encoding_is_named_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('A,B\n1,x\n2,"Müller"\n'.encode("latin-1"))
    with pytest.raises(InputError, match=r"row 2 is not UTF-8 \(byte 0xfc\).*iconv"):
        read(path)
    with pytest.raises(InputError, match="row 2 is not UTF-8"):
        read(path, b"no such words")
    path.write_bytes("A,B\n1,x\n".encode("utf-16"))
    with pytest.raises(InputError, match="UTF-16"):
        read(path)


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    import random

    chance = random.Random(0)
    whole = gzip.compress(b"A,B\n" + b"".join(b"%d,%d\n" % (n, chance.getrandbits(40)) for n in range(90_000)))
    path = tmp_path / "t.csv.gz"
    for length in (len(whole) - 4, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"t\.csv\.gz is a damaged or truncated gzip file \(after row "):
            read(path)
    path.write_bytes(b"A,B\n1,2\n")
    with pytest.raises(InputError, match="damaged or truncated"):
        read(path)
    path.with_suffix("").write_bytes(whole)
    with pytest.raises(InputError, match=r"ending \.gz"):
        read(path.with_suffix(""))


def test_a_header_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        read(path)
    path.write_bytes(b"A,A\n1,2\n")
    with pytest.raises(InputError, match="the column A is named twice"):
        read(path)
