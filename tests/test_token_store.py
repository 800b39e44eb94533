"""The store of tokens: written once, whole or not there, the same whatever killed its writer, and nobody else's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from clinstack.errors import InputError
from clinstack.files import read_json, write_json
from clinstack.notes.read import NotesSplit, read_notes, stream_notes, survey_notes
from clinstack.tokens import shards
from clinstack.tokens.encode import TextEncoder
from clinstack.tokens.notes import NoteTokens
from clinstack.tokens.store import open_store
from tiny_notes import CANARY

SOURCE = {"files": ["sha256:1"], "split": "train", "note_types": None}


class Bar:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.tokens = self.notes = self.began_with = 0

    def advance(self, units: int = 0, steps: int = 1) -> None:
        self.tokens += units
        self.notes += steps


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_base)
    return loaded


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_SHARD_NOTES", 7)
    monkeypatch.setattr(shards, "_SHARD_CHARACTERS", 400)
    monkeypatch.setattr(shards, "_BATCH_CHARACTERS", 90)


def notes() -> Iterator[NotesSplit]:
    """Forty notes in batches of three, of zero to some hundred characters; two of them without a token."""
    texts = ["the patient was admitted with chest pain " * (n % 4) + str(n) * (n % 9) for n in range(40)]
    for at in range(0, 40, 3):
        numbers = range(at, min(at + 3, 40))
        yield NotesSplit(
            [f"n{n}" for n in numbers], [f"p{n // 2}" for n in numbers], ["Nursing"] * len(numbers), texts[at : at + 3]
        )


def opened(
    place: Path,
    tokenizer: PreTrainedTokenizerBase,
    read: Callable[[], Iterator[NotesSplit]] = notes,
    said: list[str] | None = None,
    bar: Bar | None = None,
    **source: Any,
) -> NoteTokens:
    bar = bar or Bar()

    @contextmanager
    def watch(done: int) -> Iterator[Bar]:
        bar.began_with = done
        yield bar

    heard: Callable[[str], None] = print if said is None else said.append
    return open_store(place, SOURCE | source, tokenizer, read, say=heard, watch=watch)


def never() -> Iterator[NotesSplit]:
    raise AssertionError("the notes were read again")


def store_of(place: Path) -> Path:
    (folder,) = [item for item in place.iterdir() if item.is_dir() and not item.name.startswith(".")]
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ---------------------------------------------------------------------- what is in it


def test_a_store_has_each_note_in_order_with_its_tokens(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    bar = Bar()
    store = opened(tmp_path / "tokens", tokenizer, bar=bar)
    wanted = [text for part in notes() for text in part.texts]
    assert store.index["note_id"].to_pylist() == [name for part in notes() for name in part.note_ids]
    assert store.index["patient_id"].to_pylist() == [name for part in notes() for name in part.patient_ids]
    assert store.index["characters"].to_pylist() == [len(text) for text in wanted]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in wanted]
    assert [tokens.tolist() for tokens in store.documents] == expected
    assert store.documents.lengths.min() == 0
    assert (bar.began_with, bar.notes, bar.tokens) == (0, 40, sum(map(len, expected)))


def test_the_files_are_what_the_record_says(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    store = opened(tmp_path / "tokens", tokenizer)
    folder = store_of(tmp_path / "tokens")
    record = read_json(folder / "store.json")
    assert record["fingerprint"] == folder.name
    assert record["source"] == SOURCE
    assert record["tokenizer"] == TextEncoder(tokenizer).fingerprint
    assert (record["notes"], record["tokens"]) == (40, int(store.documents.lengths.sum()))
    assert len(record["shards"]) > 4
    assert all(shard["notes"] <= 7 for shard in record["shards"])
    first = np.fromfile(folder / "00000.tokens", dtype=record["dtype"])
    assert record["dtype"] == "<u2"
    assert first.tolist() == [token for row in range(record["shards"][0]["notes"]) for token in store.documents[row]]
    assert "can be turned back into text" in (tmp_path / "tokens" / "README.md").read_text(encoding="utf-8")
    assert {item.name for item in (tmp_path / "tokens").iterdir()} == {"README.md", folder.name, f".{folder.name}.lock"}


def test_tokens_are_mapped_and_not_read(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    store = opened(tmp_path / "tokens", tokenizer)
    assert all(isinstance(shard, np.memmap) for shard in store.documents.shards)
    with pytest.raises(ValueError, match="read-only"):
        store.documents.shards[0][0] = 1


def test_a_sample_is_drawn_by_its_seed_and_keeps_the_order(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    store = opened(tmp_path / "tokens", tokenizer)
    assert store.sample(None, 0) is store.sample(40, 0) is store
    one, same, other = (store.sample(9, seed) for seed in (0, 0, 1))
    assert one.index.equals(same.index)
    assert not one.index.equals(other.index)
    numbers = [int(name[1:]) for name in one.index["note_id"].to_pylist()]
    assert numbers == sorted(set(numbers))
    assert len(one) == 9
    assert [tokens.tolist() for tokens in one.documents] == [store.documents[n].tolist() for n in numbers]


# ---------------------------------------------------------------------- once


def test_the_second_time_neither_notes_nor_tokenizer_are_used(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(tmp_path / "tokens", tokenizer)

    def refuse(self: TextEncoder, texts: Sequence[str]) -> Any:
        raise AssertionError("texts were encoded again")

    monkeypatch.setattr(TextEncoder, "encode", refuse)
    again = opened(tmp_path / "tokens", tokenizer, never)
    assert again.index.equals(first.index)
    assert [a.tolist() for a in again.documents] == [b.tolist() for b in first.documents]
    with pytest.raises(AssertionError, match="encoded again"):
        opened(tmp_path / "tokens", tokenizer, split="test")


@pytest.mark.parametrize("change", [{"files": ["sha256:2"]}, {"split": "test"}, {"note_types": ["Nursing"]}])
def test_other_notes_have_another_store(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, change: dict[str, Any]
) -> None:
    opened(tmp_path / "tokens", tokenizer)
    few = Bar()
    opened(tmp_path / "tokens", tokenizer, lambda: iter([next(notes())]), bar=few, **change)
    assert few.notes == 3


def test_another_tokenizer_has_another_store(tiny_base: Path, tmp_path: Path) -> None:
    other = AutoTokenizer.from_pretrained(tiny_base)
    other.add_tokens(["chest pain"])
    first = opened(tmp_path / "tokens", AutoTokenizer.from_pretrained(tiny_base))
    second = opened(tmp_path / "tokens", other)
    assert second.documents.lengths.sum() < first.documents.lengths.sum()


# ---------------------------------------------------------------------- killed, damaged, at the same time


@pytest.mark.parametrize("after", [1, 2, 5, 11, 13])
def test_a_killed_writer_leaves_what_the_next_one_goes_on_from(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path / "straight", tokenizer)

    class Killed(BaseException):
        """Nothing that is caught."""

    def dying() -> Iterator[NotesSplit]:
        for number, part in enumerate(notes()):
            if number == after:
                raise Killed
            yield part

    with pytest.raises(Killed):
        opened(tmp_path / "killed", tokenizer, dying)
    assert not [item for item in (tmp_path / "killed").iterdir() if item.is_dir() and not item.name.startswith(".")]
    bar = Bar()
    opened(tmp_path / "killed", tokenizer, bar=bar)
    assert bar.began_with + bar.notes == 40
    assert (bar.began_with > 0) == (after > 2)
    assert bytes_of(store_of(tmp_path / "killed")) == bytes_of(store_of(tmp_path / "straight"))


def test_a_writer_killed_within_a_file_is_repaired(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    opened(tmp_path / "straight", tokenizer)
    straight = store_of(tmp_path / "straight")
    place = tmp_path / "killed"
    partial = place / f".{straight.name}.partial"
    shutil.copytree(straight, partial)
    (partial / "store.json").unlink()
    (partial / ".00004.tokens.partial").write_bytes(b"half")
    (partial / "00003.tokens").write_bytes((partial / "00003.tokens").read_bytes()[:-2])
    bar = Bar()
    opened(place, tokenizer, bar=bar)
    assert bar.began_with == sum(shard["notes"] for shard in read_json(straight / "store.json")["shards"][:3])
    assert bytes_of(store_of(place)) == bytes_of(straight)


def cut_short(folder: Path) -> None:
    file = folder / "00001.tokens"
    file.write_bytes(file.read_bytes()[:-2])


def lose(folder: Path) -> None:
    (folder / "00002.arrow").unlink()


def spoil(folder: Path) -> None:
    (folder / "store.json").write_text("{")


def forge(folder: Path) -> None:
    write_json(folder / "store.json", read_json(folder / "store.json") | {"fingerprint": "0" * 24})


def swap(folder: Path) -> None:
    """An index of the right size with other counts."""
    file = folder / "00000.arrow"
    size = file.stat().st_size
    table = pa.ipc.open_file(pa.OSFile(str(file))).read_all()
    counts = pa.array(reversed(table["tokens"].to_pylist()))
    with pa.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table.set_column(table.schema.get_field_index("tokens"), "tokens", counts))
    assert file.stat().st_size == size


@pytest.mark.parametrize("damage", [cut_short, lose, spoil, forge, swap])
def test_a_damaged_store_is_made_again_and_it_is_said(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    opened(tmp_path / "tokens", tokenizer)
    folder = store_of(tmp_path / "tokens")
    before = bytes_of(folder)
    damage(folder)
    said: list[str] = []
    opened(tmp_path / "tokens", tokenizer, said=said)
    assert said
    assert all("damaged" in line and str(folder) in line for line in said)
    assert bytes_of(folder) == before
    said.clear()
    opened(tmp_path / "tokens", tokenizer, never, said)
    assert not said


def test_one_writes_and_the_others_wait_for_it(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """The lock is one of the file system, so threads that open it each for themselves are as foreign as processes."""
    writing, waiting = Event(), Event()

    def slow() -> Iterator[NotesSplit]:
        writing.set()
        assert waiting.wait(30)
        yield from notes()

    class Heard(list[str]):
        def append(self, line: str) -> None:
            super().append(line)
            waiting.set()

    said = Heard()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(opened, tmp_path / "tokens", tokenizer, slow)
        assert writing.wait(30)
        second = pool.submit(opened, tmp_path / "tokens", tokenizer, never, said)
        one, other = first.result(), second.result()
    assert other.index.equals(one.index)
    assert said == [f"{tmp_path / 'tokens'}: another process turns the same notes into tokens; waiting for it."]


# ---------------------------------------------------------------------- refused


def test_a_folder_that_cannot_be_written_names_the_key(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"tokens: .* cannot be written .*; name another folder with the key tokens"):
        opened(tmp_path / "file" / "tokens", tokenizer)


def test_notes_without_text_are_refused_and_leave_nothing(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of the train patients' notes has text"):
        opened(tmp_path / "tokens", tokenizer, lambda: iter([]))
    assert not [item for item in (tmp_path / "tokens").iterdir() if item.is_dir()]


# ---------------------------------------------------------------------- streaming notes


def test_streamed_notes_are_those_of_the_tables(tiny_notes: Path) -> None:
    rows = pq.read_table(tiny_notes / "notes" / "notes.parquet").to_pylist()
    split_of = {row["patient_id"]: row["split"] for row in pq.read_table(tiny_notes / "splits.parquet").to_pylist()}
    for kinds in (None, ["Nursing"]):
        survey = survey_notes(tiny_notes, kinds)
        whole = read_notes(tiny_notes, kinds)
        for split, part in whole.items():
            wanted = [row for row in rows if split_of[row["patient_id"]] == split]
            wanted = [row for row in wanted if kinds is None or row["note_type"] in kinds]
            assert part.note_ids == [row["note_id"] for row in wanted]
            assert part.texts == [row["text"] for row in wanted]
            assert part.patient_ids == [row["patient_id"] for row in wanted]
            assert survey.notes[split] == len(wanted)
            assert sum(len(few.texts) for few in stream_notes(survey, split)) == len(wanted)


def test_notes_in_several_tables_are_read_one_after_another_and_empty_ones_left_out(
    tiny_notes: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(tiny_notes, tmp_path / "data"))
    file = data / "notes" / "notes.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[0]["text"], rows[3]["text"] = "", None
    pq.write_table(pa.Table.from_pylist(rows[:50]), data / "notes" / "a.parquet", row_group_size=7)
    pq.write_table(pa.Table.from_pylist(rows[50:]), data / "notes" / "b.parquet")
    file.unlink()
    whole = read_notes(data, None)
    assert sorted(name for part in whole.values() for name in part.note_ids) == sorted(
        row["note_id"] for row in rows if row["text"]
    )
    assert any(CANARY in text for text in whole["train"].texts)
