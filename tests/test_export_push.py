"""`--push`: refused before anything leaves where the data is against it; else what a hub on this machine receives."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from clinstack.errors import ClinstackError, InputError
from clinstack.export.export import export
from clinstack.export.push import refuse_push
from clinstack.files import read_json, sha256_file, write_json
from clinstack.model.data_lineage import UNKNOWN, DataSource
from clinstack.model.stack import Stack
from clinstack.tasks import Task
from methods import new

MIMIC = DataSource("mimic3", False, "sha256:1", "pretrain", False)
COHORT = DataSource("mimic3", True, "sha256:2", "finetune", True)


class Hub(BaseHTTPRequestHandler):
    """Answers like the hub, keeps what it was sent, and takes every file in the commit itself."""

    asked: list[tuple[str, str, Any]]
    files: dict[str, bytes]
    token: str | None
    is_private: bool
    refuses: bool

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        type(self).asked.append(("GET", self.path, None))
        self._answer({"id": "ward/mortality", "private": self.is_private, "siblings": [], "sha": "0" * 40})

    def do_POST(self) -> None:
        kind = type(self)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind.token = self.headers.get("Authorization")
        if self.path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            for line in lines:
                if line["key"] == "file":
                    kind.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            kind.asked.append(("POST", self.path, None))
            url = f"http://{self.headers['Host']}/ward/mortality/commit/{'1' * 40}"
            self._answer({"success": True, "commitOid": "1" * 40, "commitUrl": url})
            return
        given = json.loads(body)
        kind.asked.append(("POST", self.path, given))
        if kind.refuses:
            self._answer({"error": "You don't have the rights to create a model under the namespace"}, 403)
        elif self.path == "/api/repos/create":
            self._answer({"url": f"http://{self.headers['Host']}/ward/mortality", "id": "ward/mortality"})
        elif "/preupload/" in self.path:
            files = [{"path": item["path"], "uploadMode": "regular", "shouldIgnore": False} for item in given["files"]]
            self._answer({"files": files})
        else:
            self._answer({})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on loopback, to which the library is pointed."""
    kind = type("OneHub", (Hub,), {"asked": [], "files": {}, "token": None, "is_private": True, "refuses": False})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        yield kind
        server.shutdown()


@pytest.fixture
def saved(
    tiny_base: Path, mortality: Task, perturbed: Callable[..., Stack], tmp_path: Path
) -> Callable[[tuple[DataSource, ...] | None], Path]:
    def save(data: tuple[DataSource, ...] | None) -> Path:
        stack = perturbed(Stack.build(str(tiny_base), [new("lora", "task")], mortality))
        stack.data = data
        stack.save(tmp_path / "stack")
        return tmp_path / "stack"

    return save


def test_what_was_trained_on_the_cohort_is_pushed(saved: Any, hub: type[Hub], tmp_path: Path) -> None:
    done = export([saved((COHORT,))], "merged", tmp_path / "out", repository="ward/mortality")
    created = next(given for _, path, given in hub.asked if path == "/api/repos/create")
    assert (created["organization"], created["name"], created["visibility"]) == ("ward", "mortality", "private")
    assert hub.token == "Bearer hf_of_a_test"
    sent = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.*")}
    assert hub.files == {name: path.read_bytes() for name, path in sent.items()}
    assert done.pushed is not None
    assert done.pushed.endswith("/ward/mortality")
    record = read_json(tmp_path / "out" / "export.json")
    assert record["openly_publishable"] is True
    assert record["data"] == [COHORT.to_dict()]
    assert "`mimic3` (finetune, synthetic): may be published" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ((COHORT, MIMIC), "trained on mimic3, whose data use agreement"),
        ((UNKNOWN,), "it is not known whether"),
        (None, "it is not known whether"),
    ],
)
@pytest.mark.parametrize("public", [True, False])
def test_refused_before_anything_leaves(
    saved: Any, hub: type[Hub], tmp_path: Path, data: Any, reason: str, public: bool
) -> None:
    with pytest.raises(InputError, match=f"--push: .*{reason}.*--force"):
        export([saved(data)], "merged", tmp_path / "out", repository="ward/mortality", public=public)
    assert hub.asked == []
    assert not (tmp_path / "out").exists()


def test_force_pushes_all_the_same(saved: Any, hub: type[Hub], tmp_path: Path) -> None:
    done = export([saved((MIMIC,))], "fused", tmp_path / "out", repository="ward/mortality", force=True)
    assert "adapter_model.safetensors" in hub.files
    assert any("forbids publishing it openly" in note for note in done.notes)
    assert b"Not to be published openly" in hub.files["README.md"]


@pytest.mark.parametrize("stale", [False, True])
def test_what_an_audit_found_to_leak_is_pushed_by_force_alone(
    saved: Any, hub: type[Hub], tmp_path: Path, stale: bool
) -> None:
    stack = saved((COHORT,))
    of = "sha256:another" if stale else sha256_file(stack / "stack.json")
    audit = {"verdict": "leaking", "sentence": "Three canaries came out.", "stack": {"fingerprint": of}}
    report = {"run": "/home/alice/runs/audit", "sha256": "sha256:1"}
    write_json(stack / "audit.json", {**audit, "date": "2026-11-28", "report": report})
    if not stale:  # an audit of other weights says nothing about these
        with pytest.raises(InputError, match=r"the audit found that mortality: task gives away .*--force"):
            export([stack], "merged", tmp_path / "out", repository="ward/mortality")
        assert hub.asked == []
        assert not (tmp_path / "out").exists()
    export([stack], "merged", tmp_path / "out", repository="ward/mortality", force=not stale)
    said = "other weights than these" if stale else "Leaking, audited 2026-11-28. Three canaries came out."
    assert said in hub.files["README.md"].decode()
    assert json.loads(hub.files["audit.json"])["report"] == {"run": "audit", "sha256": "sha256:1"}


def test_a_public_repository_is_not_taken_for_a_private_one(saved: Any, hub: type[Hub], tmp_path: Path) -> None:
    hub.is_private = False
    with pytest.raises(InputError, match="is there already and public"):
        export([saved((COHORT,))], "fused", tmp_path / "out", repository="ward/mortality")
    assert hub.files == {}
    export([saved((COHORT,))], "fused", tmp_path / "out", repository="ward/mortality", public=True)
    assert "README.md" in hub.files


def test_a_hub_that_refuses_leaves_the_export(saved: Any, hub: type[Hub], tmp_path: Path) -> None:
    hub.refuses = True
    with pytest.raises(ClinstackError, match=r"did not take ward/mortality \(.*403.*is complete"):
        export([saved((COHORT,))], "fused", tmp_path / "out", repository="ward/mortality")
    assert (tmp_path / "out" / "export.json").is_file()
    assert hub.files == {}


def test_offline_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert huggingface_hub.constants.HF_HUB_OFFLINE  # as all tests run
    with pytest.raises(InputError, match="the hub is switched off here"):
        refuse_push("ward/mortality", [COHORT], force=True)
    for name in ("mortality", "a/b/c", "../x/y", "ward/", "-x/y"):
        with pytest.raises(InputError, match="is no name of the form"):
            refuse_push(name, [COHORT], force=False)
