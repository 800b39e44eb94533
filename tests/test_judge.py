"""`clinstack judge` against a scripted endpoint: blind orders, reading of replies, figures, what is kept and said."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from clinstack.errors import ClinstackError, InputError
from clinstack.files import read_json, sha256_file, write_json, write_text
from clinstack.judge.measure import judge_metrics
from clinstack.judge.orders import Presentation
from clinstack.judge.readings import Reading, scores_table
from clinstack.judge.rubric import SHIPPED
from clinstack.recipe import JudgeRecipe, parse_recipe
from clinstack.report.build import build_report
from clinstack.report.collect import RunRecord
from clinstack.report.judged import judged_sentences, judged_tables
from clinstack.stages.judge import judge
from scripted_server import ScriptedServer

MARK = "ZEBRA-7731"
"""Stands in every note, question and answer, and may be in no file but the store of replies."""
_ANSWER = re.compile(r"\[Answer ([A-Z]) Begin\]\n(.*?)\n\[Answer \1 End\]", re.DOTALL)


class FakeJudge:
    """A server whose replies are a function of the answers in the order shown, and of how often it was asked that."""

    def __init__(self, reply: Callable[[list[str], int], str | int]) -> None:
        self.reply = reply
        self.prompts: list[str] = []
        self.seeds: list[int] = []
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, body = fake.answer(asked)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def answer(self, asked: dict[str, Any]) -> tuple[int, bytes]:
        prompt = asked["messages"][-1]["content"]
        with self.lock:
            before = sum(one.startswith(prompt) or prompt.startswith(one) for one in self.prompts)
            self.prompts.append(prompt)
            self.seeds.append(asked["seed"])
        reply = self.reply([text for _, text in _ANSWER.findall(prompt)], before)
        if isinstance(reply, int):
            return reply, b'{"error": {"message": "as scripted"}}'
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
        usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
        return 200, json.dumps({"id": "1", "model": "fake", "choices": [choice], "usage": usage}).encode()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def fake() -> Iterator[Callable[[Callable[[list[str], int], str | int]], FakeJudge]]:
    servers: list[FakeJudge] = []

    def start(reply: Callable[[list[str], int], str | int]) -> FakeJudge:
        servers.append(FakeJudge(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


Start = Callable[[Callable[[list[str], int], str | int]], FakeJudge]


def grade_of(answer: str) -> int:
    """Return the grade that is written into an answer, such as ``grade 3``."""
    found = re.search(r"grade (\d)", answer)
    assert found is not None
    return int(found[1])


def fair(answers: list[str], before: int) -> str:
    return " ".join(str(grade_of(answer)) for answer in answers) + f"\nBecause {MARK} is in the note."


def write_instructions(folder: Path, examples: int = 12) -> None:
    rows = [
        {
            "example_id": f"e{i}",
            "patient_id": f"p{i // 2}",
            "note": f"{MARK} note {i}, with {{question}} and {{answers}} in braces",
            "question": f"{MARK} question {i}?",
            "answer": f"{MARK} the reference, grade 4",
            "task": ("Summarization", "Question Answering")[i % 2],
        }
        for i in range(examples)
    ]
    (folder / "instructions").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "instructions" / "instructions.parquet")
    patients = sorted({row["patient_id"] for row in rows})
    pq.write_table(pa.table({"patient_id": patients, "split": ["test"] * len(patients)}), folder / "splits.parquet")
    write_json(folder / "prepare.json", {"source": "test", "synthetic": True})


def write_answers(folder: Path, label: str, grades: dict[str, int], **changes: object) -> None:
    folder.mkdir(parents=True)
    rows = [
        {
            "example_id": name,
            "patient_id": f"p{int(name[1:]) // 2}",
            "split": "test",
            "task": ("Summarization", "Question Answering")[int(name[1:]) % 2],
            "answer": f"{MARK} by {label[:1]}, grade {grade}",
        }
        for name, grade in grades.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "answers.parquet")
    place = next(parent for parent in folder.parents if (parent / "notes").is_dir())
    table = place / "notes" / "instructions" / "instructions.parquet"
    facts = {"stage": "generate", "status": "done", "label": label, "inputs": {"table": sha256_file(table)}}
    write_json(folder / "run.json", facts | changes)
    write_text(folder / "recipe.yaml", yaml.safe_dump({"stage": "generate", "instructions": str(place / "notes")}))


BASE = {f"e{i}": 1 + i % 3 for i in range(12)}
TUNED = {f"e{i}": 2 + i % 3 for i in range(12)}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_instructions(tmp_path / "notes")
    write_answers(tmp_path / "base", "base", BASE)
    write_answers(tmp_path / "tuned", "tuned", TUNED)
    return tmp_path


def recipe_of(place: Path, url: str, **changes: Any) -> JudgeRecipe:
    endpoint = {"base_url": url, "model": "judge-model", "backoff": 0.01, "retries": 1} | changes.pop("endpoint", {})
    values = {
        "stage": "judge",
        "run": str(place / "judged"),
        "answers": [str(place / "base"), str(place / "tuned")],
        "instructions": str(place / "notes"),
        "evaluation": {"resamples": 200},
        "endpoint": endpoint,
    }
    recipe = parse_recipe(values | changes, "test")
    assert isinstance(recipe, JudgeRecipe)
    return recipe


def metrics_of(recipe: JudgeRecipe) -> dict[str, Any]:
    found: dict[str, Any] = read_json(Path(recipe.run) / "metrics.json")
    return found


def test_a_rubric_of_ones_own(tmp_path: Path, place: Path, fake: Start) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(SHIPPED.read_text(encoding="utf-8").replace("as a\nphysician does", "as a\nnurse does"), "utf-8")
    server = fake(fair)
    recipe = recipe_of(place, server.url, rubric=str(file))
    judge(recipe)
    assert all("as a\nnurse does" in prompt for prompt in server.prompts)
    file.write_text("{note} {question} {answers} {letters}", encoding="utf-8")
    with pytest.raises(InputError, match=r"\{letters\} is unknown"):
        judge(recipe)
    file.write_text("{note} {question}", encoding="utf-8")
    with pytest.raises(InputError, match=r"has no \{answers\}"):
        judge(recipe)


def test_a_fair_judge(place: Path, fake: Start) -> None:
    server = fake(fair)
    recipe = recipe_of(place, server.url, reference=True)
    announced: list[tuple[dict[str, Any], str | None]] = []
    run = judge(recipe, announce=lambda estimate, warning: announced.append((estimate, warning)))
    assert run.record["stage"] == "judge"
    assert run.record["status"] == "done"
    assert run.record["synthetic"] is True
    # Three labels make three pairs, both ways round, of 12 examples.
    assert len(server.prompts) == 72 == announced[0][0]["requests"]
    assert announced[0][0]["in_store"] == 0
    assert announced[0][1] is None
    assert len(set(server.seeds)) == 72
    assert not any("base" in prompt or "tuned" in prompt for prompt in server.prompts)

    table = pq.read_table(Path(recipe.run) / "scores.parquet")
    assert table.column_names[:7] == ["example_id", "patient_id", "task", "answers", "order", "shown", "position"]
    assert table.num_rows == 144
    assert all(table["parsed"].to_pylist())
    metrics = metrics_of(recipe)
    assert metrics["judge"]["answers"] == ["base", "tuned", "reference"]
    assert metrics["judge"]["splits"] == {"train": 0, "validation": 0, "test": 12}
    assert (metrics["judge"]["prompt_tokens"], metrics["judge"]["completion_tokens"]) == (7200, 360)
    scores = metrics["scores"]
    assert [scores[label]["mean"]["value"] for label in scores] == [2.0, 3.0, 4.0]
    assert scores["tuned"]["excellent"]["value"] == pytest.approx(1 / 3)
    assert scores["base"]["grades"] == {"1": 16, "2": 16, "3": 16, "4": 0}
    low, high = scores["base"]["mean"]["interval"]
    assert 1 < low < 2 < high < 3
    differences = {(row["a"], row["b"]): row for row in metrics["differences"]}
    assert differences["tuned", "base"]["value"] == 1.0
    assert differences["reference", "tuned"]["value"] == 1.0
    assert differences["tuned", "base"]["interval"] == [1.0, 1.0]
    assert all(row["p_holm"] >= row["p"] for row in metrics["differences"])
    wins = {(row["a"], row["b"]): row for row in metrics["wins"]}
    assert wins["tuned", "base"]["value"] == 1.0
    assert wins["reference", "tuned"]["value"] == pytest.approx(5 / 6)  # a third are ties of two fours
    assert (wins["reference", "tuned"]["won"], wins["reference", "tuned"]["tied"]) == (16, 8)
    assert metrics["position"]["earlier_minus_later"]["value"] == 0
    assert metrics["position"]["flipped"]["value"] == 0
    assert metrics["agreement"]["orders"]["kappa"]["value"] == 1.0
    assert metrics["by_task"]["Summarization"]["base"]["value"] == 2.0
    assert metrics["counts"] == {
        **{"examples": 12, "patients": 6, "questions": 72},
        **{"asked_again": 0, "unparsed": 0, "unanswered": 0},
    }


def test_a_judge_that_likes_what_comes_first(place: Path, fake: Start) -> None:
    """Its bias is measured as large as it is, and cancels out of the difference."""
    server = fake(lambda answers, _: " ".join(str(min(4, grade_of(a) + 2 * (i == 0))) for i, a in enumerate(answers)))
    write_answers(place / "other", "other", {f"e{i}": 1 for i in range(12)})
    write_answers(place / "better", "better", {f"e{i}": 2 for i in range(12)})
    recipe = recipe_of(place, server.url, answers=[str(place / "other"), str(place / "better")])
    judge(recipe)
    metrics = metrics_of(recipe)
    assert metrics["position"]["scores"]["1"]["value"] == 3.5
    assert metrics["position"]["scores"]["2"]["value"] == 1.5
    assert metrics["position"]["earlier_minus_later"]["value"] == 2.0
    assert metrics["position"]["flipped"]["value"] == metrics["position"]["changed"]["value"] == 1.0
    assert metrics["differences"][0]["value"] == 1.0
    assert metrics["wins"][0]["value"] == 0.5
    assert metrics["agreement"]["orders"]["exact"]["value"] == 0.0


def test_all_answers_at_once(place: Path, fake: Start) -> None:
    server = fake(fair)
    recipe = recipe_of(place, server.url, mode="all", orders=3, reference=True)
    judge(recipe)
    assert len(server.prompts) == 36
    assert all(len(_ANSWER.findall(prompt)) == 3 for prompt in server.prompts)
    metrics = metrics_of(recipe)
    assert list(metrics["position"]["scores"]) == ["1", "2", "3"]
    assert {row["value"] for row in metrics["position"]["scores"].values()} == {3.0}
    assert [metrics["scores"][label]["mean"]["value"] for label in ("base", "tuned", "reference")] == [2.0, 3.0, 4.0]
    assert metrics["position"]["pairs"] > 0


def test_what_cannot_be_read_is_asked_again_then_null_and_never_zero(place: Path, fake: Start) -> None:
    """Of example e0 no reply can ever be read, of e1 the second; the report says so."""

    def reply(answers: list[str], before: int) -> str:
        if "grade 1" in answers[0] + answers[1] and before == 0:
            return "Both are fine."
        return "Zero: 0 0" if "grade 9" in answers[0] + answers[1] else fair(answers, before)

    server = fake(reply)
    write_answers(place / "broken", "broken", TUNED | {"e0": 9})
    recipe = recipe_of(place, server.url, answers=[str(place / "base"), str(place / "broken")], retries_on_parse=2)
    judge(recipe)
    asked = [prompt for prompt in server.prompts if "Your last reply could not be read" in prompt]
    # e0 both ways round twice more, and e3, e6, e9 (whose base has grade 1) both ways round once more.
    assert len(server.prompts) == 24 + len(asked)
    assert len(asked) == 2 * 2 + 3 * 2
    assert len(set(server.seeds)) == len(server.prompts)
    table = pq.read_table(Path(recipe.run) / "scores.parquet").to_pylist()
    null = [row for row in table if not row["parsed"]]
    assert {row["example_id"] for row in null} == {"e0"}
    assert len(null) == 4
    assert all(row["score"] is None and row["replied"] and row["asked"] == 3 for row in null)
    assert {row["asked"] for row in table if row["example_id"] == "e3"} == {2}
    metrics = metrics_of(recipe)
    assert metrics["counts"]["unparsed"] == 2
    assert metrics["counts"]["asked_again"] == 10
    assert metrics["scores"]["broken"]["missing"] == 2
    assert metrics["scores"]["broken"]["examples"] == 11
    expected = np.mean([grade for name, grade in TUNED.items() if name != "e0"])
    assert metrics["scores"]["broken"]["mean"]["value"] == pytest.approx(expected)
    assert metrics["differences"][0]["examples"] == 11

    (place / "runs").mkdir()
    (place / "judged").rename(place / "runs" / "judged")
    report = build_report(place / "runs")
    for page in (report.html, report.markdown):
        text = page.read_text(encoding="utf-8")
        assert "4 of 48 scores are missing: 2 replies could not be read, 0 questions got none" in text
        assert MARK not in text
    assert read_json(report.json)["judged"]["judged"]["counts"]["unparsed"] == 2
    record = RunRecord(place / "runs" / "judged", "judged", {}, {}, metrics)
    table_of_scores = judged_tables([record])[0]
    assert table_of_scores.columns[-2] == "Missing"
    assert [cells[-2].text for _, cells in table_of_scores.rows] == ["2", "2"]


def test_a_judge_that_never_answers_as_asked(place: Path, fake: Start) -> None:
    """Nothing can be read: the figures are unknown, and none is a number."""
    server = fake(lambda answers, before: "All of them are very good.")
    recipe = recipe_of(place, server.url, retries_on_parse=0)
    judge(recipe)
    metrics = metrics_of(recipe)
    assert metrics["counts"]["unparsed"] == metrics["counts"]["questions"] == 24
    assert metrics["scores"]["base"]["mean"] == {"value": None, "interval": None}
    assert metrics["differences"][0]["value"] is None
    assert metrics["differences"][0]["holds"] is False
    record = RunRecord(Path(recipe.run), "judged", read_json(Path(recipe.run) / "run.json"), {}, metrics)
    assert "24 replies could not be read" in " ".join(judged_sentences([record]))
    judged_tables([record])


def test_killed_and_started_again_asks_nothing_twice(place: Path, fake: Start) -> None:
    server = fake(lambda answers, before: 503 if len(server.prompts) > 10 else fair(answers, before))
    settings = {"concurrency": 1, "retries": 0}
    with pytest.raises(ClinstackError):
        judge(recipe_of(place, server.url, endpoint=settings))
    assert not (place / "judged" / "scores.parquet").exists()
    assert read_json(place / "judged" / "run.json")["status"] == "failed"
    kept = set(server.prompts[:10])
    # The server comes back at another address; the Run goes on.
    again = fake(fair)
    recipe = recipe_of(place, again.url, endpoint=settings | {"concurrency": 4})
    judge(recipe)
    assert not kept & set(again.prompts)
    assert len(again.prompts) == 24 - 10
    once = fake(fair)
    whole = recipe_of(place, once.url, run=str(place / "whole"))
    judge(whole)
    for name in ("scores.parquet", "metrics.json"):
        assert (place / "judged" / name).read_bytes() == (place / "whole" / name).read_bytes()
    judge(recipe)
    assert len(again.prompts) == 14  # done is done
    with pytest.raises(InputError, match="another recipe"):
        judge(recipe_of(place, again.url, seed=3))


@pytest.mark.slow
def test_killed_in_the_middle(place: Path) -> None:
    """A process that is killed in the middle and started again ends with the same bytes, and no reply paid twice.

    But for those under way when it was killed: a server may have answered what nobody was there to keep.
    """

    def reply(body: dict[str, Any]) -> str:
        return fair([text for _, text in _ANSWER.findall(body["messages"][-1]["content"])], 0)

    with ScriptedServer(place / "ledger", delay=0.05, answer=reply) as server:
        recipe = recipe_of(place, server.base_url, reference=True, endpoint={"concurrency": 2})
        file = place / "judge.yaml"
        file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
        command = [sys.executable, "-m", "clinstack", "judge", str(file)]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while first.poll() is None and len(server.bodies) < 10:
            time.sleep(0.01)
        first.kill()
        first.wait()
        assert not (place / "judged" / "scores.parquet").exists()
        assert read_json(place / "judged" / "run.json")["status"] == "running"
        judge(recipe)
        paid = (place / "ledger").read_text(encoding="utf-8").split()
        assert len(set(paid)) == 72
        assert len(paid) <= 72 + 2
        judge(recipe_of(place, server.base_url, reference=True, run=str(place / "whole")))
    for name in ("scores.parquet", "metrics.json"):
        assert (place / "judged" / name).read_bytes() == (place / "whole" / name).read_bytes()


def test_runs_may_share_replies(place: Path, fake: Start) -> None:
    """A third Run's answers, or human grades that came later, cost only what is new."""
    server = fake(fair)
    store = str(place / "replies.sqlite")
    judge(recipe_of(place, server.url, replies=store))
    assert len(server.prompts) == 24
    judge(recipe_of(place, server.url, replies=store, run=str(place / "more"), reference=True))
    assert len(server.prompts) == 72
    (place / "people.csv").write_text("example_id,answers,score\ne0,base,1\ne1,tuned,2\n", encoding="utf-8")
    again = recipe_of(place, server.url, replies=store, run=str(place / "held"), human=str(place / "people.csv"))
    judge(again)
    assert len(server.prompts) == 72
    assert metrics_of(again)["agreement"]["human"]["answers"] == 2


