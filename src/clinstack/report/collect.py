"""Find the Runs below a folder and read what a report needs of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import yaml

from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.tasks import OUTCOMES, Task

STACKS: dict[str, str] = {
    "head": "Base + head",
    "lora": "+ LoRA",
    "clinical-frozen": "+ Clinical LoRA (Frozen)",
    "clinical-frozen+lora": "+ Clinical LoRA (Frozen) + Downstream LoRA",
    "clinical-trainable": "+ Clinical LoRA (Trainable)",
    "clinical-trainable+lora": "+ Clinical LoRA (Trainable) + Downstream LoRA",
}
"""The six stacks in the order of Table 3 of Gema et al. 2023, with the names of its rows."""


EMBEDDED = "embedded"
"""The name under which recipes know the base model of the package."""


@dataclass(frozen=True)
class RunRecord:
    """One Run as it stands on disk.

    Parameters
    ----------
    folder : Path
    name : str
        The folder relative to the report's root, with forward slashes.
    record, recipe, metrics : dict
        Contents of ``run.json``, ``recipe.yaml`` and ``metrics.json``; empty when the file is absent.
    """

    folder: Path
    name: str
    record: dict[str, Any]
    recipe: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def stage(self) -> str:
        """``pretrain`` or ``finetune``."""
        return str(self.record.get("stage", ""))

    @property
    def label(self) -> str:
        """The stack's name, such as ``clinical-frozen+lora``."""
        return str(self.record.get("label") or self.folder.name)

    @property
    def task(self) -> str | None:
        """The task's name, None for pretraining."""
        task = self.record.get("task")
        return None if task is None else str(task)

    @property
    def stack(self) -> dict[str, Any]:
        """The stack's facts: base, fingerprint, numbers of parameters."""
        facts = self.record.get("stack")
        return facts if isinstance(facts, dict) else {}

    @property
    def base(self) -> str | None:
        """The base model's name; of a local folder the last part, the way to it is that machine's business."""
        base = self.stack.get("base")
        return None if base is None else PurePath(base).name if PurePath(base).is_absolute() else str(base)


@dataclass(frozen=True)
class ReportData:
    """The finished Runs below a folder, in the order of the paper's tables.

    Parameters
    ----------
    root : Path
    pretrain : dict of label to RunRecord
    finetune : dict of task name to dict of stack label to RunRecord
    tasks : dict of task name to Task
    unfinished : list of RunRecord
        Runs whose status is not ``done``; nothing of them is in any table.
    """

    root: Path
    pretrain: dict[str, RunRecord] = field(default_factory=dict)
    finetune: dict[str, dict[str, RunRecord]] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    unfinished: list[RunRecord] = field(default_factory=list)

    @property
    def runs(self) -> list[RunRecord]:
        """All finished Runs, pretraining first."""
        return [*self.pretrain.values(), *(run for stacks in self.finetune.values() for run in stacks.values())]

    @property
    def stacks(self) -> list[str]:
        """Labels of the finetuned stacks, in the order of the paper's Table 3, others after them."""
        return in_order((label for stacks in self.finetune.values() for label in stacks), STACKS)

    @property
    def synthetic(self) -> bool:
        """Whether any Run learned from invented patients."""
        return any(bool(run.record.get("synthetic")) for run in self.runs)

    @property
    def toy_base(self) -> bool:
        """Whether any Run stands on the small model that comes with the package."""
        return any(run.stack.get("base") == EMBEDDED for run in self.runs)

    @property
    def caveat(self) -> str:
        """What every table and figure must say about itself; empty when patients and model are real."""
        parts = ["synthetic patients"] * self.synthetic + ["toy base model"] * self.toy_base
        return ", ".join(parts).capitalize()


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the distinct names, those of ``known`` first and in its order, then the others by alphabet."""
    present, first = set(names), list(known)
    return [name for name in first if name in present] + sorted(present.difference(first))


def collect(root: Path) -> ReportData:
    """Read the Runs below ``root``.

    Parameters
    ----------
    root : Path
        Any folder that holds Runs at any depth, such as ``runs/demo``.

    Returns
    -------
    ReportData

    Raises
    ------
    InputError
        There is no finished Run, a file of a finished one cannot be read, or two are the same stack on the same task.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: name the folder that holds the runs, such as runs/demo.")
    found = [read_run(path.parent, root) for path in sorted(root.rglob("run.json")) if _is_visible(path, root)]
    done = [run for run in found if run.record.get("status") == "done" and run.stage in ("pretrain", "finetune")]
    unfinished = [run for run in found if run.record.get("status") != "done"]
    if not done:
        waiting = f" ({len(unfinished)} unfinished, the first is {unfinished[0].name})" if unfinished else ""
        raise InputError(f"{root}: no finished run below it{waiting}; run pretrain or finetune first.")

    pretrain: dict[str, RunRecord] = {}
    finetune: dict[str, dict[str, RunRecord]] = {}
    for run in done:
        place = pretrain if run.task is None else finetune.setdefault(run.task, {})
        if run.label in place:
            raise InputError(
                f"{run.name} and {place[run.label].name} are both {run.label} on {run.task or 'notes'}; "
                "name a folder that holds only one of them."
            )
        place[run.label] = run
    order = in_order(finetune, OUTCOMES)
    return ReportData(
        root=root,
        pretrain={label: pretrain[label] for label in sorted(pretrain)},
        finetune={name: {label: finetune[name][label] for label in in_order(finetune[name], STACKS)} for name in order},
        tasks={name: _task(next(iter(finetune[name].values()))) for name in order},
        unfinished=unfinished,
    )


def _is_visible(path: Path, root: Path) -> bool:
    """Whether no folder on the way is hidden, as half-written ones are."""
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def read_run(folder: Path, root: Path) -> RunRecord:
    """Read what a Run left; its name is that of its folder below ``root``.

    Raises
    ------
    InputError
        A file is no mapping of keys to values.
    """
    relative = folder.relative_to(root).as_posix()
    return RunRecord(
        folder=folder,
        name=folder.name if relative == "." else relative,
        record=_read_mapping(folder / "run.json"),
        recipe=_read_mapping(folder / "recipe.yaml"),
        metrics=_read_mapping(folder / "metrics.json"),
    )


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = read_json(path) if path.suffix == ".json" else yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}; run the stage again.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected keys and values; run the stage again.")
    return values


def _task(run: RunRecord) -> Task:
    """Find the task's label space where the stage left it: beside the stack, or with the metrics."""
    for source, values in (
        (run.folder / "stack" / "stack.json", _read_mapping(run.folder / "stack" / "stack.json")),
        (run.folder / "metrics.json", run.metrics),
        (run.folder / "metrics.json", run.metrics.get("test")),
    ):
        task = values.get("task") if isinstance(values, dict) else None
        if isinstance(task, dict):
            return Task.from_dict(task, str(source))
    raise InputError(f"{run.folder}: neither stack/stack.json nor metrics.json describes the task; run finetune again.")
