"""Which stacks a command line names: folders of Stacks and Runs, searched, each with the name that requests use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.files import read_json

_SKIPPED = {"trials", "search", "checkpoints"}
"""Folders of a sweep or a Run whose Runs are no result."""


@dataclass(frozen=True)
class Found:
    """A stack on disk.

    Parameters
    ----------
    path : Path
        A Stack or a finished Run.
    name : str
        Its task, or for one that follows instructions its folder's name.
    label : str
        Its adapters, as its Run calls them.
    """

    path: Path
    name: str
    label: str


def find_stacks(folders: Sequence[Path], named: Sequence[str] = (), labels: Sequence[str] = ()) -> dict[str, Path]:
    """Return stacks by name.

    Parameters
    ----------
    folders : sequence of Path
        Stacks, Runs, or folders in which finished Runs of classifiers and of instruction tuning are looked for.
    named : sequence of str
        ``NAME=FOLDER``: a Stack or a Run, and what requests call it.
    labels : sequence of str
        Of what is looked for, only stacks with one of these labels, such as ``clinical-frozen+lora``.

    Raises
    ------
    InputError
        A folder has none, or two stacks would have one name.
    """
    found: list[Found] = []
    for text in named:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise InputError(f"--name {text!r}: write NAME=FOLDER.")
        found.append(Found(Path(path), name, _described(Path(path)).label))
    for folder in folders:
        if _is_stack(folder):
            found.append(_described(folder))
            continue
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; name a Stack, a finished Run, or a folder of Runs.")
        here = list(_beneath(folder))
        chosen = [item for item in here if not labels or item.label in labels]
        if not chosen:
            there = ", ".join(sorted({item.label for item in here}))
            what = f"no stack with the label {' or '.join(labels)}; there are {there}" if here else "no finished Run"
            raise InputError(f"{folder}: {what}.")
        found += chosen
    return _by_name(found)


def _by_name(found: Sequence[Found]) -> dict[str, Path]:
    result: dict[str, Path] = {}
    for item in found:
        same = [other for other in found if other.name == item.name]
        if len(same) > 1:
            labels = sorted({other.label for other in same})
            choose = f"choose one with --stack, such as --stack {labels[0]}, or " if len(labels) == len(same) else ""
            raise InputError(
                f"{item.name}: {len(same)} stacks would have this name ({', '.join(labels)}); "
                f"{choose}give names: --name {item.name}-2={same[1].path}"
            )
        result[item.name] = item.path
    return result


def _is_stack(folder: Path) -> bool:
    return (folder / "run.json").is_file() or (folder / "stack.json").is_file()


def _beneath(folder: Path) -> Iterator[Found]:
    """Yield finished Runs and Stacks that answer something, in the order of their paths."""
    for place, folders, files in os.walk(folder):
        path = Path(place)
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        if "run.json" in files:
            folders.clear()
            run = _json(path / "run.json")
            if run.get("status") == "done" and (path / "stack" / "stack.json").is_file() and _answers(path / "stack"):
                yield _described(path)
        elif "stack.json" in files:
            folders.clear()
            if _answers(path):
                yield _described(path)


def _answers(stack: Path) -> bool:
    record = _json(stack / "stack.json")
    return record.get("task") is not None or record.get("prompt") is not None


def _described(path: Path) -> Found:
    """Return a Stack or a Run under the name of its task.

    Raises
    ------
    InputError
        It is neither, the Run is not finished, or it is a language model that nobody taught to answer.
    """
    run: dict[str, Any] = {}
    stack = path
    if (path / "run.json").is_file():
        run = _json(path / "run.json")
        if run.get("status") != "done":
            raise InputError(f"{path}: this Run is not finished (it is {run.get('status')!r}).")
        stack = path / "stack"
    if not (stack / "stack.json").is_file():
        raise InputError(f"{path} is neither a Stack nor a finished Run that trained one.")
    record = _json(stack / "stack.json")
    if not _answers(stack):
        raise InputError(
            f"{path} is a language model that was not tuned on instructions: there is nothing to ask it. "
            "Serve what `clinstack finetune` or `clinstack instruct` made of it."
        )
    label = label_of(run, record)
    if record.get("task") is not None:
        return Found(path, str(record["task"]["name"]), label)
    folder = stack.resolve().parent if stack.name == "stack" else stack.resolve()
    return Found(path, re.sub(r"[^A-Za-z0-9._+@-]+", "-", folder.name).strip("-._+@") or "instructions", label)


def label_of(run: Mapping[str, Any], stack: Mapping[str, Any]) -> str:
    """Return what a stack's adapters are called: by its Run, else by their own names."""
    return run.get("label") or "+".join(item["name"] for item in stack.get("adapters", [])) or "head"


def _json(file: Path) -> dict[str, Any]:
    try:
        values = read_json(file)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{file} is damaged (not JSON).")
    return values
