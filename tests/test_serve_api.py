"""The API as a client sees it, on real stacks of two layers: scores against the stacks themselves, errors, changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from clinstack.evaluate.calibration import apply_calibration, calibration_intervals
from clinstack.model.stack import Stack
from clinstack.serve.answers import task_predictions
from clinstack.serve.shared_base import SharedBase
from clinstack.tokens.texts import encode_texts
from tiny_serving import CANARY, MAX_TOKENS, TASKS, client_of, save_stacks, settings_of

NOTES = [
    "the patient was admitted with chest pain",
    "shortness of breath " * 30,
    "stable",
    "admitted with shortness of breath and chest pain",
]


@pytest.fixture(scope="module")
def stacks(
    tiny_base: Path, clinical: Path, perturbed: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    return save_stacks(tmp_path_factory.mktemp("stacks"), tiny_base, clinical, perturbed)


@pytest.fixture(scope="module")
def client(stacks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = settings_of(stacks, tmp_path_factory.mktemp("state"), max_notes=8, max_characters=5000)
    with client_of(SharedBase.open(stacks), settings) as opened:
        yield opened


def offline_logits(folder: Path, texts: list[str]) -> np.ndarray[Any, Any]:
    """Return what the stack itself says, note by note."""
    stack = Stack.load(folder)
    encoded = encode_texts(stack.tokenizer, stack.reading, texts)
    assert encoded.owners.tolist() == list(range(len(texts)))
    with torch.no_grad():
        rows = [
            stack.logits(torch.tensor(piece)[None], torch.ones(1, len(piece), dtype=torch.int64))
            for piece in encoded.pieces
        ]
    return torch.cat(rows).numpy()


def predict(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/predict", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def test_scores_are_those_of_the_stacks(client: TestClient, stacks: dict[str, Path]) -> None:
    answer = predict(client, notes=NOTES, top=None)
    assert [item["id"] for item in answer["predictions"]] == ["0", "1", "2", "3"]
    for name, task in TASKS.items():
        logits = offline_logits(stacks[name], NOTES)
        calibration = Stack.load(stacks[name]).calibration
        method = "none" if calibration is None else "isotonic"
        wanted = apply_calibration(task, logits, calibration, method)
        bands = calibration_intervals(task, logits, calibration)
        for row, item in enumerate(answer["predictions"]):
            given = item["tasks"][name]
            assert given["kind"] == task.kind
            assert given["calibration"] == method
            assert given["calibrated"] is (calibration is not None)
            assert given["omitted"] == 0
            assert [part["name"] for part in given["classes"]] == list(task.classes)
            np.testing.assert_allclose([part["logit"] for part in given["classes"]], logits[row], atol=1e-4)
            np.testing.assert_allclose([part["probability"] for part in given["classes"]], wanted[row], atol=1e-4)
            if bands is None:
                assert all(part["interval"] is None for part in given["classes"])
            else:
                np.testing.assert_allclose([part["interval"] for part in given["classes"]], bands[row], atol=1e-4)
    # The one note that is too long says what was not read.
    assert [item["tokens"] for item in answer["predictions"]][1] == MAX_TOKENS
    assert [item["cut_tokens"] > 0 for item in answer["predictions"]] == [False, True, False, False]


def test_one_note_one_task(client: TestClient) -> None:
    alone = predict(client, note=NOTES[0], tasks=["mortality"])
    named = predict(client, notes=[{"id": "n/1", "text": NOTES[0]}], tasks=["mortality", "mortality"])
    assert list(alone["predictions"][0]["tasks"]) == ["mortality"]
    assert named["predictions"][0]["id"] == "n/1"
    one, other = (item["predictions"][0]["tasks"]["mortality"]["classes"] for item in (alone, named))
    np.testing.assert_allclose([part["logit"] for part in one], [part["logit"] for part in other], atol=1e-5)
    assert alone["disclaimer"].startswith("Research software")
    assert alone["model"]["fingerprint"].startswith("sha256:")


@pytest.mark.parametrize("method", ["none", "temperature", "isotonic"])
def test_calibration_as_asked(client: TestClient, stacks: dict[str, Path], method: Any) -> None:
    answer = predict(client, note=NOTES[0], tasks=["mortality"], calibration=method)
    given = answer["predictions"][0]["tasks"]["mortality"]
    assert (given["calibration"], given["calibrated"]) == (method, method != "none")
    stack = Stack.load(stacks["mortality"])
    wanted = apply_calibration(
        TASKS["mortality"], offline_logits(stacks["mortality"], NOTES[:1]), stack.calibration, method
    )
    np.testing.assert_allclose([part["probability"] for part in given["classes"]], wanted[0], atol=1e-4)
    assert (given["classes"][1]["interval"] is not None) == (method == "isotonic")


def test_calibration_that_a_stack_does_not_have_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/predict", json={"note": NOTES[0], "tasks": ["raw"], "calibration": "isotonic"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (409, "calibration")


def test_decisions_are_those_of_the_thresholds(client: TestClient, stacks: dict[str, Path]) -> None:
    answer = predict(client, notes=NOTES, top=None)
    limits = {name: (Stack.load(stacks[name]).calibration or {}).get("threshold") for name in TASKS}
    seen = set()
    for item in answer["predictions"]:
        binary = item["tasks"]["mortality"]["classes"]
        margin = binary[1]["logit"] - binary[0]["logit"]
        assert binary[0]["above_threshold"] is None
        assert binary[1]["above_threshold"] is (margin >= limits["mortality"]["score"])
        for part, limit in zip(item["tasks"]["diagnoses"]["classes"], limits["diagnoses"]["scores"], strict=True):
            assert part["above_threshold"] is (part["logit"] >= limit)
            # Both went through the same monotone function.
            assert (part["probability"] >= part["threshold"]) or not part["above_threshold"]
            seen.add(part["above_threshold"])
        assert all(part["above_threshold"] is None for part in item["tasks"]["length_of_stay"]["classes"])
        assert all(part["threshold"] is None for part in item["tasks"]["raw"]["classes"])
    assert seen == {True, False}


def test_of_two_classes_the_difference_of_the_logits_is_decided_on() -> None:
    chosen = {"threshold": {"rule": "f1", "score": 0.5}}
    logits = np.array([[3.0, 2.0], [-3.0, -2.0], [0.0, 0.5], [0.0, 0.4]], dtype=np.float32)
    made = task_predictions(TASKS["mortality"], "sha256:0", chosen, logits, "none", None)
    assert [item.classes[1].above_threshold for item in made] == [False, True, True, False]
    assert made[0].classes[1].threshold == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert made[0].classes[0].threshold is None
    # Where nobody could choose one, nothing is decided.
    undecided = {"threshold": {"rule": "f1", "score": None}}
    (item,) = task_predictions(TASKS["mortality"], "sha256:0", undecided, logits[:1], "none", None)
    assert [part.above_threshold for part in item.classes] == [None, None]


def test_many_classes_are_cut_to_the_most_probable(client: TestClient) -> None:
    whole = predict(client, note=NOTES[0], tasks=["diagnoses"], top=None)["predictions"][0]["tasks"]["diagnoses"]
    assert (len(whole["classes"]), whole["omitted"]) == (30, 0)
    default = predict(client, note=NOTES[0], tasks=["diagnoses"])["predictions"][0]["tasks"]["diagnoses"]
    assert (len(default["classes"]), default["omitted"]) == (20, 10)
    few = predict(client, note=NOTES[0], tasks=["diagnoses"], top=3)["predictions"][0]["tasks"]["diagnoses"]
    assert (len(few["classes"]), few["omitted"]) == (3, 27)
    chances = sorted((part["probability"] for part in whole["classes"]), reverse=True)
    assert [part["probability"] for part in few["classes"]] == pytest.approx(chances[:3])
    # Tasks whose classes exclude each other are never cut.
    assert (
        predict(client, note=NOTES[0], tasks=["length_of_stay"], top=1)["predictions"][0]["tasks"]["length_of_stay"][
            "omitted"
        ]
        == 0
    )


def test_tasks_and_models(client: TestClient) -> None:
    answer = client.get("/v1/tasks").json()
    assert [item["name"] for item in answer["tasks"]] == list(TASKS)
    first = answer["tasks"][0]
    assert (first["type"], first["kind"], first["classes"]) == ("classifier", "binary", ["survived", "died"])
    assert (first["max_tokens"], first["calibrated"], first["label"]) == (MAX_TOKENS, True, "clinical+task")
    assert [item["calibrated"] for item in answer["tasks"]] == [True, True, True, False]
    assert client.get("/v1/models").json() == {"object": "list", "data": []}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 422, "notes"),
        ([], 422, None),
        ({"note": 3}, 422, "note"),
        ({"note": ""}, 422, "note"),
        ({"note": CANARY, "notes": [CANARY]}, 422, None),
        ({"notes": []}, 422, "notes"),
        ({"notes": [CANARY, 7]}, 422, "notes.1"),
        ({"notes": [{"id": f"{CANARY}", "text": "x"}]}, 422, "notes.0.id"),
        ({"notes": [{"id": "n1"}]}, 422, "notes.0.text"),
        ({"notes": ["x"] * 9}, 422, "notes"),
        ({"notes": ["x", "y" * 5001]}, 422, "notes.1"),
        ({"note": CANARY, CANARY: 1}, 422, None),
        ({"note": CANARY, "tasks": [CANARY]}, 404, "tasks.0"),
        ({"note": CANARY, "tasks": []}, 422, "tasks"),
        ({"note": CANARY, "calibration": CANARY}, 422, "calibration"),
        ({"note": CANARY, "top": 0}, 422, "top"),
        ({"note": CANARY, "top": "3"}, 422, "top"),
        ({"note": CANARY, "top": True}, 422, "top"),
        ({"note": CANARY, "top": 2.5}, 422, "top"),
    ],
)
def test_wrong_requests_say_where_and_nothing_of_what_was_sent(
    client: TestClient, body: Any, status: int, param: str | None
) -> None:
    answer = client.post("/v1/predict", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"type", "message", "param", "code"}
    assert not any(word in answer.text for word in CANARY.split())


def test_a_body_that_is_no_json(client: TestClient) -> None:
    for content in (b"{" + CANARY.encode(), b"\xff\xfe", b'"\\ud800"', b""):
        answer = client.post("/v1/predict", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in {400, 422}
        assert "zebra" not in answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"
    lone = client.post("/v1/predict", content=b'{"note": "\\ud800"}', headers={"Content-Type": "application/json"})
    assert (lone.status_code, lone.json()["error"]["param"]) == (422, "note")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 500_000,
        b'{"note": ' * 100_000,
        b'{"top": ' + b"1" * 500_000 + b"}",
        b'{"note": "x", "top": NaN}',
        b'{"note": "x", "top": 1e400}',
        b'{"notes": [' + b"1," * 900_000 + b"1]}",
        b'{"note": "x", "tasks": [' + b"1," * 900_000 + b"1]}",
        b"{" + b",".join(b'"k%d": 1' % number for number in range(150_000)) + b"}",
        b'{"note": "x", "note": "y", "notes": null}',
    ],
    ids=range(9),
)
def test_bodies_that_are_meant_to_be_expensive_are_refused_at_once(client: TestClient, content: bytes) -> None:
    began = time.monotonic()
    answer = client.post("/v1/predict", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text[:200]
    assert len(answer.content) < 500
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("note", ["\0", " ", "\n\n", "\u202e", "🫀" * 20, "<s></s><pad>", "﷽" * 300])
def test_unusual_notes_are_scored(client: TestClient, note: str) -> None:
    answer = predict(client, note=note)
    assert set(answer["predictions"][0]["tasks"]) == set(TASKS)


def test_unknown_paths_and_methods(client: TestClient) -> None:
    assert client.get(f"/{CANARY}").json()["error"]["type"] == "not_found"
    wrong = client.get("/v1/predict")
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "method_not_allowed")
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


def test_the_document_names_this_servers_limits(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert schemas["PredictMany"]["properties"]["notes"]["maxItems"] == 8
    assert schemas["PredictOne"]["properties"]["note"]["maxLength"] == 5000
    assert schemas["Note"]["properties"]["text"]["maxLength"] == 5000
    assert schemas["PredictOne"]["properties"]["top"]["anyOf"][0] == {"minimum": 1, "type": "integer"}
    assert document["paths"]["/v1/predict"]["post"]["security"] == [{"token": []}]
    assert "security" not in document["paths"]["/healthz"]["get"]


def test_a_stack_is_added_and_removed_while_it_serves(stacks: dict[str, Path], tmp_path: Path) -> None:
    root = stacks["mortality"].parent
    served = {"mortality": stacks["mortality"]}
    with client_of(SharedBase.open(served), settings_of(served, tmp_path, stacks_root=root)) as client:
        added = client.put("/v1/stacks/stay", json={"folder": "length_of_stay"})
        assert (added.status_code, added.json()["classes"]) == (201, list(TASKS["length_of_stay"].classes))
        assert client.put("/v1/stacks/stay", json={"folder": str(root / "length_of_stay")}).status_code == 200
        other = client.put("/v1/stacks/stay", json={"folder": "diagnoses"})
        assert (other.status_code, other.json()["error"]["param"]) == (409, "name")
        given = predict(client, notes=NOTES, tasks=["stay"])
        logits = [[part["logit"] for part in item["tasks"]["stay"]["classes"]] for item in given["predictions"]]
        np.testing.assert_allclose(logits, offline_logits(stacks["length_of_stay"], NOTES), atol=1e-4)
        assert client.delete("/v1/stacks/stay").status_code == 204
        assert client.delete("/v1/stacks/stay").status_code == 404
        assert client.post("/v1/predict", json={"note": "x", "tasks": ["stay"]}).status_code == 404
        assert list(predict(client, note="x")["predictions"][0]["tasks"]) == ["mortality"]


def test_folders_elsewhere_are_refused(stacks: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "nothing").mkdir(parents=True)
    (root / "link").symlink_to(stacks["diagnoses"])
    (root / "inner").mkdir()
    (root / "inner" / "stack.json").symlink_to(stacks["diagnoses"] / "stack.json")
    served = {"mortality": stacks["mortality"]}
    with client_of(SharedBase.open(served), settings_of(served, tmp_path / "state", stacks_root=root)) as client:
        for folder in (
            str(stacks["diagnoses"]),
            "../x",
            "link",
            "link/task",
            "inner",
            ".",
            "a\0b",
            "/",
            "nothing/../link",
        ):
            answer = client.put("/v1/stacks/new", json={"folder": folder})
            assert (answer.status_code, answer.json()["error"]["type"]) == (403, "forbidden"), folder
        assert client.put("/v1/stacks/new", json={"folder": "absent"}).status_code == 404
        assert client.put("/v1/stacks/new", json={"folder": "nothing"}).status_code == 404
        assert client.put("/v1/stacks/a%20b", json={"folder": "nothing"}).status_code == 422
        assert [item["name"] for item in client.get("/v1/tasks").json()["tasks"]] == ["mortality"]
    with client_of(SharedBase.open(served), settings_of(served, tmp_path / "closed")) as client:
        assert client.put("/v1/stacks/new", json={"folder": "nothing"}).status_code == 403
        assert client.delete("/v1/stacks/mortality").status_code == 403
