"""Synthesis: prompts, seeds, sources, gates, and the two pipelines against a scripted server in a thread."""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.notes.instructions import TASKS, read_instructions
from clinstack.recipe.synthesize import SynthesizeInstructionsRecipe, SynthesizeNotesRecipe
from clinstack.synthesize.gates import SeenTexts, missing_facts, speaks_of_a_model, without_thoughts
from clinstack.synthesize.instructions import plan_instructions, synthesize_instructions
from clinstack.synthesize.notes import plan_notes, synthesize_notes
from clinstack.synthesize.plan import store_of
from clinstack.synthesize.prompts import OURS, copy_prompts, read_seeds, read_template
from clinstack.synthesize.questions import clean_question
from clinstack.synthesize.seeds import Examples, request_seed, task_of
from clinstack.synthesize.source import read_case_reports
from scripted_server import MODEL, ScriptedServer, answer_to

CANARY = "Quillfeather"


def note_text(number: int) -> str:
    words = " ".join(f"finding{number}x{word}" for word in range(60))
    return f"{CANARY} number {number} was given amoxicillin {100 + number} mg. {words}"


def write_reports(path: Path, count: int = 20) -> Path:
    rows = [{"text": note_text(number), "pid": f"p{number // 2}"} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_notes(folder: Path, count: int = 24) -> Path:
    """A folder of Notes of two notes a patient."""
    (folder / "notes").mkdir(parents=True)
    ids = [str(number) for number in range(count)]
    table = pa.table(
        {
            "note_id": ids,
            "patient_id": [f"p{number // 2}" for number in range(count)],
            "note_type": ["Discharge summary" if number % 3 else "Nursing" for number in range(count)],
            "text": [note_text(number) for number in range(count)],
        }
    )
    pq.write_table(table, folder / "notes" / "notes.parquet")
    patients = [f"p{number}" for number in range(count // 2)]
    # Not as a hash of the ids would split them.
    split = ["test", "validation", *["train"] * (len(patients) - 2)]
    pq.write_table(pa.table({"patient_id": patients, "split": split}), folder / "splits.parquet")
    (folder / "prepare.json").write_text(json.dumps({"source": "table", "synthetic": False}))
    return folder


def endpoint_values(server: ScriptedServer | None, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"model": MODEL, "backoff": 0.02, "timeout": 20, "concurrency": 4}
    if server is not None:
        values["base_url"] = server.base_url
    return {**values, **changes}


def instructions_recipe(server: ScriptedServer, **changes: Any) -> SynthesizeInstructionsRecipe:
    endpoint = endpoint_values(server, **changes.pop("endpoint", {}))
    return SynthesizeInstructionsRecipe.model_validate({"endpoint": endpoint, "lag": 8, **changes})


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "instructions" / "instructions.parquet").to_pylist()
    return rows


def removed(out: Path, kind: str = "instructions") -> dict[str, int]:
    steps = json.loads((out / kind / "attrition.json").read_text())["steps"]
    return {step["step"]: step["removed"] for step in steps if step["removed"]}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


# Prompts and seeds


def test_there_are_forty_seed_questions() -> None:
    seeds, _ = read_seeds(None)
    assert list(seeds) == list(TASKS)
    assert {len(set(questions)) for questions in seeds.values()} == {5}
    assert len({question for questions in seeds.values() for question in questions}) == 40


def test_a_template_is_filled_once(tmp_path: Path) -> None:
    (tmp_path / "answer.txt").write_text("N {note} Q {question}")
    template = read_template(str(tmp_path), "answer.txt")
    assert template.fill(note="a {question} \\1 b", question="{note}?") == "N a {question} \\1 b Q {note}?"
    assert template.digest == "sha256:" + hashlib.sha256(b"N {note} Q {question}").hexdigest()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("answer.txt", "only {note}", r"answer\.txt: the place \{question\} is missing"),
        ("answer.txt", "{note} {question} {age}", r"\{age\} is no place of this prompt; there are \{note\}"),
        ("note.txt", None, "note.txt is missing; `clinstack synthesize prompts DIR`"),
        ("seeds.txt", "Why?\n", "line 1: a question before the first"),
        ("seeds.txt", "[Cooking]\n", "line 1: 'Cooking' is no task"),
        ("seeds.txt", "[Summarization]\nOne.\nTwo.\n", "has fewer than 3 questions"),
    ],
)
def test_wrong_prompts(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    read = read_seeds if name == "seeds.txt" else partial(read_template, name=name)
    with pytest.raises(InputError, match=words):
        read(str(tmp_path))


def test_prompts_can_be_copied_once(tmp_path: Path) -> None:
    copied = copy_prompts(tmp_path / "mine")
    assert sorted(path.name for path in copied) == ["answer.txt", "note.txt", "question.txt", "seeds.txt"]
    assert all(path.read_bytes() == (OURS / path.name).read_bytes() for path in copied)
    with pytest.raises(InputError, match="exists; name another folder"):
        copy_prompts(tmp_path / "mine")


def test_tasks_are_balanced_and_grow_at_the_end() -> None:
    drawn = [task_of(3, place) for place in range(83)]
    assert set(Counter(drawn[:80]).values()) == {10}
    assert all(len(set(drawn[start : start + 8])) == 8 for start in range(0, 80, 8))
    assert drawn != [task_of(4, place) for place in range(83)]
    assert len({tuple(drawn[start : start + 8]) for start in range(0, 80, 8)}) > 5


def test_examples_are_seeds_and_questions_from_before_the_lag() -> None:
    seeds = {task: tuple(f"{task} {number}" for number in range(5)) for task in TASKS}

    def run(known: Callable[[int], bool]) -> list[tuple[list[str], list[str]]]:
        examples, drawn = Examples(seeds, 1, 2, 4), []
        for place in range(40):
            examples.add(place, TASKS[0])
            drawn.append(examples.draw(place, TASKS[0]))
            if known(place):
                examples.answer(place, f"q{place}")
        return drawn

    drawn = run(lambda _: True)
    for place, (shown, earlier) in enumerate(drawn):
        assert len(set(shown)) == 3
        assert set(shown) <= set(seeds[TASKS[0]])
        assert len(set(earlier)) == min(2, max(0, place - 3))
        assert all(int(question[1:]) <= place - 4 for question in earlier)
    assert len({tuple(shown) for shown, _ in drawn}) > 10
    # One that fails leaves a gap where it was drawn, and changes nothing else.
    for (shown, earlier), (shown_less, earlier_less) in zip(drawn, run(lambda place: place != 7), strict=True):
        assert shown == shown_less
        assert earlier_less == [question for question in earlier if question != "q7"]


def test_request_seeds_are_31_bits_of_the_key() -> None:
    seeds = {request_seed(seed, f"k{number}") for seed in range(3) for number in range(300)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert request_seed(1, "a") == request_seed(1, "a")


# Sources


def test_sources_of_every_kind_are_the_same(tmp_path: Path) -> None:
    rows = [{"t": 'Line one\nline "two", more', "p": "01"}, {"t": " spaced ", "p": "2"}, {"t": "", "p": "3"}]
    jsonl = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(jsonl)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl.encode()))
    (tmp_path / "a.csv").write_text('\ufeffp,t\n01,"Line one\nline ""two"", more"\n2, spaced \n3,\n')
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [list(read_case_reports(path, "t", "p", None)) for path in sorted(tmp_path.iterdir())]
    assert len(found) == 4
    assert all(reports == found[0] for reports in found)
    assert [(report.row, report.patient_id, report.text) for report in found[0]] == [
        (1, "01", 'Line one\nline "two", more'),
        (2, "2", "spaced"),
        (3, "3", ""),
    ]
    alone = list(read_case_reports(tmp_path / "a.csv", "t", None, 2))
    assert [report.patient_id for report in alone] == ["case-1", "case-2"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"p,q\n1,2\n", "the column t is missing; it has p, q. Name it as text=COLUMN"),
        ("a.csv", b"t,q\nx,2\n", "the column p is missing.*patient_id=COLUMN"),
        ("a.csv", b"t,p\nx\n", "line 2: the row has too few fields"),
        ("a.csv", b't,p\n"x', "near line 1: not valid CSV"),
        ("a.csv", b"t,p\nx,\n", r"row 1: the column p \(patient_id\) is empty"),
        ("a.csv", b"t,p\n\xff\xfe,1\n", "a byte is not UTF-8"),
        ("a.jsonl", b'{"t": "x", "p": 1}\n{"t": \n', "line 2: not valid JSON"),
        ("a.jsonl", b"[1]\n", "line 1: not an object"),
        ("a.jsonl", b'{"t": 3, "p": 1}\n', "row 1: the column t holds no text"),
        ("a.jsonl.gz", b"no gzip", "is damaged, or no gzip file"),
        ("a.parquet", b"no parquet", "is not a readable Parquet file"),
        ("a.xlsx", b"", "case reports are read from"),
    ],
)
def test_wrong_sources(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        list(read_case_reports(tmp_path / name, "t", "p", None))


# Gates


def test_phrases_and_labels() -> None:
    assert speaks_of_a_model("As an AI Language assistant")
    assert speaks_of_a_model("so The Model says")
    assert not speaks_of_a_model("A model patient with clinical signs")
    assert clean_question('Question: "Why was she admitted?"') == "Why was she admitted?"
    assert clean_question('Who said "no" and "yes"?') == 'Who said "no" and "yes"?'


def test_thoughts_are_no_part_of_a_reply() -> None:
    assert without_thoughts("<think>\nHm, </th>.\n</think>\n\nAspirin. ") == "Aspirin."
    assert without_thoughts("<think>and so on") == ""
    assert without_thoughts("They say <think> a </think> b") == "They say <think> a </think> b"
    assert without_thoughts(None) == ""


def test_grounding_lets_a_refusal_name_what_was_asked() -> None:
    note = "Given aspirin 81 mg."
    assert missing_facts("Aspirin 81 mg.", note, "Which drug?") == {}
    assert missing_facts("Warfarin 5 mg.", note, "How much warfarin?") == {"number": 1, "drug": 1}
    assert missing_facts("The note does not mention warfarin.", note, "How much warfarin?") == {}


def test_near_duplicates_need_every_part() -> None:
    words = [f"w{number}" for number in range(200)]
    near = [*words[:100], "other", *words[101:]]
    seen = SeenTexts(0.9)
    assert seen.is_new(" ".join(words), "why now please", "so")
    assert not seen.is_new(" ".join(near).upper(), "Why now, please", "So.")
    assert seen.is_new(" ".join(near), "why then please", "so")
    assert seen.is_new(" ".join(words[:100] + ["x"] * 100), "why now please", "so")
    assert seen.is_new("two words", "a b c", "d")
    assert not seen.is_new("Two words", "a b c", "d")
    assert seen.is_new("other words", "a b c", "d")


# Notes


def test_notes_of_case_reports(tmp_path: Path, ledger: Path) -> None:
    source = write_reports(tmp_path / "cases.jsonl")
    lines = source.read_text().splitlines()
    # Rows 21 to 24: empty, a copy, one too short, one in which a model speaks.
    extra = ["", note_text(0).replace("number", "number "), "too short", note_text(99) + " As a language model, no."]
    source.write_text("\n".join([*lines, *(json.dumps({"text": text, "pid": "q"}) for text in extra)]) + "\n")
    with ScriptedServer(ledger, ("500", "broken"), share=0.3) as server:
        recipe = SynthesizeNotesRecipe.model_validate({"endpoint": endpoint_values(server), "patient_id": "pid"})
        plan = plan_notes(source, tmp_path / "out", recipe).to_dict()
        assert (plan["requests"], plan["completion_tokens"]) == (23, 23 * 2048)
        content = synthesize_notes(source, tmp_path / "out", recipe)
        assert {body["max_tokens"] for body in server.bodies} == {2048}
        assert len({body["seed"] for body in server.bodies}) == 23
    assert content["synthetic"] is True
    assert content["complete"] is True
    assert content["counts"]["notes"] == 20
    assert removed(tmp_path / "out", "notes") == {
        "with text": 1,
        "note of 50 to 4,000 words, not cut off": 1,
        "note in which no model speaks of itself": 1,
        "note like no earlier one (resemblance below 0.8)": 1,
    }
    notes = pq.read_table(tmp_path / "out" / "notes" / "notes.parquet").to_pylist()
    assert {note["patient_id"] for note in notes} == {f"p{number}" for number in range(10)}
    assert all(note["text"].startswith("DISCHARGE SUMMARY") and CANARY in note["text"] for note in notes)
    provenance = pq.read_table(tmp_path / "out" / "provenance.parquet").to_pylist()
    assert {row["note_id"] for row in provenance} == {note["note_id"] for note in notes}
    assert {row["model"] for row in provenance} == {MODEL}
    assert {row["prompt_hash"] for row in provenance} == {content["prompts"]["note.txt"]}
    # What a person reads of it beside the Notes has no text of theirs.
    told = [path for path in (tmp_path / "out").rglob("*") if path.suffix in {".json", ".md"}]
    assert len(told) >= 3
    assert not any(CANARY in path.read_text() for path in told)


def test_no_note_left_is_an_error_and_nothing_is_written(tmp_path: Path, ledger: Path) -> None:
    source = write_reports(tmp_path / "cases.jsonl", 3)
    with ScriptedServer(ledger, answer=lambda body: "short") as server:
        recipe = SynthesizeNotesRecipe.model_validate({"endpoint": endpoint_values(server)})
        with pytest.raises(InputError, match=r"No note is left .*not cut off: 0"):
            synthesize_notes(source, tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()
    assert store_of(tmp_path / "out").exists()


# Instructions


def test_instructions_of_notes(tmp_path: Path, ledger: Path) -> None:
    notes = write_notes(tmp_path / "notes")
    with ScriptedServer(ledger) as server:
        content = synthesize_instructions(notes, tmp_path / "out", instructions_recipe(server))
        prompts = [body["messages"][0]["content"] for body in server.bodies]
    rows = rows_of(tmp_path / "out")
    assert [row["example_id"] for row in rows] == [f"{number}-1" for number in range(24)]
    assert [row["note"] for row in rows] == [note_text(number) for number in range(24)]
    assert Counter(row["task"] for row in rows) == dict.fromkeys(TASKS, 3)
    assert {(row["model"], row["answerable"], row["source"]) for row in rows} == {(MODEL, True, "synthesize")}
    assert len({row["seed"] for row in rows}) == 24
    assert len({row["prompt_hash"] for row in rows}) == 1
    assert content["synthetic"] is False
    # Patients stay where the Notes have them.
    split = pq.read_table(tmp_path / "out" / "splits.parquet").to_pylist()
    assert {row["patient_id"]: row["split"] for row in split}["p0"] == "test"
    assert set(read_instructions(tmp_path / "out")["test"].patient_ids) == {"p0"}
    # Later question prompts show earlier questions of their task, early ones none.
    asked = [prompt for prompt in prompts if "Think of one instruction" in prompt]
    of_model = ["What does the record say of the finding" in prompt for prompt in asked]
    assert sum(of_model) >= 10
    assert not any(of_model[:8])
    # And no prompt for a question names the patient of another note.
    assert all(prompt.count(CANARY) == 1 for prompt in prompts)


def test_the_order_of_completion_changes_nothing(tmp_path: Path, ledger: Path) -> None:
    notes = write_notes(tmp_path / "notes", 16)

    def uneven(body: dict[str, Any]) -> str:
        time.sleep(body["seed"] % 7 / 100)
        return answer_to(body)

    found = []
    for number, (concurrency, troubles) in enumerate([(1, ()), (8, ("500", "reset")), (8, ("empty",))]):
        with ScriptedServer(ledger, troubles, 0.5, answer=uneven if number else None) as server:
            recipe = instructions_recipe(server, endpoint={"concurrency": concurrency}, lag=4)
            synthesize_instructions(notes, tmp_path / f"out{number}", recipe)
        found.append(rows_of(tmp_path / f"out{number}"))
    assert len(found[0]) == 16
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_gates_of_instructions_are_counted(tmp_path: Path, ledger: Path) -> None:
    notes = write_notes(tmp_path / "notes")
    said = {
        0: "Amoxicillin 100 mg.",
        1: "Amoxicillin 5000 mg and warfarin.",
        2: "As a language model I see it.",
        3: "Amoxicillin. Do you mean the dose?",
        4: "word " * 401,
        5: "",
        6: "The note does not mention the dose.",
    }
    questions = {7: "Why?", 8: "Ask the model why it is so"}

    def answer(body: dict[str, Any]) -> str:
        prompt = body["messages"][0]["content"]
        number = int(prompt.split(f"{CANARY} number ")[1].split()[0])
        if "[Instruction begin]" in prompt:
            return said.get(number, f"Amoxicillin {100 + number} mg")
        return questions.get(number, f"How much amoxicillin was given to {number}?")

    with ScriptedServer(ledger, answer=answer) as server:
        content = synthesize_instructions(notes, tmp_path / "out", instructions_recipe(server))
        asked = len(server.bodies)
    assert removed(tmp_path / "out") == {
        "question of 3 to 100 words, not cut off": 1,
        "question in which no model speaks of itself": 1,
        "answer of 1 to 400 words, not cut off": 2,
        "answer in which no model speaks of itself": 1,
        "answer that does not ask back": 1,
        "numbers, dates and drugs of the answer occur in the note": 1,
    }
    assert content["ungrounded"] == {"number": 1, "drug": 1}
    # Questions that were left out are not answered.
    assert asked == 24 + 22
    rows = {row["example_id"]: row for row in rows_of(tmp_path / "out")}
    assert len(rows) == 17
    assert rows["6-1"]["answerable"] is False
    assert rows["0-1"]["answerable"] is True


def test_a_failed_question_is_asked_again_and_nothing_else_is_paid_twice(tmp_path: Path, ledger: Path) -> None:
    notes = write_notes(tmp_path / "notes")
    with ScriptedServer(ledger, ("500",), 0.3, times=-1) as server:
        recipe = instructions_recipe(server, lag=2, endpoint={"retries": 0, "concurrency": 1})
        first = synthesize_instructions(notes, tmp_path / "out", recipe)
        assert first["complete"] is False
        failed = first["endpoint"]["requests"]["failed"]["status 500 (some_code)"]
        assert 3 <= failed <= 20
        before = Counter(ledger.read_text().split())
        server.troubles = ()
        plan = plan_instructions(notes, tmp_path / "out", recipe).to_dict()
        second = synthesize_instructions(notes, tmp_path / "out", recipe)
        after = Counter(ledger.read_text().split())
    assert second["complete"] is True
    assert len(rows_of(tmp_path / "out")) == 24
    assert after.total() - before.total() == plan["requests"]
    assert set(after.values()) == {1}


def test_the_budget_leaves_what_is_done(tmp_path: Path, ledger: Path) -> None:
    notes = write_notes(tmp_path / "notes")
    with ScriptedServer(ledger) as server:
        arguments = ["synthesize", "instructions", str(notes), "--out", str(tmp_path / "out"), "lag=4"]
        arguments += [f"endpoint.base_url={server.base_url}", f"endpoint.model={MODEL}"]
        result = CliRunner().invoke(app, [*arguments, "endpoint.token_budget=5000"])
        assert result.exit_code == 0
        assert "The token budget is spent" in result.output
        assert "Raise endpoint.token_budget, and the same command goes on." in result.output
        some = rows_of(tmp_path / "out")
        assert 0 < len(some) < 24
        result = CliRunner().invoke(app, [*arguments, "endpoint.token_budget=500000", "--json"])
        assert json.loads(result.output.splitlines()[-1])["instructions"] == 24
        assert set(Counter(ledger.read_text().split()).values()) == {1}
        assert rows_of(tmp_path / "out")[: len(some)] == some


def test_own_prompts_note_types_and_several_questions(tmp_path: Path, ledger: Path) -> None:
    notes = write_notes(tmp_path / "notes")
    copy_prompts(tmp_path / "mine")
    answer = tmp_path / "mine" / "answer.txt"
    answer.write_text("In my words.\n" + answer.read_text())
    with ScriptedServer(ledger) as server:
        ours = synthesize_instructions(notes, tmp_path / "ours", instructions_recipe(server, max_notes=4))
        recipe = instructions_recipe(
            server, prompts=str(tmp_path / "mine"), note_types=("Nursing",), questions_per_note=2
        )
        mine = synthesize_instructions(notes, tmp_path / "out", recipe)
        said = [body["messages"][0]["content"] for body in server.bodies[8:]]
    assert sum(prompt.startswith("In my words.") for prompt in said) == 16
    changed = {name for name in mine["prompts"] if mine["prompts"][name] != ours["prompts"][name]}
    assert changed == {"answer.txt"}
    assert {row["prompt_hash"] for row in rows_of(tmp_path / "out")}.isdisjoint(
        row["prompt_hash"] for row in rows_of(tmp_path / "ours")
    )
    assert Counter(row["note_id"] for row in rows_of(tmp_path / "out")) == {str(3 * number): 2 for number in range(8)}


# The command line


def test_a_dry_run_sends_nothing_and_shows_no_note(tmp_path: Path) -> None:
    notes = write_notes(tmp_path / "notes")
    source = write_reports(tmp_path / "cases.jsonl")
    for arguments in (["instructions", str(notes)], ["notes", str(source)]):
        command = ["synthesize", *arguments, "--out", str(tmp_path / "out"), "--dry-run", "endpoint.model=m"]
        hidden = CliRunner().invoke(app, [*command, "endpoint.price_prompt=1", "endpoint.price_completion=2"])
        assert hidden.exit_code == 0
        assert "requests" in hidden.output
        assert CANARY not in hidden.output
        assert "--show prints them" in hidden.output
        shown = CliRunner().invoke(app, [*command, "--show"])
        assert CANARY in shown.output
        figures = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
        assert figures["requests"] == (48 if arguments[0] == "instructions" else 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.jsonl", "notes"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "endpoint.model is missing"),
        (["endpoint.model=m", "endpoint.modle=x"], "unknown key endpoint.modle. Did you mean model?"),
        (["endpoint.model=m", "gates.grunding=false"], "Did you mean grounding?"),
        (["endpoint.model=m", "endpoint.base_url=https://8.8.8.8/v1"], "8.8.8.8 is not on this machine"),
        (["endpoint.model=m", "gates.min_question_words=200"], "is above max_question_words"),
        (["endpoint.model=m", "note_types=[Radiology]"], "no note is left to ask about"),
        (["endpoint.model=m", "--prompts", "nowhere"], "question.txt is missing"),
        (["no.yaml"], "no such recipe"),
    ],
)
def test_wrong_commands(tmp_path: Path, arguments: list[str], words: str) -> None:
    notes = write_notes(tmp_path / "notes", 6)
    result = CliRunner().invoke(
        app, ["synthesize", "instructions", str(notes), "--out", str(tmp_path / "o"), *arguments]
    )
    assert isinstance(result.exception, InputError)
    assert words in str(result.exception)
    assert not (tmp_path / "o").exists()


def test_the_notes_are_not_replaced(tmp_path: Path) -> None:
    notes = write_notes(tmp_path / "notes", 6)
    command = ["synthesize", "instructions", str(notes), "--out", str(notes), "endpoint.model=m"]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, InputError)
    assert "is the folder of the notes" in str(result.exception)


def test_a_remote_host_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    notes = write_notes(tmp_path / "notes", 6)
    command = ["synthesize", "instructions", str(notes), "--out", str(tmp_path / "out"), "endpoint.model=m"]
    result = CliRunner().invoke(app, [*command, "endpoint.base_url=https://8.8.8.8/v1", "--allow-remote", "--dry-run"])
    assert result.exit_code == 0
    assert "Warning: Text leaves this machine: prompts, with the notes in them, go to 8.8.8.8." in result.output
