"""Canaries: what is invented, where it is planted, and that every copy is a label of a row that training reads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from clinstack.engine.canary_planting import plant_in_answers, plant_in_notes
from clinstack.engine.instruction_tuning import lay_out_pairs
from clinstack.engine.language_modelling import lay_out_notes, open_notes, usable_layout
from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.model.stack import Stack
from clinstack.notes.read import input_hashes, notes_files, survey_notes
from clinstack.privacy.canaries import KINDS, PlantedCanaries, invent, read_canaries, space_size, write_canaries
from clinstack.privacy.planting import Reach, Span, boundaries, check_room, find_span, put_into
from clinstack.recipe import AdapterRecipe, CanariesRecipe, PretrainRecipe, dump_recipe, parse_recipe
from clinstack.stages.instruct import chosen_instructions
from clinstack.tokens.encode import TextEncoder
from clinstack.tokens.layout import NoteRows
from clinstack.tokens.notes import NoteTokens
from clinstack.tokens.pack import IGNORED
from clinstack.tokens.prompts import Prompt, encode_pairs
from tiny_canaries import CONTEXT, answers_recipe, notes_recipe, write_canary_notes
from tiny_instructions import write_tiny_instructions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_canary_notes(tmp_path_factory.mktemp("canaries") / "data")


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_instructions(tmp_path_factory.mktemp("instructions") / "data")


@pytest.fixture(scope="module")
def stack(tiny_base: Path) -> Stack:
    return Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", rank=2, alpha=4)])


def notes_of(stack: Stack, folder: Path) -> NoteTokens:
    return open_notes(stack, survey_notes(folder), "train", input_hashes(notes_files(folder)))


def labels_read(rows: NoteRows, recipe: Any, tokenizer: Any) -> list[str]:
    """The text of all labels of each row that a training reads, row by row; not by the code that plants."""
    training = recipe.training
    batches = [batch for epoch in range(training.epochs) for batch in rows.shuffled(4, training.seed, epoch)]
    read = sorted({row for batch in batches[: training.max_steps] for row in batch})
    texts = []
    for row in read:
        labels = rows.collate([row]).labels[0]
        texts.append(str(tokenizer.decode(labels[labels != IGNORED])))
    return texts


def copies_in(texts: list[str], planted: PlantedCanaries) -> Counter[str]:
    return Counter(
        {one.name: sum(text.count(f"{one.prefix} {one.secret}") for text in texts) for one in planted.planted}
    )


def wanted(planted: PlantedCanaries) -> Counter[str]:
    return Counter({canary.name: canary.repetitions for canary in planted.planted})


# ---------------------------------------------------------------------- recipe, and what is invented


def test_a_number_is_how_many_and_a_recipe_replays() -> None:
    values = {"stage": "pretrain", "run": "x", "notes": "y", "adapters": [{"name": "clinical"}], "canaries": 24}
    recipe = parse_recipe(values, "test")
    assert isinstance(recipe, PretrainRecipe)
    assert recipe.canaries == CanariesRecipe(count=24, repetitions=(1, 4, 16), seed=0)
    assert recipe.canaries.copies == 8 * (1 + 4 + 16)
    assert recipe.canaries.summary == {"count": 24, "repetitions": [1, 4, 16]}
    assert recipe.seeds_by_use["canaries"] == 0
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), "test") == recipe


@pytest.mark.parametrize(
    ("canaries", "message"),
    [
        (9, "9 canaries over 3 repetition counts are fewer than 4 of each.* plant at least 12"),
        (True, "should be a mapping"),
        ({"count": 12, "repetitions": [2, 2]}, "give different numbers"),
        ({"count": 12, "repetition": [2]}, "Did you mean repetitions"),
    ],
)
def test_what_says_nothing_is_refused(canaries: Any, message: str) -> None:
    values = {"stage": "pretrain", "run": "x", "notes": "y", "adapters": [{"name": "c"}], "canaries": canaries}
    with pytest.raises(InputError, match=message):
        parse_recipe(values, "test")


def test_controls_are_invented_alike_and_all_is_a_function_of_the_seed() -> None:
    planted, controls = invent(CanariesRecipe(count=24))
    assert (planted, controls) == invent(CanariesRecipe(count=24))
    assert planted != invent(CanariesRecipe(count=24, seed=1))[0]
    assert Counter((one.kind, one.repetitions) for one in planted) == Counter(
        {(kind, count): 2 for kind in KINDS for count in (1, 4, 16)}
    )
    assert [one.kind for one in controls] == [one.kind for one in planted]
    assert {one.repetitions for one in controls} == {0}
    prefixes = [one.prefix for one in (*planted, *controls)]
    assert len(set(prefixes)) == 48
    assert len({one.name for one in (*planted, *controls)}) == 48


@pytest.mark.parametrize("kind", KINDS)
def test_other_secrets_are_of_the_same_space(kind: str) -> None:
    canary = next(one for one in invent(CanariesRecipe(count=24))[0] if one.kind == kind)
    others = canary.others(300, seed=5)
    assert len(set(others)) == 300
    assert canary.secret not in others
    assert others == canary.others(300, seed=5) != canary.others(300, seed=6)
    shape = {len(other.split()) for other in others}
    assert shape == {len(canary.secret.split())}
    assert space_size(kind) == canary.space > 10**6


def test_validate_says_how_many_a_recipe_plants(
    data: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from clinstack.cli_validate import validate_recipe

    validate_recipe(notes_recipe(data, tiny_base, Path("x")), Console(width=200))
    shown = capsys.readouterr().out
    assert "canaries: 8 are planted in 36 training notes, 1 and 8 copies of each in turn; 8 controls are not" in shown
    validate_recipe(notes_recipe(data, tiny_base, Path("x"), canaries=None), Console(width=200))
    assert "canaries" not in capsys.readouterr().out


# ---------------------------------------------------------------------- places


def test_a_canary_is_a_line_or_a_sentence_of_its_own() -> None:
    canary = invent(CanariesRecipe(count=12))[0][0]
    text = "HISTORY\nHe came. She left.\n\nPLAN: rest"
    places = boundaries(text)
    assert [text[place:] for place in places] == [text, text[8:], "She left.\n\nPLAN: rest", "PLAN: rest", ""]
    for place in places:
        planted, first = put_into(text, canary, place)
        assert planted[first : first + len(canary.text)] == canary.text
        assert first == 0 or planted[first - 1] in " \n"
        assert planted.replace(canary.text, "").replace("\n", "").replace(" ", "") == text.replace("\n", "").replace(
            " ", ""
        )


@pytest.mark.parametrize("base", ["tiny", "embedded"])
def test_the_secret_is_found_among_the_tokens(stack: Stack, base: str) -> None:
    tokenizer = stack.tokenizer
    if base == "embedded":
        from clinstack.model.base import find_base, load_tokenizer

        tokenizer = load_tokenizer(find_base("embedded"))
    encoder = TextEncoder(tokenizer)

    def encode(texts: Any) -> Any:
        return encoder.ids(encoder.encode(texts))

    for canary in invent(CanariesRecipe(count=16))[0]:
        for place in (0, 8, 17):
            text, first = put_into("the pain\nwas gone.", canary, place)
            tokens = encode([text])[0]
            span = find_span(encode, text, first, canary, tokens)
            assert tokenizer.decode(tokens[span.secret : span.stop]).strip() == canary.secret
            assert tokenizer.decode(tokens[span.first : span.stop]).strip().endswith(f"{canary.prefix} {canary.secret}")


def test_what_a_training_reaches() -> None:
    whole = Reach(context=10, before=1, after=1, cuts=False)
    assert whole.trains(0, Span(0, 3, 9), 9)
    assert not whole.trains(0, Span(4, 8, 12), 40)  # over the edge of two rows
    # Row 1 reads tokens 10 to 19 and predicts 11 to 20: without the begin token 9 to 18, and up to 19.
    assert whole.trains(0, Span(9, 14, 20), 40)
    assert not whole.trains(0, Span(9, 14, 21), 40)
    cut = Reach(context=10, before=1, after=1, cuts=True)
    assert cut.trains(0, Span(0, 3, 8), 40)
    assert not cut.trains(0, Span(1, 3, 9), 40)  # the end token takes the place
    segments, read = np.array([0, 2, 3]), np.array([True, False, True])
    some = Reach(context=10, before=1, after=1, cuts=False, segments=segments, read=read)
    assert some.trains(0, Span(0, 3, 8), 15)
    assert not some.trains(0, Span(10, 12, 15), 15)
    assert some.trains(1, Span(0, 3, 8), 9)
    assert not some.trains(0, Span(5, 7, 9), 8)  # beyond the note's end


@pytest.mark.parametrize(
    ("patients", "notes", "message"),
    [
        (10, 500, "16 copies need 16; 10 have notes.* to at most 10"),
        (40, 60, "12 canaries have 84 copies.* there are 60 .* At most 8 canaries fit"),
    ],
)
def test_too_few_notes_or_patients_are_refused_with_what_fits(patients: int, notes: int, message: str) -> None:
    canaries = invent(CanariesRecipe(count=12))[0]
    with pytest.raises(InputError, match=message):
        check_room(canaries, np.arange(notes) % patients, np.ones(notes, dtype=bool), "notes")


# ---------------------------------------------------------------------- notes


@pytest.mark.parametrize("layout", ["packed", "bucketed", "padded"])
@pytest.mark.parametrize("steps", [None, 12])
def test_every_copy_is_a_label_of_a_row_that_is_read(
    stack: Stack, data: Path, tiny_base: Path, layout: str, steps: int | None
) -> None:
    """Also where training ends within its first epoch, where notes are cut off, and where they span rows."""
    repetitions = {"count": 8, "repetitions": [1, 8] if steps is None else [1, 3]}
    recipe = notes_recipe(data, tiny_base, Path("x"), {"max_steps": steps}, layout=layout, canaries=repetitions)
    notes = notes_of(stack, data)
    assert int(notes.documents.count.max()) > 2 * CONTEXT
    changed, planted = plant_in_notes(stack, recipe, notes)
    rows = lay_out_notes(stack, changed.documents, usable_layout(stack, recipe.layout), CONTEXT)
    assert copies_in(labels_read(rows, recipe, stack.tokenizer), planted) == wanted(planted)
    if steps is not None:
        before = lay_out_notes(stack, notes.documents, recipe.layout, CONTEXT)
        assert 4 * steps < len(before)
        assert planted.keeps_length
        assert (changed.documents.count == notes.documents.count).all()
    everything = " ".join(stack.tokenizer.decode(tokens) for tokens in changed.documents)
    assert not any(control.secret in everything for control in planted.controls)
    for places in planted.placings.values():
        assert all(0 < place.trained_tokens == place.secret_tokens for place in places)


def test_a_note_has_one_canary_and_a_patient_one_copy_of_each(stack: Stack, data: Path, tiny_base: Path) -> None:
    recipe = notes_recipe(data, tiny_base, Path("x"))
    notes = notes_of(stack, data)
    changed, planted = plant_in_notes(stack, recipe, notes)
    owner = dict(zip(notes.index["note_id"].to_pylist(), notes.index["patient_id"].to_pylist(), strict=True))
    where = [place.where for places in planted.placings.values() for place in places]
    assert len(set(where)) == len(where) == recipe.canaries.copies
    for places in planted.placings.values():
        assert len({owner[place.where] for place in places}) == len(places)
    touched = {name in where: None for name in owner}
    assert set(touched) == {True, False}
    for place, name in enumerate(owner):
        same = np.array_equal(changed.documents[place], notes.documents[place])
        assert same == (name not in where)
    reseeded = notes_recipe(data, tiny_base, Path("x"), canaries={"count": 8, "repetitions": [1, 8], "seed": 3})
    other = plant_in_notes(stack, reseeded, notes)[1]
    assert other != planted
    assert plant_in_notes(stack, recipe, notes)[1] == planted


def test_the_tokens_on_disk_stay_free_of_canaries_and_stay_mapped(stack: Stack, data: Path, tiny_base: Path) -> None:
    notes = notes_of(stack, data)
    files = {path: sha256_file(path) for path in sorted((data / "tokens").rglob("*")) if path.is_file()}
    changed, planted = plant_in_notes(stack, notes_recipe(data, tiny_base, Path("x")), notes)
    again = {path: sha256_file(path) for path in sorted((data / "tokens").rglob("*")) if path.is_file()}
    assert again == files
    whole = " ".join(stack.tokenizer.decode(tokens) for tokens in notes_of(stack, data).documents)
    assert not any(canary.secret in whole for canary in planted.planted)
    *mapped, laid_over = changed.documents.shards
    assert all(one is other for one, other in zip(mapped, notes.documents.shards, strict=True))
    places = {place.where for found in planted.placings.values() for place in found}
    touched = [name in places for name in notes.index["note_id"].to_pylist()]
    assert len(laid_over) == int(changed.documents.count[touched].sum())


def test_a_private_training_draws_its_rows_and_any_note_may_have_one(stack: Stack, data: Path, tiny_base: Path) -> None:
    private = {"noise_multiplier": 1.0, "patients_per_step": 8}
    recipe = notes_recipe(data, tiny_base, Path("x"), {"max_steps": 3}, privacy=private)
    _, planted = plant_in_notes(stack, recipe, notes_of(stack, data))
    assert not planted.keeps_length
    assert {name: len(places) for name, places in planted.placings.items()} == wanted(planted)


def test_a_row_that_is_shorter_than_a_canary_is_refused(stack: Stack, data: Path, tiny_base: Path) -> None:
    with pytest.raises(InputError, match=r"canaries: the longest has \d+ tokens and does not fit into a row; raise"):
        plant_in_notes(stack, notes_recipe(data, tiny_base, Path("x"), context=32), notes_of(stack, data))


def test_too_few_steps_are_refused(stack: Stack, data: Path, tiny_base: Path) -> None:
    recipe = notes_recipe(data, tiny_base, Path("x"), {"max_steps": 2})
    with pytest.raises(InputError, match="canaries: "):
        plant_in_notes(stack, recipe, notes_of(stack, data))


def test_a_note_that_changed_after_it_was_tokenised_is_refused(stack: Stack, tiny_base: Path, tmp_path: Path) -> None:
    data = write_canary_notes(tmp_path / "data")
    notes = notes_of(stack, data)
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in (data / "notes").glob("*.parquet"):
        table = pq.read_table(file)
        place = table.column_names.index("text")
        pq.write_table(table.set_column(place, "text", pa.array(["the pain"] * len(table))), file)
    with pytest.raises(InputError, match="is not the one that was tokenised"):
        plant_in_notes(stack, notes_recipe(data, tiny_base, Path("x")), notes)


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("layout", ["packed", "bucketed"])
def test_in_answers_every_copy_is_a_label_and_notes_have_none(
    stack: Stack, instructions: Path, tiny_base: Path, layout: str
) -> None:
    recipe = answers_recipe(instructions, tiny_base, Path("x"), layout=layout)
    prompt = Prompt.of(recipe.prompt, stack.tokenizer)
    before = chosen_instructions(recipe)["train"]
    after, planted = plant_in_answers(stack, prompt, recipe, before)
    assert (after.notes, after.questions, after.example_ids) == (before.notes, before.questions, before.example_ids)
    pairs = encode_pairs(stack.tokenizer, prompt, after, recipe.max_tokens, recipe.answer_tokens)
    rows = lay_out_pairs(stack, pairs, recipe.layout, recipe.max_tokens)
    texts = labels_read(rows, recipe, stack.tokenizer)
    assert copies_in(texts, planted) == wanted(planted)
    assert planted.places_in == "answers"
    patients = dict(zip(before.example_ids, before.patient_ids, strict=True))
    for places in planted.placings.values():
        assert len({patients[place.where] for place in places}) == len(places)
        assert all(0 < place.trained_tokens == place.secret_tokens for place in places)


def test_an_answer_without_room_gets_none(stack: Stack, instructions: Path, tiny_base: Path) -> None:
    """Half of the answers fill their row; the canaries go to the others."""
    recipe = answers_recipe(instructions, tiny_base, Path("x"))
    prompt = Prompt.of(recipe.prompt, stack.tokenizer)
    before = chosen_instructions(recipe)["train"]
    full = set(before.example_ids[::2])
    for place, name in enumerate(before.example_ids):
        if name in full:
            before.answers[place] = "zq " * 55
    _, planted = plant_in_answers(stack, prompt, recipe, before)
    where = {place.where for places in planted.placings.values() for place in places}
    assert len(where) == recipe.canaries.copies
    assert not where & full


def test_answers_that_training_would_not_come_to_are_refused(stack: Stack, instructions: Path, tiny_base: Path) -> None:
    recipe = answers_recipe(instructions, tiny_base, Path("x"), {"max_steps": 3})
    prompt = Prompt.of(recipe.prompt, stack.tokenizer)
    with pytest.raises(InputError, match=r"training.max_steps \(3\) ends before an epoch does"):
        plant_in_answers(stack, prompt, recipe, chosen_instructions(recipe)["train"])


# ---------------------------------------------------------------------- what is written


def test_what_was_planted_reads_back_and_is_never_replaced_by_something_else(
    stack: Stack, data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    recipe = notes_recipe(data, tiny_base, Path("x"))
    planted = plant_in_notes(stack, recipe, notes_of(stack, data))[1]
    assert read_canaries(tmp_path) is None
    write_canaries(tmp_path, planted)
    assert read_canaries(tmp_path) == planted
    write_canaries(tmp_path, planted)
    reseeded = notes_recipe(data, tiny_base, Path("x"), canaries={"count": 8, "repetitions": [1, 8], "seed": 1})
    with pytest.raises(InputError, match="would plant other canaries"):
        write_canaries(tmp_path, plant_in_notes(stack, reseeded, notes_of(stack, data))[1])
    (tmp_path / "canaries.json").write_text('{"format_version": 1}')
    with pytest.raises(InputError, match="is damaged"):
        read_canaries(tmp_path)
    (tmp_path / "canaries.json").write_text('{"format_version": 2}')
    with pytest.raises(InputError, match="format version 2"):
        read_canaries(tmp_path)
