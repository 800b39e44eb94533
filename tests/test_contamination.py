"""Contamination and leakage: what is planted is found, what only looks alike is not, and dropping is all or nothing."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.files import read_json, write_json
from clinstack.notes.contamination import drop as decontaminate
from clinstack.notes.contamination.check import check_prepared
from clinstack.notes.contamination.find import check_contamination
from clinstack.notes.contamination.leakage import PHRASES, check_leakage, largest_gap
from clinstack.notes.contamination.overlap import HeldOutIndex, bands, signatures
from clinstack.notes.contamination.shingles import SHINGLE_WORDS, common, fingerprints
from clinstack.notes.splits import SPLITS, assign_splits
from clinstack.tasks import Task
from tiny_notes import CANARY

WORDS = [f"{first}{second}" for first in ("card", "neur", "ren", "hep", "puln", "derm") for second in range(60)]
BOILERPLATE = (
    "CHIEF COMPLAINT: see below. ALLERGIES: No Known Allergies / Adverse Drug Reactions. ATTENDING: ___. "
    "PHYSICAL EXAM: alert and oriented, no acute distress, lungs clear to auscultation bilaterally. "
)
TASKS = {
    "mortality": Task("mortality", "binary", ("survived", "died")),
    "diagnoses": Task("diagnoses", "multilabel", ("038", "428")),
}


def invented(seed: int, words: int = 150) -> str:
    """Words in an order that no other seed gives."""
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) for _ in range(words))


def with_changes(text: str, share: float, seed: int = 0) -> str:
    chance = random.Random(seed)
    words = text.split()
    for place in chance.sample(range(len(words)), round(share * len(words))):
        words[place] = f"changed{place}"
    return " ".join(words)


def write_prepared(folder: Path, texts: dict[tuple[str, str], dict[str, str]], notes: dict[str, str]) -> Path:
    """Write a prepared folder from texts by (task, split) and by patient; patients are in the split of that place."""
    split_of: dict[str, str] = {}
    for task_name, task in TASKS.items():
        target = folder / "examples" / task_name
        target.mkdir(parents=True)
        task.save(target)
        kept = 0
        for split in SPLITS:
            rows = texts.get((task_name, split), {}) | {f"filler-{split}": invented(hash_of(split))}
            label: Callable[[int], Any] = (lambda row: row % 2) if task.kind == "binary" else (lambda row: ["428"])
            examples = [
                {"example_id": f"x-{name}", "patient_id": name, "encounter_id": f"e-{name}", "text": text}
                | {"label": label(row)}
                for row, (name, text) in enumerate(rows.items())
            ]
            pq.write_table(pa.Table.from_pylist(examples), target / f"{split}.parquet")
            split_of |= dict.fromkeys(rows, split)
            kept += len(rows)
        content = {"task": task_name, "steps": [{"step": "all", "kept": kept, "removed": 0}], "splits": {}}
        write_json(target / "attrition.json", content)
    (folder / "notes").mkdir()
    rows = [
        {"note_id": f"n-{name}", "patient_id": name, "encounter_id": None, "charttime": None}
        | {"note_type": "Nursing", "text": text, "source": "test"}
        for name, text in notes.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows or [{}]), folder / "notes" / "notes.parquet")
    if not notes:
        shutil.rmtree(folder / "notes")
    split_of = dict.fromkeys(notes, "train") | split_of
    pq.write_table(
        pa.table({"patient_id": list(split_of), "split": list(split_of.values())}), folder / "splits.parquet"
    )
    write_json(folder / "prepare.json", {"source": "test", "synthetic": True, "counts": {"notes": len(notes)}})
    return folder


def hash_of(split: str) -> int:
    return 1000 + SPLITS.index(split)


def kinds(data: Path, *against: Path, **options: Any) -> set[tuple[str, str, str, str, str]]:
    """What is found: (between, kind, other side, the other's id, the held-out id)."""
    result = check_contamination(data, against, **options)
    return {
        (
            pair["between"],
            pair["kind"],
            pair["other"],
            pair.get("other_id", ""),
            pair.get("held_out_id", pair.get("id")),
        )
        for pair in result.pairs
    }


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with one of each, and a corpus of pretraining from another hospital's numbering."""
    admission = invented(1)
    texts = {
        ("mortality", "train"): {
            "copy": f"{invented(2).upper()}  [**Known lastname 12**]\n",
            "near": with_changes(invented(3), 0.02),
            "alike": with_changes(invented(4), 0.05),
            "other": BOILERPLATE + invented(5),
            "task": invented(6),
            "short": "stable overnight",
        },
        ("mortality", "validation"): {"selected": invented(7)},
        ("mortality", "test"): {
            "held": admission,
            "copied": f"{invented(2)} ___ ",
            "neared": invented(3),
            "liked": invented(4),
            "othered": BOILERPLATE + invented(8),
            "shorted": "stable overnight",
            "late": invented(7),
        },
        ("diagnoses", "test"): {"tasked": invented(6)},
    }
    notes = {"own": f"{invented(9, 300)} {with_changes(invented(2), 0.03)} {CANARY}", "clean": invented(10, 300)}
    data = write_prepared(tmp_path / "data", texts, notes)
    corpus = write_prepared(
        tmp_path / "corpus",
        {},
        {
            "whole": f"{invented(11, 400)} {admission} {CANARY} {invented(12, 400)}",
            "unrelated": BOILERPLATE + invented(13, 400),
        },
    )
    # Other fillers, so that the two folders share what is planted only.
    write_json(corpus / "prepare.json", {"source": "elsewhere", "synthetic": True})
    return data, corpus


def test_finds_what_is_planted_and_nothing_else(planted: tuple[Path, Path]) -> None:
    data, corpus = planted
    assert kinds(data, corpus) == {
        ("splits", "exact", "mortality/train", "x-copy", "x-copied"),
        ("splits", "near", "mortality/train", "x-near", "x-neared"),
        ("splits", "contained", "mortality/train", "x-alike", "x-liked"),
        ("splits", "exact", "mortality/validation", "x-selected", "x-late"),
        ("tasks", "exact", "mortality/train", "x-task", "x-tasked"),
        ("pretraining", "contained", f"notes of {data}", "n-own", "x-copied"),
        ("pretraining", "contained", f"notes of {corpus}", "n-whole", "x-held"),
    }


def test_similarities_are_exact_and_nothing_is_text(planted: tuple[Path, Path]) -> None:
    data, corpus = planted
    check_prepared(data, [corpus])
    report = read_json(data / "contamination.json")
    near = next(pair for pair in report["pairs"] if pair["kind"] == "near")
    one, other = fingerprints(pa.array([with_changes(invented(3), 0.02), invented(3)]))
    union = len(set(one.shingles.tolist()) | set(other.shingles.tolist()))
    shared = len(set(one.shingles.tolist()) & set(other.shingles.tolist()))
    assert near["jaccard"] == pytest.approx(shared / union, abs=1e-4)
    assert near["containment"] == pytest.approx(shared / len(other.shingles), abs=1e-4)
    for file in ("contamination.json", "leakage.json", "prepare.json"):
        written = (data / file).read_text()
        assert CANARY not in written
        assert not any(word in written for word in WORDS), file


def test_two_runs_write_the_same_bytes(planted: tuple[Path, Path]) -> None:
    data, corpus = planted
    check_prepared(data, [corpus])
    first = (data / "contamination.json").read_bytes()
    assert len(read_json(data / "contamination.json")["pairs"]) == 7
    check_prepared(data, [corpus])
    assert (data / "contamination.json").read_bytes() == first


def test_several_small_indexes_find_the_same(planted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data, corpus = planted
    expected = kinds(data, corpus)
    compared = check_contamination(data, [corpus]).compared
    monkeypatch.setattr("clinstack.notes.contamination.find._MOST_SHINGLES", 1)
    monkeypatch.setattr("clinstack.notes.contamination.overlap._MOST_POSTINGS", 1)
    monkeypatch.setattr("clinstack.notes.row_batches._BATCH_BYTES", 1)
    assert kinds(data, corpus) == expected
    assert check_contamination(data, [corpus]).compared == compared


def test_short_texts_are_counted_and_not_compared(planted: tuple[Path, Path]) -> None:
    compared = check_contamination(planted[0]).compared
    assert compared["train_examples_too_short"] == 1
    assert compared["held_out_examples_too_short"] == 1
    assert compared["notes"] == 2


def test_drop_leaves_test_examples_and_a_second_run_finds_nothing(planted: tuple[Path, Path]) -> None:
    data, corpus = planted
    held = (data / "examples" / "mortality" / "test.parquet").read_bytes()
    before = pq.read_table(data / "examples" / "mortality" / "train.parquet")
    report, _ = check_prepared(data, [corpus], drop=True)
    assert report["total"] == 7
    train = pq.read_table(data / "examples" / "mortality" / "train.parquet")
    assert set(train["example_id"].to_pylist()) == {"x-other", "x-short", "x-filler-train"}
    assert train.schema == before.schema
    assert pq.read_table(data / "examples" / "mortality" / "validation.parquet")["example_id"].to_pylist() == [
        "x-filler-validation"
    ]
    assert (data / "examples" / "mortality" / "test.parquet").read_bytes() == held
    assert pq.read_table(data / "notes" / "notes.parquet")["note_id"].to_pylist() == ["n-clean"]
    assert pq.read_table(corpus / "notes" / "notes.parquet")["note_id"].to_pylist() == ["n-unrelated"]

    attrition = read_json(data / "examples" / "mortality" / "attrition.json")
    assert attrition["steps"][-1] | {"step": ""} == {"step": "", "kept": 12, "removed": 5}
    assert attrition["splits"]["train"] == {"rows": 3, "patients": 3, "labels": {"survived": 1, "died": 2}}
    assert len(read_json(data / "examples" / "diagnoses" / "attrition.json")["steps"]) == 1
    facts = read_json(data / "prepare.json")
    assert facts["checks"][0]["removed"] == {
        "examples/mortality/train.parquet": 4,
        "examples/mortality/validation.parquet": 1,
        "notes/notes.parquet": 1,
    }
    assert facts["counts"]["notes"] == 1

    again, _ = check_prepared(data, [corpus], drop=True)
    assert again["total"] == 0
    assert again["dropped"] == {}
    assert len(read_json(data / "prepare.json")["checks"]) == 1


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_was_dropped_is_not_left_as_tokens(planted: tuple[Path, Path]) -> None:
    data, corpus = planted
    store = data / "tokens" / "0123456789ab"
    store.mkdir(parents=True)
    (store / "00000.tokens").write_bytes(b"tokens")
    check_prepared(data, [corpus], drop=True)
    assert (data / "notes" / "notes.parquet").is_file()
    assert not (data / "tokens").exists()


def test_an_error_in_the_middle_of_dropping_leaves_the_old_folder(
    planted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = planted
    before = contents(data)
    monkeypatch.setattr(decontaminate, "_add_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check_prepared(data, drop=True)
    assert contents(data) == before
    assert [item.name for item in data.parent.iterdir() if item.name.startswith(".")] == []


@pytest.mark.parametrize("moment", ["_write_without", "_add_step", "_count_again"])
def test_killed_while_dropping_leaves_the_old_folder(planted: tuple[Path, Path], moment: str) -> None:
    data, _ = planted
    before = contents(data)
    program = (
        "import os, signal, sys; from pathlib import Path; from clinstack.notes.contamination import check, drop; "
        f"drop.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "
        "check.check_prepared(Path(sys.argv[1]), drop=True)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(data)], check=False, capture_output=True)
    assert killed.returncode == -9
    assert contents(data) == before
    check_prepared(data, drop=True)
    assert check_prepared(data)[0]["total"] == 0


def test_killed_between_the_two_folders_puts_the_old_one_back(planted: tuple[Path, Path]) -> None:
    data, _ = planted
    data.rename(data.with_name(".data.old"))
    assert check_prepared(data)[0]["total"] == 6


def test_dropping_everything_is_refused(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", {("mortality", "test"): {"held": invented(1)}}, {"own": invented(1)})
    before = contents(data)
    with pytest.raises(InputError, match=r"notes\.parquet without rows"):
        check_prepared(data, drop=True)
    assert contents(data) == before


def test_patients_and_encounters_in_two_places(tmp_path: Path) -> None:
    texts = {
        ("mortality", "train"): {"both": invented(1), "across": invented(2)},
        ("mortality", "test"): {"both": invented(3)},
        ("diagnoses", "test"): {"across": invented(4)},
    }
    data = write_prepared(tmp_path / "data", texts, {})
    corpus = write_prepared(tmp_path / "corpus", {}, {"both": invented(5)})
    found = {row for row in kinds(data, corpus) if row[1] in {"patient", "encounter"}}
    assert found == {
        ("splits", "patient", "mortality/train", "", "both"),
        ("splits", "encounter", "mortality/train", "", "e-both"),
        ("tasks", "patient", "mortality/train", "", "across"),
        ("tasks", "encounter", "mortality/train", "", "e-across"),
        ("pretraining", "patient", f"notes of {corpus}", "", "both"),
    }
    # Another source numbers its patients anew: an equal number says nothing.
    write_json(corpus / "prepare.json", {"source": "elsewhere", "synthetic": True})
    assert not any(row[0] == "pretraining" for row in kinds(data, corpus))
    check_prepared(data, [corpus], drop=True)
    assert check_prepared(data, [corpus])[0]["total"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "--threshold is 0; use a share"),
        ({"threshold": 1.2}, "--threshold is 1.2; use a share"),
        ({"minimum_words": 2}, "--minimum-words is 2; use 3 or more"),
        ({"against": ["data"]}, "is the folder that is checked"),
        ({"against": ["corpus", "corpus"]}, "twice"),
        ({"against": ["nowhere"]}, "nowhere has no prepare.json"),
        ({"against": ["data/examples"]}, "one within the other"),
    ],
)
def test_wrong_arguments(planted: tuple[Path, Path], options: dict[str, Any], message: str) -> None:
    data, _ = planted
    before = contents(data)
    against = [data.parent / name for name in options.pop("against", [])]
    with pytest.raises(InputError, match=message):
        check_prepared(data, against, **options)
    assert contents(data) == before


def test_wrong_folders(planted: tuple[Path, Path]) -> None:
    data, corpus = planted
    with pytest.raises(InputError, match=r"has no prepare\.json; name a folder written by"):
        check_prepared(data.parent)
    shutil.rmtree(corpus / "notes")
    with pytest.raises(InputError, match="nothing can be pretrained"):
        check_prepared(data, [corpus])
    pq.write_table(pa.table({"example_id": ["x"]}), data / "examples" / "mortality" / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet: the column patient_id is missing; it has example_id"):
        check_prepared(data)
    (data / "examples" / "mortality" / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        check_prepared(data)
    (data / "prepare.json").write_text("{")
    with pytest.raises(InputError, match=r"prepare\.json is damaged"):
        check_prepared(data)


def test_the_verb_reports_and_exits(planted: tuple[Path, Path]) -> None:
    data, corpus = planted
    command = ["prepare", "check", str(data), "--against", str(corpus), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    line = json.loads(result.stdout.strip().splitlines()[-1])
    assert line["total"] == 7
    assert {row["split"] for row in line["leakage"]} == set(SPLITS)
    assert "validation → test" in result.stdout
    assert not any(word in result.output for word in [CANARY, *WORDS])
    assert CliRunner().invoke(app, [*command, "--strict"]).exit_code == 1
    dropped = CliRunner().invoke(app, [*command, "--drop"])
    assert "Left out 7 rows" in dropped.stdout
    clean = CliRunner().invoke(app, [*command, "--strict"])
    assert clean.exit_code == 0
    assert "No text is shared" in clean.stdout


PLAIN = st.text(alphabet="abcé ,.\n", max_size=80)


@given(st.lists(PLAIN, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_fingerprints_are_sets_of_word_runs(texts: list[str]) -> None:
    def runs(text: str) -> tuple[list[str], set[tuple[str, ...]]]:
        words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
        starts = range(len(words) - SHINGLE_WORDS + 1)
        return words, {tuple(words[start : start + SHINGLE_WORDS]) for start in starts}

    together = fingerprints(pa.array(texts))
    for text, found in zip(texts, together, strict=True):
        words, expected = runs(text)
        assert found.words == len(words)
        assert len(found.shingles) == len(expected)
        assert (found.digest == together[0].digest) == (words == runs(texts[0])[0])
        assert common(found.shingles, together[0].shingles) == len(expected & runs(texts[0])[1])


SENTENCES = st.lists(st.sampled_from([invented(seed, 6) for seed in range(12)]), min_size=1, max_size=12).map(" ".join)


@given(st.lists(SENTENCES, min_size=1, max_size=6), st.lists(SENTENCES, min_size=1, max_size=6), st.floats(0.3, 1.0))
@settings(max_examples=60, deadline=None)
def test_search_finds_exactly_what_comparing_all_pairs_finds(
    held: list[str], stream: list[str], threshold: float
) -> None:
    distinct = list({one.digest: one for one in fingerprints(pa.array(held))}.values())
    batch = fingerprints(pa.array(stream))
    expected = {}
    for place, text in enumerate(batch):
        for other, target in enumerate(distinct):
            one, two = set(text.shingles.tolist()), set(target.shingles.tolist())
            jaccard, containment = len(one & two) / len(one | two), len(one & two) / len(two)
            if containment >= threshold:
                expected[place, other] = (jaccard, containment)
    found = HeldOutIndex(distinct, threshold).search(batch, minhash=True)
    assert {(one.text, one.held): (one.jaccard, one.containment) for one in found} == expected
    assert all(one.kind == "contained" or max(one.jaccard, one.containment) >= threshold for one in found)


def test_minhash_alone_proposes_near_duplicates() -> None:
    held = fingerprints(pa.array([invented(seed) for seed in range(200)]))
    batch = fingerprints(pa.array([with_changes(invented(seed), 0.03, seed) for seed in range(200)]))
    index = HeldOutIndex(held, 0.8)
    near = {(one.text, one.held) for one in index.search(batch, minhash=False) if one.jaccard >= 0.8}
    assert len(near) > 100
    assert len(near - set(index._by_minhash(batch))) <= 0.02 * len(near)
    assert 1 - (1 - 0.8 ** bands(0.8)[1]) ** bands(0.8)[0] >= 0.99


def test_signatures_are_the_same_in_every_process() -> None:
    (signature,) = signatures(fingerprints(pa.array([invented(1)])))
    program = (
        "import sys, pyarrow as pa; from clinstack.notes.contamination.overlap import signatures; "
        "from clinstack.notes.contamination.shingles import fingerprints; "
        "print(next(signatures(fingerprints(pa.array([sys.argv[1]])))).hashvalues.tolist())"
    )
    other = subprocess.run([sys.executable, "-c", program, invented(1)], check=True, capture_output=True, text=True)
    assert json.loads(other.stdout) == np.asarray(signature.hashvalues).tolist()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("seen by [**Known lastname 123**] on [**2101-5-12**] at home today", "seen by ___ on ___ at home today"),
        ("seen by Known lastname 123 on 2101-5-12 at home today", "seen by ___ on ___ at home today"),
        ("Seen  by\n\tDr. Last Name (STitle) 33, fell at home", "seen by dr ___ fell at HOME"),
        ("ÉPREUVE d'effort à domicile", "épreuve d'effort À domicile"),
    ],
)
def test_case_blanks_and_placeholders_do_not_count(first: str, second: str) -> None:
    one, other = fingerprints(pa.array([first, second]))
    assert one.digest == other.digest


def write_task(data: Path, name: str, kind: Any, classes: tuple[str, ...], rows: list[tuple[str, Any]]) -> None:
    target = data / "examples" / name
    target.mkdir(parents=True, exist_ok=True)
    Task(name, kind, classes).save(target)
    for split in SPLITS:
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        pq.write_table(pa.table(columns), target / f"{split}.parquet")


def test_leakage_by_task_and_label(tmp_path: Path) -> None:
    write_json(tmp_path / "prepare.json", {})
    deaths = [
        ("He was made CMO and EXPIRED.", 1),
        ("cmor clinic, unexpired visa", 0),
        ("pt passed\n away", 1),
        ("ok", 1),
    ]
    write_task(tmp_path, "mortality", "binary", ("survived", "died"), deaths)
    stays = [("hospital day 5", 2), ("discharged home", 0), ("LOS 3", 0), ("a los angeles clinic", 1), ("well", 3)]
    write_task(tmp_path, "length_of_stay", "multiclass", ("a", "b", "c", "d"), stays)
    codes = [("Discharge Diagnosis: sepsis", ["038"]), ("found on the floor", [])]
    write_task(tmp_path, "diagnoses", "multilabel", ("038",), codes)
    write_task(tmp_path, "frailty", "binary", ("no", "yes"), [("died", 1)])
    rows = {(row["task"], row["split"]): row for row in check_leakage(tmp_path)}
    assert set(rows) == {(task, split) for task in ("diagnoses", "length_of_stay", "mortality") for split in SPLITS}
    mortality = rows["mortality", "train"]
    assert (mortality["examples"], mortality["with_phrase"]) == (4, 2)
    assert {name: count for name, count in mortality["phrases"].items() if count} == {
        "expired": 1,
        "passed away": 1,
        "comfort measures only": 1,
    }
    assert mortality["prevalence"] == {"died": {"with": 1.0, "without": 0.5}}
    assert largest_gap(mortality) == ("died", 1.0, 0.5)
    stay = rows["length_of_stay", "test"]
    assert stay["with_phrase"] == 3
    assert largest_gap(stay) == ("a", 0.6667, 0.0)
    assert rows["diagnoses", "validation"]["with_phrase"] == 1
    assert rows["diagnoses", "validation"]["prevalence"] is None


@pytest.mark.parametrize(
    ("task", "text", "phrase"),
    [
        ("mortality", "Terminally extubated, time of death 14:02", "time of death"),
        ("mortality", "pronounced deceased by the intern", "pronounced dead"),
        ("length_of_stay", "on HD #12", "day N of admission"),
        ("length_of_stay", "a prolonged ICU stay", "prolonged stay"),
        ("prolonged_ventilation", "s/p trach and PEG", "tracheostomy"),
        ("prolonged_ventilation", "intubated for 9 days", "intubated for N days"),
        ("prolonged_ventilation", "Failed extubation twice", "failed extubation"),
        ("procedures", "POD#3 after CABG", "postoperative day"),
        ("procedures", "s/p appendectomy", "s/p"),
        ("diagnoses", "PRINCIPAL DIAGNOSIS:", "primary diagnosis"),
    ],
)
def test_phrases(tmp_path: Path, task: str, text: str, phrase: str) -> None:
    write_json(tmp_path / "prepare.json", {})
    write_task(tmp_path, task, "binary", ("no", "yes"), [(text, 1), ("no complaint", 0)])
    assert check_leakage(tmp_path)[0]["phrases"][phrase] == 1
    assert set(PHRASES[task]) == set(check_leakage(tmp_path)[0]["phrases"])


def test_an_empty_label_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "prepare.json", {})
    write_task(tmp_path, "mortality", "binary", ("no", "yes"), [("text", 1), ("text", None)])
    with pytest.raises(InputError, match="row 2: the label is no class index"):
        check_leakage(tmp_path)


@pytest.mark.parametrize("with_splits", [True, False])
def test_a_held_out_patients_own_note_is_no_pretraining(tmp_path: Path, with_splits: bool) -> None:
    names = [f"p{number}" for number in range(20)]
    held_out = [name for name, split in assign_splits(names, seed=0).items() if split == "test"]
    notes = {name: f"{invented(number)} {invented(99, 80)}" for number, name in enumerate(names)}
    admissions = {name: invented(names.index(name)) for name in held_out}
    data = write_prepared(tmp_path / "data", {("mortality", "test"): admissions}, notes)
    if not with_splits:
        (data / "splits.parquet").unlink()
    result = check_contamination(data)
    assert result.total == 0
    assert result.compared["notes"] == (len(names) - len(held_out) if with_splits else 14)