def test_questions_without_a_reply(place: Path, fake: Start) -> None:
    """A refused question is no failure to read; it stops the Run, or is counted when that is allowed."""
    server = fake(lambda answers, before: 400 if "grade 1" in answers[0] else fair(answers, before))
    with pytest.raises(ClinstackError, match="4 of 24 questions got no reply"):
        judge(recipe_of(place, server.url))
    recipe = recipe_of(place, server.url, allow_unanswered=True)
    judge(recipe)
    metrics = metrics_of(recipe)
    assert metrics["counts"]["unanswered"] == 4
    assert metrics["counts"]["unparsed"] == 0
    null = [row for row in pq.read_table(Path(recipe.run) / "scores.parquet").to_pylist() if not row["parsed"]]
    assert len(null) == 8
    assert all(row["score"] is None and not row["replied"] for row in null)
    # The other way round was read, so each answer still has a grade.
    assert metrics["scores"]["base"]["examples"] == 12


def test_a_spent_budget_says_so_and_goes_on(place: Path, fake: Start) -> None:
    server = fake(fair)
    with pytest.raises(ClinstackError, match=r"token_budget: the 1,500 tokens are spent"):
        judge(recipe_of(place, server.url, endpoint={"token_budget": 1500, "max_tokens": 64}))
    before = len(server.prompts)
    assert 0 < before < 24
    judge(recipe_of(place, server.url, endpoint={"token_budget": 500_000, "max_tokens": 64}))
    assert len(server.prompts) == 24


