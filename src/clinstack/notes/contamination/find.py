"""Contamination: held-out examples whose text, patient or encounter is also on the training side.

Three questions are asked of a prepared folder: does a text recur between the splits of a task; is a text that one task
tests on trained on in another; and is it in the corpus of pretraining? The last is what happens when a model is
pretrained on MIMIC-IV and tested on MIMIC-III: both hold the admissions of 2008 to 2012, under different identifiers,
so that only the text can tell.

The held-out examples (validation and test) are indexed; training examples and notes stream past
(`clinstack.notes.contamination.overlap`). Memory depends neither on the number of notes nor on that of examples: an
index that grows large is closed, and the stream passes again for the next one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack import __version__
from clinstack.errors import InputError
from clinstack.notes.contamination.compared_files import Stream, checked_against, prepared_tasks, streams_of
from clinstack.notes.contamination.overlap import PERMUTATIONS, SEED, HeldOutIndex, Overlap
from clinstack.notes.contamination.shingles import SHINGLE_WORDS, Fingerprint, fingerprints
from clinstack.notes.row_batches import batches

Progress = Callable[[str, int, int], None]
HELD_OUT = ("validation", "test")
MINIMUM_WORDS = 10
"""Shorter texts are not compared: "no acute events overnight" is in every ward's notes."""
MOST_LISTED = 50_000
"""Pairs written out one by one; all are counted and all are dropped."""
_MOST_SHINGLES = 20_000_000
"""Of one index: about 500 MB."""


class HeldOut(NamedTuple):
    """An example that is tested or selected on."""

    task: str
    split: str
    example_id: str


@dataclass
class _Group:
    pairs: int = 0
    held_out: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)


@dataclass
class Contamination:
    """What was found.

    Attributes
    ----------
    groups : dict
        By (between, kind, other side, held-out side).
    pairs : list of dict
        The first `MOST_LISTED`, identifiers only.
    rows : dict of Path to set of int
        Rows of each file that would have to go; never those of a test split.
    compared : dict of str to int
        Rows held against each other, and rows too short for it.
    """

    groups: dict[tuple[str, str, str, str], _Group] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[Path, set[int]] = field(default_factory=dict)
    compared: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of pairs of all kinds."""
        return sum(group.pairs for group in self.groups.values())

    def count(self, name: str, more: int) -> None:
        """Add to a figure of ``compared``."""
        self.compared[name] = self.compared.get(name, 0) + more

    def add(self, key: tuple[str, str, str, str], held_out: str, other: str, **facts: Any) -> None:
        """Count a pair of identifiers, and list it while there is room."""
        group = self.groups.setdefault(key, _Group())
        group.pairs += 1
        group.held_out.add(held_out)
        group.others.add(other)
        if len(self.pairs) < MOST_LISTED:
            between, kind, other_side, held_side = key
            self.pairs.append(
                {"between": between, "kind": kind, "other": other_side, "held_out": held_side}
                | ({"id": other} if kind in {"patient", "encounter"} else {"other_id": other, "held_out_id": held_out})
                | facts
            )

    def found(self) -> list[dict[str, Any]]:
        """Return the counts, one row a group, in a fixed order."""
        names = ("between", "kind", "other", "held_out")
        return [
            dict(zip(names, key, strict=True))
            | {"pairs": group.pairs, "held_out_rows": len(group.held_out), "other_rows": len(group.others)}
            for key, group in sorted(self.groups.items())
        ]


def check_contamination(
    data: Path,
    against: Sequence[Path] = (),
    threshold: float = 0.8,
    minimum_words: int = MINIMUM_WORDS,
    progress: Progress | None = None,
) -> Contamination:
    """Find what the held-out examples of a prepared folder share with its training side and with other corpora.

    Parameters
    ----------
    data : Path
        Folder with ``examples/``; the notes of its train patients count as a corpus of pretraining if there are any.
    against : sequence of Path
        Prepared folders whose notes, of all patients, were or will be pretrained on.
    threshold : float
        Smallest Jaccard index of a near-duplicate, and smallest containment; over 0, at most 1.
    minimum_words : int
        Shorter texts are counted, and not compared.
    progress : callable, optional
        Called with a description, the rows done and the rows in all.

    Raises
    ------
    InputError
        If an argument, a folder, a file or a column is wrong.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"--threshold is {threshold:g}; use a share over 0 and at most 1, such as 0.8.")
    if minimum_words < SHINGLE_WORDS:
        raise InputError(f"--minimum-words is {minimum_words}; use {SHINGLE_WORDS} or more.")
    tasks = prepared_tasks(data)
    streams = streams_of(data, tasks, checked_against(data, against))
    result = Contamination()
    held_files = [(task, split, data / "examples" / task / f"{split}.parquet") for task in tasks for split in HELD_OUT]
    _find_shared_ids(result, held_files, streams, progress)
    blocks = _blocks(result, held_files, minimum_words, progress)
    for number, (texts, members) in enumerate(blocks):
        _search(result, HeldOutIndex(texts, threshold), members, streams, minimum_words, number == 0, progress)
    return result


def contamination_report(
    result: Contamination, against: Sequence[Path], threshold: float, minimum_words: int
) -> dict[str, Any]:
    """Return the content of ``contamination.json``: identifiers and figures, no text."""
    from importlib.metadata import version

    return {
        "clinstack": __version__,
        "threshold": threshold,
        "shingle_words": SHINGLE_WORDS,
        "minimum_words": minimum_words,
        "minhash": {"datasketch": version("datasketch"), "permutations": PERMUTATIONS, "seed": SEED},
        "against": [str(folder) for folder in against],
        "compared": dict(sorted(result.compared.items())),
        "total": result.total,
        "found": result.found(),
        "dropped": None,
        "pairs": result.pairs,
        "pairs_not_listed": result.total - len(result.pairs),
    }


