"""The extraction attack: exact without decoding, blind to templates, and found where notes are known by heart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clinstack.audit import windows
from clinstack.audit.extraction import GENERATIONS_TABLE, TABLE, audit_extraction
from clinstack.audit.generations import OwnerSearch, canaries_in, excess_over_chance, identifiers_in
from clinstack.audit.target import AuditTarget, find_target
from clinstack.engine.continuations import Window, follow
from clinstack.model.stack import Stack
from clinstack.privacy.canaries import Canary, PlantedCanaries
from clinstack.privacy.shares import difference, paired_difference, share, zero_bound
from clinstack.recipe import AdapterRecipe
from clinstack.recipe.audit import AuditRecipe
from clinstack.run import Run
from clinstack.tokens import ngrams
from clinstack.tokens.documents import Documents
from clinstack.tokens.ngrams import NgramSearch
from clinstack.tokens.notes import NoteTokens
from tiny_audit import MARKER, Kind, audit_recipe_values, overfitted_run, untrained_run, write_audit_notes

# ---------------------------------------------------------------------- continuations in one pass


@pytest.fixture(scope="module")
def stack(tiny_base: Path, perturbed: Callable[..., Stack]) -> Stack:
    return perturbed(Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", rank=4, alpha=8)]))


def greedy(stack: Stack, prefix: list[int], tokens: int) -> list[int]:
    """Decode token by token, the whole text read anew each time."""
    ids = torch.tensor([prefix])
    with torch.inference_mode():
        for _ in range(tokens):
            hidden = stack.hidden_states(ids, torch.ones_like(ids))[:, -1]
            output: Any = stack.network.get_output_embeddings()
            ids = torch.cat([ids, output(hidden).argmax(1, keepdim=True)], 1)
    return cast(list[int], ids[0, len(prefix) :].tolist())


def test_one_pass_gives_what_greedy_decoding_gives(stack: Stack) -> None:
    random = np.random.default_rng(0)
    asked, right = [], []
    for number in range(12):
        prefix = [1, *random.integers(3, 300, size=4 + number).tolist()]
        decoded = greedy(stack, prefix, 12 + number % 5)
        wrong = number  # the first place that differs; behind the end where all is right
        text = [token if place != wrong else (token + 1) % 300 for place, token in enumerate(decoded)]
        asked.append(Window(np.array(prefix + text), len(prefix)))
        right.append(min(wrong, len(decoded)))
    for batch_size in (1, 3, 50):
        assert follow(stack, asked, batch_size).runs.tolist() == right


def test_probabilities_are_those_of_the_whole_pass(stack: Stack) -> None:
    tokens = np.random.default_rng(1).integers(3, 300, size=30)
    found = follow(stack, [Window(tokens[:20], 7), Window(tokens, 9)], 2)
    with torch.inference_mode():
        ids = torch.tensor(tokens)[None]
        output: Any = stack.network.get_output_embeddings()
        logs = output(stack.hidden_states(ids, torch.ones_like(ids)))[0].log_softmax(-1).numpy()
    wanted = logs[np.arange(29), tokens[1:]]
    np.testing.assert_allclose(found.logs[1, :21], wanted[8:], atol=1e-4)
    np.testing.assert_allclose(found.logs[0, :13], wanted[6:19], atol=1e-4)
    assert not found.logs[0, 13:].any()


def test_a_window_needs_both_parts(stack: Stack) -> None:
    with pytest.raises(ValueError, match="prefix and a continuation"):
        follow(stack, [Window(np.arange(3, 9), 6)], 1)
    assert len(follow(stack, [], 1).runs) == 0


# ---------------------------------------------------------------------- who else has a run of tokens


def note_tokens(texts: list[list[int]], patients: list[str]) -> NoteTokens:
    names = [f"n{place}" for place in range(len(texts))]
    index = pa.table({"note_id": names, "patient_id": patients, "note_type": ["x"] * len(texts)})
    return NoteTokens(index, Documents.of([np.array(text, dtype=np.int64) for text in texts], [1], [2]))


@pytest.mark.parametrize("piece", [1, 40, 1 << 19])
def test_runs_are_found_in_other_patients_notes_only(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "_PIECE", piece)
    random = np.random.default_rng(2)
    texts = [random.integers(0, 3, size=int(random.integers(0, 30))).tolist() for _ in range(60)]
    patients = [f"p{place % 9}" for place in range(60)]
    wanted = [random.integers(0, 3, size=6) for _ in range(80)]
    whose = [f"p{place % 9}" for place in range(80)]
    search = NgramSearch(wanted, whose)
    search.read(note_tokens(texts, patients))
    expected = [
        any(
            patient != own and text[at : at + 6] == ngram.tolist()
            for text, patient in zip(texts, patients, strict=True)
            for at in range(len(text))
        )
        for ngram, own in zip(wanted, whose, strict=True)
    ]
    assert search.elsewhere.tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_a_run_across_two_notes_is_in_neither() -> None:
    search = NgramSearch([np.array([5, 6, 7, 8])], ["p0"])
    search.read(note_tokens([[4, 5, 6], [7, 8, 9]], ["p1", "p1"]))
    assert not search.elsewhere.any()
    search.read(note_tokens([[4, 5, 6, 7, 8]], ["p1"]))
    assert search.elsewhere.all()
    assert not NgramSearch([], []).elsewhere.any()
    with pytest.raises(ValueError, match="one length"):
        NgramSearch([np.array([1]), np.array([1, 2])], ["p0", "p0"])


# ---------------------------------------------------------------------- shares


def test_nothing_found_is_no_certainty() -> None:
    # The rule of three: 95 % one-sided; here 97.5 % on one side of an interval.
    assert zero_bound(100) == pytest.approx(1 - 0.025**0.01)
    patients = [f"p{place % 50}" for place in range(200)]
    nothing = np.zeros(200, dtype=bool)
    assert share(nothing, patients, 200, 0) == {"value": 0.0, "interval": [0.0, zero_bound(50)]}
    assert share(~nothing, patients, 200, 0) == {"value": 1.0, "interval": [1 - zero_bound(50), 1.0]}
    others = [f"q{place}" for place in range(20)]
    both = difference(nothing, patients, nothing[:20], others, 200, 0)
    assert both == {"value": 0.0, "interval": [-zero_bound(20), zero_bound(50)]}
    assert paired_difference(nothing, nothing, patients, 200, 0)["interval"] == [-zero_bound(50), zero_bound(50)]
    assert share([], [], 200, 0) == {"value": None, "interval": None}


def test_intervals_of_differences_hold_the_truth() -> None:
    random = np.random.default_rng(3)
    held = 0
    for sample in range(150):
        sides = []
        for rate in (0.3, 0.1):
            of_patient = random.beta(3 * rate, 3 * (1 - rate), size=60)
            sides.append((random.random((60, 3)) < of_patient[:, None]).flatten())
        names = [[f"{side}{place // 3}" for place in range(180)] for side in "pq"]
        low, high = cast(list[float], difference(sides[0], names[0], sides[1], names[1], 300, sample)["interval"])
        held += low <= 0.2 <= high
    assert held >= 0.9 * 150


# ---------------------------------------------------------------------- free generations


def test_chance_does_not_know_who_was_trained_on() -> None:
    assert excess_over_chance(0, 0, 0.75) == {"value": 0.0, "interval": None}
    by_chance = excess_over_chance(30, 10, 0.75)
    assert by_chance["value"] == pytest.approx(0)
    assert by_chance["interval"][0] < 0 < by_chance["interval"][1]
    found = excess_over_chance(30, 0, 0.75)
    assert found["value"] == 30
    # 0.025^(1/30) of the hits at least are of training patients.
    assert found["interval"] == [pytest.approx(30 * (0.025 ** (1 / 30) - 0.75) / 0.25), 30]
    assert found["interval"][0] > 0 > excess_over_chance(3, 0, 0.75)["interval"][0]


def test_strings_belong_to_one_patient_or_to_several() -> None:
    search = OwnerSearch(["MRN 1234", "2130-01-02", "555-0101", "never"])
    search.read("train", "p0", "MRN 1234 seen 2130-01-02")
    search.read("train", "p0", "again MRN 1234")
    search.read("train", "p1", "on 2130-01-02, MRN 12345")
    search.read("test", "p2", "call 555-0101.")
    assert search.sides() == {"MRN 1234": "train", "555-0101": "test"}
    assert search.shared == {"2130-01-02"}
    assert search.characters == {"train": 24 + 14 + 24, "test": 14}


def test_identifiers_are_counted_and_placeholders_are_not() -> None:
    written = identifiers_in(["call (617) 555-0142 or a@b.org", "[**Known lastname 12**] ___", "call (617) 555-0142"])
    assert written.by_kind() == {"email": 1, "phone": 1}
    assert written.in_texts == [2, 0, 1]


def test_secrets_that_come_out_are_counted_by_repetition() -> None:
    planted = tuple(
        Canary(f"canary-{n}", "record_number", "Oakham clinic record number", f"12345{n}", n) for n in (1, 4)
    )
    control = Canary("control-0", "record_number", "Elmton ward record number", "7654321", 0)
    record = PlantedCanaries(0, (1, 4), "notes", True, planted, (control,), {})
    assert canaries_in(record, ["number 123454.", "123454"]) == {
        "0": {"canaries": 1, "came_out": 0},
        "1": {"canaries": 1, "came_out": 0},
        "4": {"canaries": 1, "came_out": 1},
    }


# ---------------------------------------------------------------------- whom is asked


def test_every_patient_is_asked_once_before_any_twice() -> None:
    patients = pa.array([f"p{place // 5}" for place in range(40)])
    order = windows.patients_first(patients, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(40))
    for turn in range(5):
        assert len({place // 5 for place in order[8 * turn : 8 * turn + 8].tolist()}) == 8


# ---------------------------------------------------------------------- the attack


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Notes and answers so short that a tiny model knows them by heart after seconds."""
    folder = write_audit_notes(tmp_path_factory.mktemp("extraction") / "data")
    for file, name, key, characters in (
        ("notes/notes.parquet", "note_id", "text", 48),
        ("instructions/instructions.parquet", "example_id", "answer", 24),
    ):
        rows = [row | {key: row[key][:characters]} for row in pq.read_table(folder / file).to_pylist()]
        first = [row for row in rows if row[name].endswith("-0")]
        pq.write_table(pa.Table.from_pylist(first), folder / file)
    return folder


