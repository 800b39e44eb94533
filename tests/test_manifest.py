"""A base's manifest: every file with size and hash, compared at each opening; and fingerprints that a recipe pins."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clinstack.cli import main
from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file, write_json
from clinstack.model import base as base_module
from clinstack.model.base import EMBEDDED_FOLDERS, find_base, hash_of, locate_base
from clinstack.model.manifest import MANIFEST_FILE, write_manifest
from clinstack.model.stack import Stack


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A base with its manifest, which a test may change."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    write_manifest(folder, find_base(str(folder)).fingerprint, hash_of)
    return folder


def refusal(folder: Path, open_base: Callable[[str], Any] = find_base) -> str:
    with pytest.raises(InputError) as caught:
        open_base(str(folder))
    assert str(caught.value).startswith("base: ")
    return str(caught.value)


def test_a_manifest_lists_every_file_and_changes_no_fingerprint(base: Path, tiny_base: Path) -> None:
    record = read_json(base / MANIFEST_FILE)
    names = {path.name for path in tiny_base.iterdir()}
    assert set(record["files"]) == names
    for name, entry in record["files"].items():
        assert entry["bytes"] == (base / name).stat().st_size
        assert f"sha256:{entry['sha256']}" == sha256_file(base / name)
    assert record["fingerprint"] == find_base(str(base)).fingerprint == find_base(str(tiny_base)).fingerprint
    locate_base(str(base))
    Stack.build(str(base))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_a_file_that_differs_is_named(base: Path, name: str) -> None:
    content = bytearray((base / name).read_bytes())
    # Of JSON a digit: what is no JSON any more is refused before the manifest is asked.
    place = max(place for place, byte in enumerate(content) if name.endswith("safetensors") or chr(byte).isdigit())
    content[place] ^= 1
    (base / name).write_bytes(content)
    assert f"{base / name} differs from what {MANIFEST_FILE} records" in refusal(base)
    if name != "model.safetensors":  # weights are not read where only the description is asked for
        assert f"{base / name} differs" in refusal(base, locate_base)


def test_weights_of_another_size_are_seen_without_reading_them(base: Path) -> None:
    with (base / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert "model.safetensors differs" in refusal(base, locate_base)


def test_a_missing_file_is_named(base: Path) -> None:
    (base / "generation_config.json").unlink()
    assert f"{base / 'generation_config.json'} is missing" in refusal(base)


@pytest.mark.parametrize(
    "name", ["modeling_theirs.py", "pytorch_model.bin", "chat_template.jinja", "model-2.safetensors", "deep/er/x.so"]
)
def test_an_extra_file_is_named(base: Path, name: str) -> None:
    (base / name).parent.mkdir(parents=True, exist_ok=True)
    (base / name).write_bytes(b"x")
    for open_base in (find_base, locate_base):
        assert f"{base / name} is not in {MANIFEST_FILE}" in refusal(base, open_base)


def test_what_a_version_control_or_a_download_keeps_beside_it_is_none_of_it(base: Path) -> None:
    (base / ".git").mkdir()
    (base / ".git" / "config").write_text("x")
    (base / ".gitattributes").write_text("x")
    find_base(str(base))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"files": []}, "is damaged"),
        ({"files": {"config.json": {"bytes": 1}}}, "is damaged"),
        ({"files": {"../secret": {"bytes": 1, "sha256": "0"}}}, "is no plain name"),
        ({"fingerprint": "sha256:" + "0" * 64}, "has the fingerprint sha256:000000000000, the files have"),
    ],
)
def test_a_manifest_that_is_none(base: Path, change: dict[str, Any], reason: str) -> None:
    write_json(base / MANIFEST_FILE, {**read_json(base / MANIFEST_FILE), **change})
    assert reason in refusal(base)
    (base / MANIFEST_FILE).write_text("{")
    assert "is damaged" in refusal(base)


@pytest.mark.parametrize(("name", "kind"), [("pytorch_model.bin", "a pickle"), ("deep/modeling.py", "a program")])
def test_a_manifest_vouches_for_no_pickle_and_no_program(base: Path, name: str, kind: str) -> None:
    (base / MANIFEST_FILE).unlink()
    (base / name).parent.mkdir(exist_ok=True)
    (base / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"is {kind}; clinstack opens none"):
        write_manifest(base, find_base(str(base)).fingerprint, hash_of)
    assert not (base / MANIFEST_FILE).exists()


def test_weights_are_read_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reading(path: Path) -> str:
        read.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(base_module, "sha256_file", reading)
    os.utime(base / "model.safetensors", ns=(1, 1))  # not what the fixture has read
    for _ in range(3):
        find_base(str(base))
    assert read.count("model.safetensors") == 1


@pytest.mark.parametrize("name", sorted(EMBEDDED_FOLDERS))
def test_the_embedded_bases_have_theirs(name: str) -> None:
    folder = EMBEDDED_FOLDERS[name]
    record = read_json(folder / MANIFEST_FILE)
    present = {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    assert set(record["files"]) == present - {MANIFEST_FILE}
    assert record["fingerprint"] == find_base(name).fingerprint


# ---------------------------------------------------------------------- pinned in a recipe


def test_a_pinned_fingerprint_is_compared(tiny_base: Path) -> None:
    found = find_base(str(tiny_base))
    assert find_base(f"{tiny_base}@{found.fingerprint}") == found
    assert find_base(f"embedded@{find_base('embedded').fingerprint}").name == "embedded"
    assert locate_base(f"{tiny_base}@{found.fingerprint}").folder == tiny_base
    other = "sha256:" + "0" * 64
    with pytest.raises(InputError, match=r"has the fingerprint sha256:.{12}, and sha256:000000000000 is pinned"):
        find_base(f"{tiny_base}@{other}")
    assert Stack.build(f"{tiny_base}@{found.fingerprint}").base.name == str(tiny_base)


# ---------------------------------------------------------------------- the verb


def test_the_verb_writes_and_verifies(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clinstack", "base", *map(str, words)])
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        return (code, *capsys.readouterr())

    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    code, out, _ = run("manifest", folder, "--json")
    assert code == 0
    assert json.loads(out) == {
        "manifest": str(folder / MANIFEST_FILE),
        "fingerprint": find_base(str(folder)).fingerprint,
    }
    (folder / "extra.json").write_text("{}")
    code, out, said = run("verify", folder)
    assert (code, out) == (2, "")
    assert "extra.json is not in" in said
    code, out, _ = run("manifest", folder, "--force")
    assert code == 0
    assert "To pin it in a recipe: base: " in out
    assert "extra.json" in read_json(folder / MANIFEST_FILE)["files"]
    assert run("verify", folder)[0] == 0
    assert "writes one" in run("verify", tmp_path)[2]