def _find_shared_ids(
    result: Contamination, held_files: Sequence[tuple[str, str, Path]], streams: Sequence[Stream], progress: Any
) -> None:
    columns = ("patient_id", "encounter_id")
    holders: dict[str, dict[str, set[tuple[str, str]]]] = {column: {} for column in columns}
    for task, split, file in held_files:
        for _, batch in batches(file, columns):
            for column in columns:
                for value in batch[column].to_pylist():
                    if value is not None:
                        holders[column].setdefault(str(value), set()).add((task, split))
    for done, stream in enumerate(streams):
        _report(progress, "Comparing identifiers", done, len(streams))
        if not stream.same_ids:
            continue
        seen: set[tuple[str, str, str, str]] = set()
        for first, batch in batches(stream.file, columns):
            patients = batch["patient_id"].to_pylist()
            for column in columns:
                for place, value in enumerate(batch[column].to_pylist()):
                    held_in = holders[column].get(str(value)) if value is not None else None
                    if not held_in or (stream.patients is not None and str(patients[place]) not in stream.patients):
                        continue
                    for task, split in sorted(held_in):
                        between = stream.between(task, split)
                        if between is None:
                            continue
                        result.rows.setdefault(stream.file, set()).add(first + place)
                        if (column, str(value), task, split) not in seen:
                            seen.add((column, str(value), task, split))
                            kind = column.removesuffix("_id")
                            key = (between, kind, stream.name, f"{task}/{split}")
                            result.add(key, str(value), str(value))
    _report(progress, "Comparing identifiers", len(streams), len(streams))


def _blocks(
    result: Contamination, held_files: Sequence[tuple[str, str, Path]], minimum_words: int, progress: Any
) -> Iterator[tuple[list[Fingerprint], list[list[HeldOut]]]]:
    """Yield the distinct held-out texts, and who has each, in blocks that an index may hold."""
    texts: dict[bytes, Fingerprint] = {}
    members: dict[bytes, list[HeldOut]] = {}
    shingles = 0
    for done, (task, split, file) in enumerate(held_files):
        _report(progress, "Reading held-out examples", done, len(held_files))
        for _, batch in batches(file, ("example_id", "text")):
            ids = batch["example_id"].to_pylist()
            for example_id, print_ in zip(ids, fingerprints(batch["text"]), strict=True):
                if print_.words < minimum_words:
                    result.count("held_out_examples_too_short", 1)
                    continue
                result.count("held_out_examples", 1)
                if print_.digest not in texts:
                    texts[print_.digest] = print_
                    shingles += len(print_.shingles)
                members.setdefault(print_.digest, []).append(HeldOut(task, split, str(example_id)))
            if shingles >= _MOST_SHINGLES:
                yield list(texts.values()), list(members.values())
                texts, members, shingles = {}, {}, 0
    _report(progress, "Reading held-out examples", len(held_files), len(held_files))
    if texts:
        yield list(texts.values()), list(members.values())


def _search(
    result: Contamination,
    index: HeldOutIndex,
    members: Sequence[Sequence[HeldOut]],
    streams: Sequence[Stream],
    minimum_words: int,
    first_block: bool,
    progress: Any,
) -> None:
    totals = Counter[str]()
    for stream in streams:
        totals[_description(stream)] += pq.read_metadata(stream.file).num_rows
    done = Counter[str]()
    searched: dict[bytes, list[Overlap]] = {}
    for stream in streams:
        description = _description(stream)
        id_column = "example_id" if stream.task else "note_id"
        for first, batch in batches(stream.file, (id_column, "patient_id", "text")):
            _report(progress, description, done[description], totals[description])
            done[description] += len(batch)
            rows = list(range(len(batch)))
            if stream.patients is not None:
                owners = batch["patient_id"].to_pylist()
                rows = [row for row in rows if str(owners[row]) in stream.patients]
            prints = fingerprints(batch["text"].take(pa.array(rows, pa.int64())))
            long = [place for place, one in enumerate(prints) if one.words >= minimum_words]
            if first_block:
                name = "notes" if stream.task is None else f"{stream.split}_examples"
                result.count(name, len(long))
                result.count(f"{name}_too_short", len(prints) - len(long))
            ids = batch[id_column]
            # Tasks share most texts: what was searched for one is remembered for the others.
            known = searched if stream.task is not None else {}
            new = {prints[place].digest: prints[place] for place in long if prints[place].digest not in known}
            known.update((digest, []) for digest in new)
            digests = list(new)
            for overlap in index.search(list(new.values()), minhash=stream.task is not None):
                known[digests[overlap.text]].append(overlap)
            repeated = [(place, overlap) for place in long for overlap in known[prints[place].digest]]
            for place, overlap in repeated:
                row = rows[place]
                for held in members[overlap.held]:
                    between = stream.between(held.task, held.split)
                    if between is None:
                        continue
                    key = (between, overlap.kind, stream.name, f"{held.task}/{held.split}")
                    shares = {"jaccard": round(overlap.jaccard, 4), "containment": round(overlap.containment, 4)}
                    result.add(key, held.example_id, str(ids[row].as_py()), **shares)
                    result.rows.setdefault(stream.file, set()).add(first + row)
        _report(progress, description, done[description], totals[description])


def _description(stream: Stream) -> str:
    return f"Comparing {stream.name}" if stream.task is None else "Comparing training examples"


def _report(progress: Progress | None, description: str, done: int, total: int) -> None:
    if progress:
        progress(description, done, total)