def attack(run: Path, folder: Path, **changes: Any) -> tuple[dict[str, Any], AuditTarget]:
    recipe = AuditRecipe(**audit_recipe_values(run, **changes) | {"run": str(folder)})
    folder.mkdir(exist_ok=True)
    target = AuditTarget.open(find_target(recipe), recipe)
    return audit_extraction(target, recipe, cast(Run, SimpleNamespace(folder=folder))), target


@pytest.fixture(scope="module")
def overfitted(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return overfitted_run("notes", tmp_path_factory.mktemp("overfitted") / "run", tiny_base, data, epochs=60)


@pytest.mark.parametrize("kind", ["notes", "answers"])
def test_an_untrained_adapter_extracts_nothing(kind: Kind, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    run = untrained_run(kind, tmp_path / "run", tiny_base, data)
    section, _ = attack(run, tmp_path / "audit")
    assert section["tested"]
    assert {item["verdict"] for item in section["findings"]} <= {"clean", "inconclusive"}
    figures = section["by_length"]["10"]
    assert figures["verbatim"]["members"]["adapter"] == figures["verbatim"]["members"]["base"]
    assert figures["in_no_other_patient"]["excess"]["value"] == 0


def test_notes_known_by_heart_are_extracted(overfitted: Path, data: Path, tmp_path: Path) -> None:
    section, target = attack(overfitted, tmp_path / "audit")
    [own, *_] = section["findings"]
    assert (own["name"], own["verdict"]) == ("extraction.own_text", "leaking")
    figures = section["by_length"]["10"]
    assert figures["in_no_other_patient"]["members"]["value"] > 0.3
    assert figures["verbatim"]["non_members"]["adapter"]["value"] < 0.2
    assert section["longest_run"]["members"]["adapter"] > section["longest_run"]["members"]["base"]

    table = pq.read_table(tmp_path / "audit" / TABLE)
    assert table.num_rows == sum(side["prompts"] for side in section["prompts"].values())
    train = set(target.all_notes("train").index["patient_id"].to_pylist())
    assert all((row["patient_id"] in train) == row["member"] for row in table.to_pylist())
    hits = np.array(table["adapter_run"]) >= 10
    assert (np.array(table["in_another_patient"].is_valid()) == hits).all()
    members = np.array(table["member"])
    assert figures["verbatim"]["members"]["adapter"]["value"] == pytest.approx(hits[members].mean())


def test_the_attack_is_the_same_again_and_holds_no_text(overfitted: Path, tmp_path: Path) -> None:
    sections = []
    for name in ("one", "two"):
        section, _ = attack(overfitted, tmp_path / name)
        sections.append(section)
        for file in (TABLE, GENERATIONS_TABLE):
            written = json.dumps(pq.read_table(tmp_path / name / file).to_pylist())
            assert not any(word in written for word in MARKER.split())
        assert not any(word in json.dumps(section) for word in MARKER.split())
    assert sections[0] == sections[1]
    assert pq.read_table(tmp_path / "one" / TABLE).equals(pq.read_table(tmp_path / "two" / TABLE))


def test_a_reference_is_asked_the_same(overfitted: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    other = untrained_run("notes", tmp_path / "other", tiny_base, data)
    section, _ = attack(overfitted, tmp_path / "audit", reference=str(other))
    by_name = {item["name"]: item for item in section["findings"]}
    assert by_name["extraction.over_reference"]["verdict"] == "leaking"
    against_itself, _ = attack(overfitted, tmp_path / "again", reference=str(overfitted))
    assert against_itself["by_length"]["10"]["excess_over_reference"]["value"] == 0


@pytest.mark.slow
def test_answers_known_by_heart_are_extracted(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    run = overfitted_run("answers", tmp_path / "run", tiny_base, data, epochs=100)
    section, _ = attack(run, tmp_path / "audit")
    assert section["findings"][0]["verdict"] == "leaking"


def test_too_long_a_prefix_is_said(overfitted: Path, tmp_path: Path) -> None:
    asked = {"prefix_tokens": 5000, "continuation_tokens": 10, "generations": 0}
    section, _ = attack(overfitted, tmp_path / "audit", extraction=asked)
    assert not section["tested"]
    assert "5010" in section["why"]
    assert section["findings"] == []


def test_a_classifier_writes_no_text(tmp_path: Path) -> None:
    target = cast(AuditTarget, SimpleNamespace(kind="scores"))
    section = audit_extraction(target, cast(AuditRecipe, None), cast(Run, None))
    assert section == {"tested": False, "why": "a classifier writes no text", "findings": []}
