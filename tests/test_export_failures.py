"""What is refused, what fails and is not kept, what a kill leaves; the command and what it writes beside weights."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import clinstack.export.merged as merged_module
from clinstack.errors import InputError
from clinstack.export.check import ExportError
from clinstack.export.export import Exported, export
from clinstack.files import read_json, sha256_file
from clinstack.model.base import find_base
from clinstack.model.stack import Stack
from export_checks import Saved, slow

# ---------------------------------------------------------------------- refusals, failures, kills


@pytest.mark.parametrize("kind", ["fused", "peft", "clinical-merged"])
def test_a_head_alone_is_merged_only(saved: Saved, tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match="no adapter"):
        export([saved("head")], kind, tmp_path / "out")


def test_one_level_has_nothing_to_fold_in(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to fold in beneath it"):
        export([saved("lora")], "clinical-merged", tmp_path / "out")


def test_other_folders_are_left_alone(saved: Saved, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not written by `clinstack export`"):
        export([saved("lora")], "merged", out)
    with pytest.raises(InputError, match="is a file"):
        export([saved("lora")], "merged", out / "thesis.txt")
    export([saved("lora")], "peft", tmp_path / "peft")  # a Stack too
    with pytest.raises(InputError, match="holds the stack"):
        export([tmp_path / "peft"], "merged", tmp_path / "peft")
    with pytest.raises(InputError, match="--as onnx: there are merged, fused"):
        export([saved("lora")], "onnx", tmp_path / "new")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let merging go wrong in one number, as a library's silent fault would."""
    unload = merged_module.unload

    def broken(stack: Stack) -> Any:
        network = unload(stack)
        with torch.no_grad():
            network.get_input_embeddings().weight[:, 0] += 0.01
        return network

    monkeypatch.setattr(merged_module, "unload", broken)


def test_an_export_with_other_outputs_is_not_kept(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "out"
    wrong(monkeypatch)
    with pytest.raises(ExportError, match=r"gives other outputs than the stack .*allowed 0\.0001.*Nothing was written"):
        export([saved("lora")], "merged", out)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    export([saved("lora")], "merged", out)
    before = {path.name: sha256_file(path) for path in out.iterdir()}
    wrong(monkeypatch)
    with pytest.raises(ExportError):
        export([saved("clinical-frozen+lora")], "merged", out)
    assert {path.name: sha256_file(path) for path in out.iterdir()} == before
    monkeypatch.undo()
    export([saved("clinical-frozen+lora")], "merged", out)
    assert {path.name: sha256_file(path) for path in out.iterdir()} != before


def test_a_rounded_export_that_was_wrong_before_is_not_kept(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fault is smaller than what rounding may change."""
    wrong(monkeypatch)
    with pytest.raises(ExportError, match="before its weights are rounded"):
        export([saved("clinical-frozen+lora", dtype="bfloat16")], "merged", tmp_path / "out")


@pytest.mark.parametrize("kind", ["merged", "clinical-merged", *slow("fused", "peft")])
def test_killed_in_the_middle_leaves_nothing(saved: Saved, tmp_path: Path, kind: str) -> None:
    folder, out = saved("clinical-frozen+lora"), tmp_path / "out"

    def killed() -> None:
        import clinstack.export.export as module

        def die(*_: Any) -> str:
            os.kill(os.getpid(), signal.SIGKILL)
            return ""

        module.readme = die  # when all weights are there
        export([folder], kind, out)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert not out.exists()
    assert (tmp_path / ".out.partial").exists()
    export([folder], kind, out)
    assert (out / "export.json").is_file()
    assert not (tmp_path / ".out.partial").exists()


def test_what_was_exported_names_no_path_of_this_machine(saved: Saved, tmp_path: Path, tiny_base: Path) -> None:
    export([saved("clinical-frozen+lora")], "merged", tmp_path / "out")
    for file in ("README.md", "export.json", "config.json", "tokenizer_config.json"):
        text = (tmp_path / "out" / file).read_text(encoding="utf-8")
        assert str(tiny_base) not in text
        assert str(tmp_path) not in text


def test_readme_says_how_notes_were_read(saved: Saved, tmp_path: Path) -> None:
    export([saved("lora")], "merged", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "At most 48 tokens" in text
    assert "it was trained to read: its end." in text
    assert "this text was written: ' END'" in text
    assert "0: alive, 1: dead" in text
    assert "not a medical device" in text


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Any]]:
    from clinstack.cli import app

    def run(*words: Any) -> str:
        app([str(word) for word in words], standalone_mode=False)
        return capsys.readouterr().out

    return run  # type: ignore[return-value]


def test_the_command(saved: Saved, tmp_path: Path, command: Callable[..., str]) -> None:
    folder = saved("clinical-frozen+lora")
    text = command("export", folder, "--as", "fused", "--out", tmp_path / "out")
    assert "largest difference from the stack" in text
    last = command("export", folder, "--as", "merged", "--out", tmp_path / "two", "--json").splitlines()[-1]
    found = json.loads(last)
    assert found["kind"] == "merged"
    assert found["check"]["."]["largest_difference"] <= 1e-4
    with pytest.raises(InputError, match="--force: belongs to --push"):
        command("export", folder, "--as", "merged", "--out", tmp_path / "three", "--force")


def test_the_base_may_have_moved(saved: Saved, tmp_path: Path, tiny_base: Path) -> None:
    done: Exported = export([saved("lora")], "fused", tmp_path / "out", base=str(tiny_base))
    assert read_json(done.folder / "adapter_config.json")["base_model_name_or_path"] == str(tiny_base)
    assert find_base(str(tiny_base)).fingerprint == read_json(done.folder / "export.json")["base"]["fingerprint"]