def test_agreement_with_people(place: Path, fake: Start) -> None:
    """People agree with the judge on base, and are one grade stricter with tuned."""
    server = fake(fair)
    rows = [f"e{i},base,{BASE[f'e{i}']}" for i in range(12)] + [f"e{i},tuned,{TUNED[f'e{i}'] - 1}" for i in range(6)]
    (place / "people.csv").write_text("\n".join(["example_id,answers,score", *rows]), encoding="utf-8")
    recipe = recipe_of(place, server.url, human=str(place / "people.csv"), max_examples=10)
    judge(recipe)
    human = metrics_of(recipe)["agreement"]["human"]
    judged = {row["example_id"] for row in pq.read_table(Path(recipe.run) / "scores.parquet").to_pylist()}
    assert len(judged) == 10
    tuned = len(judged & {f"e{i}" for i in range(6)})
    assert human["answers"] == 10 + tuned
    assert human["not_judged"] == 18 - 10 - tuned
    assert human["exact"]["value"] == pytest.approx(10 / (10 + tuned))
    assert human["by_answers"]["base"]["human"]["value"] == human["by_answers"]["base"]["judge"]["value"]
    of_tuned = human["by_answers"]["tuned"]
    assert of_tuned["judge"]["value"] - of_tuned["human"]["value"] == pytest.approx(1)
    # Each answer was read twice, and counts once.
    assert human["ratings"] == 2 * human["answers"]
    assert np.sum(human["table"]) == pytest.approx(human["answers"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("example_id,answers\ne0,base", "no column score"),
        ("example_id,answers,score\ne0,base,5", "row 1: the score must be a whole number"),
        ("example_id,answers,score\ne0,base,", "row 1: the score must be a whole number"),
        ("example_id,answers,score\ne0,bass,3", "row 1: answers is none of base, tuned"),
        ("example_id,answers,score\ne0,base,3\ne0,base,4", "row 2: e0 has two grades"),
        ("example_id,answers,score\nx9,base,3", "no grade of an example that will be judged"),
    ],
)
def test_wrong_human_grades_are_refused_before_anything_is_asked(
    place: Path, fake: Start, text: str, message: str
) -> None:
    server = fake(fair)
    (place / "people.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        judge(recipe_of(place, server.url, human=str(place / "people.csv")))
    assert not server.prompts


def test_what_is_missing_in_one_is_not_judged_and_said(place: Path, fake: Start) -> None:
    server = fake(fair)
    write_answers(place / "short", "short", {name: grade for name, grade in TUNED.items() if name not in {"e3", "e4"}})
    recipe = recipe_of(place, server.url, answers=[str(place / "base"), str(place / "short")])
    judge(recipe)
    metrics = metrics_of(recipe)
    assert metrics["judge"]["not_answered_by"] == {"base": 0, "short": 2}
    assert metrics["counts"]["examples"] == 10
    assert len(server.prompts) == 20


def test_a_subset_is_drawn_by_seed_and_task(place: Path, fake: Start) -> None:
    server = fake(fair)
    recipe = recipe_of(place, server.url, tasks=["Summarization"], max_examples=3)
    judge(recipe)
    metrics = metrics_of(recipe)
    assert metrics["counts"]["examples"] == 3
    assert list(metrics["by_task"]) == ["Summarization"]


def test_runs_of_one_label_are_told_apart_by_folder(place: Path, fake: Start) -> None:
    server = fake(fair)
    write_answers(place / "later" / "again", "base", TUNED)
    recipe = recipe_of(place, server.url, answers=[str(place / "base"), str(place / "later" / "again")])
    judge(recipe)
    assert metrics_of(recipe)["judge"]["answers"] == [f"base ({place}/base)", f"base ({place}/later/again)"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": ["a"]}, "name two Runs"),
        ({"answers": ["a", "a"]}, "a stands twice"),
        ({"answers": ["nowhere", "elsewhere"]}, "nowhere is no Run"),
        ({"orders": 3}, "pairs are always shown both ways round"),
        ({"instructions": "nowhere"}, "instructions"),
        ({"rubric": "nowhere.txt"}, "rubric: nowhere.txt is missing"),
        ({"human": "nowhere.csv"}, "human: nowhere.csv is missing"),
        ({"tasks": ["Poetry"]}, "of the task 'Poetry'"),
        ({"endpoint": {"base_url": "http://203.0.113.5/v1"}}, "leave it"),
    ],
)
def test_wrong_recipes(place: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        judge(recipe_of(place, "http://127.0.0.1:9/v1", **change))
    assert not (place / "judged" / "metrics.json").exists()


def test_answers_to_other_instructions_are_refused(place: Path) -> None:
    write_answers(place / "foreign", "foreign", {"e0": 1, "e40": 1})
    with pytest.raises(InputError, match="answers the example e40"):
        judge(recipe_of(place, "http://127.0.0.1:9/v1", answers=[str(place / "base"), str(place / "foreign")]))
    write_answers(place / "older", "older", TUNED, inputs={"table": "sha256:0"})
    with pytest.raises(InputError, match="did not answer the instructions"):
        judge(recipe_of(place, "http://127.0.0.1:9/v1", answers=[str(place / "base"), str(place / "older")]))
    write_answers(place / "half", "half", TUNED, status="running")
    with pytest.raises(InputError, match="a Run of generate, running"):
        judge(recipe_of(place, "http://127.0.0.1:9/v1", answers=[str(place / "base"), str(place / "half")]))


def test_no_text_leaves_the_store(place: Path, fake: Start) -> None:
    server = fake(fair)
    recipe = recipe_of(place, server.url, reference=True)
    judge(recipe)
    files = [path for path in Path(recipe.run).rglob("*") if path.is_file()]
    assert {"metrics.json", "run.json", "recipe.yaml", "scores.parquet", "replies.sqlite"} <= {
        path.name for path in files
    }
    with_text = {path.name for path in files if MARK.encode() in path.read_bytes()}
    assert with_text == {"replies.sqlite"}
    assert (Path(recipe.run) / "replies.sqlite").stat().st_mode & 0o077 == 0
    assert MARK not in str(pq.read_table(Path(recipe.run) / "scores.parquet").to_pylist())


def test_the_verb(place: Path, fake: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from clinstack.cli import app

    server = fake(fair)
    file = tmp_path / "judge.yaml"
    file.write_text(yaml.safe_dump(recipe_of(place, server.url).model_dump(mode="json")), encoding="utf-8")
    result = CliRunner().invoke(app, ["judge", str(file), "--json"])
    assert result.exit_code == 0, result.output
    line = json.loads(result.stdout.splitlines()[-1])
    assert line["metrics"]["scores"]["tuned"]["mean"]["value"] == 3.0
    assert "24 questions: about" in result.stderr
    assert MARK not in result.output
    shown = CliRunner().invoke(app, ["judge", str(file)])
    assert "tuned − base: +1.00" in shown.stdout
    assert "could not be read: 0 of 24 replies" in shown.stdout
    copied = CliRunner().invoke(app, ["judge", "--copy-rubric", str(tmp_path / "rubric.txt")])
    assert copied.exit_code == 0
    assert (tmp_path / "rubric.txt").read_text(encoding="utf-8") == SHIPPED.read_text(encoding="utf-8")


@pytest.mark.slow
def test_answers_that_a_model_generated(place: Path, fake: Start) -> None:
    """From `clinstack generate` on the untouched embedded base to the grades, without a table made by hand."""
    from clinstack.stages.generate import generate

    values = {
        **{"stage": "generate", "run": str(place / "generated"), "instructions": str(place / "notes")},
        **{"max_examples": 3, "decoding": {"max_new_tokens": 4}, "evaluation": {"resamples": 100}},
    }
    generate(parse_recipe(values, "test"))  # type: ignore[arg-type]
    server = fake(lambda answers, before: " ".join("4" if "reference" in answer else "1" for answer in answers))
    recipe = recipe_of(place, server.url, answers=[str(place / "generated")], reference=True)
    judge(recipe)
    metrics = metrics_of(recipe)
    assert metrics["counts"]["examples"] == 3
    assert metrics["differences"][0]["value"] == 3.0
    assert (metrics["differences"][0]["a"], metrics["differences"][0]["b"]) == ("reference", "base")


def test_preference_pairs_find_the_answers_behind_the_scores(place: Path, fake: Start) -> None:
    """`clinstack prepare preferences` understands the labels of this stage, also of Runs with one label."""
    from clinstack.notes.preference_pairs import pairs_from_judge
    from clinstack.notes.preferences import read_preferences

    write_answers(place / "later" / "again", "base", {name: min(4, grade + 2) for name, grade in BASE.items()})
    answers = [str(place / "base"), str(place / "later" / "again")]
    recipe = recipe_of(place, fake(fair).url, answers=answers, reference=True)
    judge(recipe)
    pairs_from_judge(place / "pairs", Path(recipe.run))
    rows = [
        row
        for split in read_preferences(place / "pairs", required=()).values()
        for row in zip(split.chosen, split.rejected, strict=True)
    ]
    assert len(rows) == 12
    assert all(grade_of(chosen) == 4 and grade_of(rejected) < 4 for chosen, rejected in rows)


def simulated(bias: float, quality: float, examples: int, seed: int) -> pa.Table:
    """Return scores of a judge with a known bias of place and a known difference of quality."""
    rng = np.random.default_rng(seed)
    readings = []
    for example in range(examples):
        for order, shown in enumerate((("a", "b"), ("b", "a"))):
            means = [2.3 + quality * (label == "b") + bias * (place == 0) for place, label in enumerate(shown)]
            grades = [int(np.clip(np.floor(mean + rng.random()), 1, 4)) for mean in means]
            one = Presentation(f"e{example}", shown, order)
            readings.append(Reading(one, f"p{example}", "task", grades, True, 1))
    return scores_table(readings)


def test_a_known_bias_and_a_known_difference_are_recovered() -> None:
    metrics = judge_metrics(simulated(0.5, 0.3, 4000, 0), ["a", "b"], 200, 0)
    assert metrics["position"]["earlier_minus_later"]["value"] == pytest.approx(0.5, abs=0.05)
    assert metrics["differences"][0]["value"] == pytest.approx(0.3, abs=0.05)
    low, high = metrics["differences"][0]["interval"]
    assert low < 0.3 < high


def test_no_difference_is_rarely_called_one() -> None:
    """Of 100 judges without a difference about 5 are called significant."""
    called = sum(
        judge_metrics(simulated(0.4, 0.0, 40, seed), ["a", "b"], 200, seed)["differences"][0]["holds"]
        for seed in range(100)
    )
    assert called <= 12
