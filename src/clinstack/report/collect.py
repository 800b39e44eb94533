"""Find the Runs below a folder and read what a report needs of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import yaml

from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.report.published import PublishedAuroc
from clinstack.tasks import Task

STACKS: dict[str, str] = {
    "head": "Base + head",
    "lora": "+ LoRA",
    "clinical-frozen": "+ Clinical LoRA (Frozen)",
    "clinical-frozen+lora": "+ Clinical LoRA (Frozen) + Downstream LoRA",
    "clinical-trainable": "+ Clinical LoRA (Trainable)",
    "clinical-trainable+lora": "+ Clinical LoRA (Trainable) + Downstream LoRA",
}
"""The six stacks in the order of Table 3 of Gema et al. 2023, with the names of its rows."""


EMBEDDED = ("embedded", "embedded-encoder")
"""The names under which recipes know the base models of the package."""


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
        """The verb that wrote it, such as ``finetune``."""
        return str(self.record.get("stage", ""))

    @property
    def label(self) -> str:
        """The stack's name, such as ``clinical-frozen+lora``."""
        return str(self.record.get("label") or self.folder.name)

    @property
    def task(self) -> str | None:
        """The task's name, None for what is no classifier."""
        task = self.record.get("task")
        return None if task is None else str(task)

    @property
    def seed(self) -> int | None:
        """The seed of the training."""
        seeds = self.record.get("seeds")
        value = seeds.get("training") if isinstance(seeds, dict) else None
        return value if isinstance(value, int) else None

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
class StackRow:
    """A row of the tables: a stack on a base, with one Run for each task and seed.

    Parameters
    ----------
    key : str
        Unique in a report: the stack's label, with the base before it where there are several.
    base : str
        Name of the base, as the head of a group of rows.
    spec : str
        The stack's label.
    name : str
        Head of the row.
    paper : PublishedAuroc or None
        The row of the paper that it stands for.
    """

    key: str
    base: str
    spec: str
    name: str
    paper: PublishedAuroc | None = None


@dataclass(frozen=True)
class ReportData:
    """The finished Runs below a folder, in the order of the paper's tables.

    Parameters
    ----------
    root : Path
    pretrain : dict of label to RunRecord
    finetune : dict of task name to dict of row key to list of RunRecord
        Several Runs of one row and task differ in their seed alone.
    tasks : dict of task name to Task
    rows : dict of row key to StackRow
        In the order of the tables: the rows of one base stand together.
    unfinished : list of RunRecord
        Runs whose status is not ``done``; nothing of them is in any table.
    failures : dict of str to str
        Cells of a study that failed, and why.
    table : str or None
        The table of the paper that the rows stand for, such as ``table3``.
    reference : str or None
        The row that all are held against; without it each base has its own.
    budgets : dict of row key to dict
        What each row was allowed: trials, epochs.
    answers : dict of row name to RunRecord
        Runs that answered questions about notes.
    further : list of RunRecord
        Runs that trained a stack on instructions or preferences, and judges.
    """

    root: Path
    pretrain: dict[str, RunRecord] = field(default_factory=dict)
    finetune: dict[str, dict[str, list[RunRecord]]] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    rows: dict[str, StackRow] = field(default_factory=dict)
    unfinished: list[RunRecord] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    table: str | None = None
    reference: str | None = None
    budgets: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, RunRecord] = field(default_factory=dict)
    further: list[RunRecord] = field(default_factory=list)

    @property
    def runs(self) -> list[RunRecord]:
        """All finished Runs, pretraining first."""
        finetuned = [run for stacks in self.finetune.values() for runs in stacks.values() for run in runs]
        return [*self.pretrain.values(), *finetuned, *self.further, *self.answers.values()]

    @property
    def stacks(self) -> list[str]:
        """Keys of the rows, in their order."""
        return list(self.rows)

    @property
    def bases(self) -> dict[str, list[StackRow]]:
        """The rows of each base; all in one group where they are held against one row."""
        if self.reference is not None:
            return {"": list(self.rows.values())}
        groups: dict[str, list[StackRow]] = {}
        for row in self.rows.values():
            groups.setdefault(row.base, []).append(row)
        return groups

    def reference_of(self, key: str) -> str | None:
        """Return the row that one is held against: its base with a head alone, or fine-tuned whole, or the first.

        None for that row itself.
        """
        reference = self.reference
        if reference is None:
            own = self.bases[self.rows[key].base]
            by_spec = {row.spec: row.key for row in own}
            reference = by_spec.get("head") or by_spec.get("full") or (own[0].key if len(self.bases) > 1 else None)
        return None if reference == key else reference

    @property
    def synthetic(self) -> bool:
        """Whether any Run learned from invented patients."""
        return any(bool(run.record.get("synthetic")) for run in self.runs)

    @property
    def toy_base(self) -> bool:
        """Whether any Run stands on a small model that comes with the package."""
        return any(run.stack.get("base") in EMBEDDED for run in self.runs)

    @property
    def caveat(self) -> str:
        """What every table and figure must say about itself; empty when patients and model are real."""
        parts = ["synthetic patients"] * self.synthetic + ["toy base model"] * self.toy_base
        return ", ".join(parts).capitalize()


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the distinct names, those of ``known`` first and in its order, then the others by alphabet."""
    present, first = set(names), list(known)
    return [name for name in first if name in present] + sorted(present.difference(first))


def find_runs(root: Path) -> list[RunRecord]:
    """Read all Runs below ``root``, also unfinished ones, but not the trials of sweeps.

    Raises
    ------
    InputError
        ``root`` is no folder, or a file of a Run cannot be read.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: name the folder that holds the runs, such as runs/demo.")
    found = [read_run(path.parent, root) for path in sorted(root.rglob("run.json")) if _is_visible(path, root)]
    sweeps = [run.folder for run in found if run.stage == "sweep"]
    return [run for run in found if not any(folder in run.folder.parents for folder in sweeps)]


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


def task_of(run: RunRecord) -> Task:
    """Find a Run's label space where the stage left it: beside the stack, or with the metrics.

    Raises
    ------
    InputError
        Neither says.
    """
    for source, values in (
        (run.folder / "stack" / "stack.json", _read_mapping(run.folder / "stack" / "stack.json")),
        (run.folder / "metrics.json", run.metrics),
        (run.folder / "metrics.json", run.metrics.get("test")),
    ):
        task = values.get("task") if isinstance(values, dict) else None
        if isinstance(task, dict):
            return Task.from_dict(task, str(source))
    raise InputError(f"{run.folder}: neither stack/stack.json nor metrics.json describes the task; run finetune again.")
