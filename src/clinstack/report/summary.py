"""The figures of a report, computed once from the predictions and losses of its Runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from clinstack import __version__
from clinstack.evaluate.auroc import FloatArray
from clinstack.evaluate.compare import MACRO, Comparison, compare
from clinstack.evaluate.curves import roc_curve
from clinstack.evaluate.perplexity import perplexity_metrics
from clinstack.evaluate.predictions import read_splits
from clinstack.report.collect import ReportData, RunRecord

HEAD, LORA = "head", "lora"
FROZEN, FROZEN_LORA = "clinical-frozen", "clinical-frozen+lora"
TRAINABLE, TRAINABLE_LORA = "clinical-trainable", "clinical-trainable+lora"

_CONTRASTS = (
    (FROZEN_LORA, FROZEN),
    (TRAINABLE_LORA, TRAINABLE),
    (TRAINABLE, FROZEN),
    (FROZEN_LORA, LORA),
    (TRAINABLE_LORA, LORA),
)


@dataclass(frozen=True)
class Summary:
    """Everything that tables, figures and sentences are made of.

    Parameters
    ----------
    data : ReportData
    perplexity : dict of pretrain label to dict
        As returned by `perplexity_metrics`.
    comparison : Comparison
    curves : dict of task to dict of stack to (false-positive rates, true-positive rates)
    resamples, seed : int
    """

    data: ReportData
    perplexity: dict[str, dict[str, Any]]
    comparison: Comparison
    curves: dict[str, dict[str, tuple[FloatArray, FloatArray]]] = field(repr=False)
    resamples: int
    seed: int

    def auroc(self, stack: str, task: str) -> dict[str, Any] | None:
        """Return a stack's primary AUROC on a task (``macro`` for the mean over tasks)."""
        return _find(self.comparison.auroc, stack=stack, task=task)

    def auprc(self, stack: str, task: str) -> dict[str, Any] | None:
        """Return a stack's AUPRC on a task (``macro`` for the mean over tasks)."""
        return _find(self.comparison.auprc, stack=stack, task=task)

    def difference(self, a: str, b: str, task: str) -> dict[str, Any] | None:
        """Return the AUROC of a minus that of b."""
        return _find(self.comparison.differences, a=a, b=b, task=task)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks in the order of the paper."""
        return list(self.data.tasks)

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of ``report.json``."""
        return {
            "synthetic": self.data.synthetic,
            "clinstack": __version__,
            "perplexity": self.perplexity_rows(),
            "auroc": [dict(row) for row in self.comparison.auroc],
            "auprc": [dict(row) for row in self.comparison.auprc],
            "differences": [dict(row) | {"metric": _metric(row["task"])} for row in self.comparison.differences],
            "tests": self.comparison.tests,
            "macro_tasks": self.tasks,
            "perplexity_details": self.perplexity,
            "runs": [run_facts(run) for run in self.data.runs],
            "unfinished": [run.name for run in self.data.unfinished],
            "bootstrap": {"unit": "patient", "resamples": self.resamples, "seed": self.seed, "level": 0.95},
        }

    def perplexity_rows(self) -> list[dict[str, Any]]:
        """Return one row for each base and each pretrained stack."""
        rows: list[dict[str, Any]] = []
        for label, figures in self.perplexity.items():
            base = _perplexity_row("base", figures["base"], 0)
            if not rows:
                rows.append(base)
            elif base["value"] != rows[0]["value"]:  # another base, or other notes
                rows.append(base | {"stack": f"base of {label}"})
            rows.append(
                _perplexity_row(label, figures["adapted"], self.data.pretrain[label].stack.get("trainable_parameters"))
            )
        return rows


def _perplexity_row(stack: str, figures: dict[str, Any], trainable: int | None) -> dict[str, Any]:
    return {
        "stack": stack,
        **figures["perplexity"],
        "bits_per_character": figures["bits_per_character"]["value"],
        "bits_per_character_interval": figures["bits_per_character"]["interval"],
        "trainable_parameters": trainable,
    }


def _metric(task: str) -> str:
    return "macro_auroc" if task == MACRO else f"{task}_auroc"


def _find(rows: list[dict[str, Any]], **keys: str) -> dict[str, Any] | None:
    chosen = (row for row in rows if all(row[key] == value for key, value in keys.items()))
    return next((row for row in chosen if row["value"] is not None), None)


def run_facts(run: RunRecord) -> dict[str, Any]:
    """Return what a report says about a Run: sizes, time, seeds, versions."""
    seconds = run.record.get("seconds")
    return {
        "run": run.name,
        "stage": run.stage,
        "stack": run.label,
        "task": run.task,
        "base": run.base,
        "base_fingerprint": run.stack.get("fingerprint"),
        "parameters": run.stack.get("parameters"),
        "trainable_parameters": run.stack.get("trainable_parameters"),
        "seconds": seconds.get("total") if isinstance(seconds, dict) else seconds,
        "seeds": run.record.get("seeds", {}),
        "versions": run.record.get("versions", {}),
        "hardware": run.record.get("hardware", {}),
    }


def pairs(stacks: list[str]) -> list[tuple[str, str]]:
    """Return the contrasts of interest among the stacks that are there: each against the head, then the paper's."""
    against_head = [(stack, HEAD) for stack in stacks if stack != HEAD and HEAD in stacks]
    return against_head + [(a, b) for a, b in _CONTRASTS if a in stacks and b in stacks]


def summarise(data: ReportData, resamples: int = 1000, seed: int = 0) -> Summary:
    """Compute all figures of a report.

    Parameters
    ----------
    data : ReportData
    resamples, seed : int
        Of the bootstrap over patients.

    Raises
    ------
    InputError
        A Run's predictions or losses are missing, do not fit its task, or cover other test examples than another's.
    """
    comparison = compare(
        {
            task: {stack: run.folder / "predictions.parquet" for stack, run in stacks.items()}
            for task, stacks in data.finetune.items()
        },
        data.tasks,
        pairs(data.stacks),
        resamples,
        seed,
    )
    return Summary(
        data=data,
        perplexity={label: _held_out_perplexity(run, resamples, seed) for label, run in data.pretrain.items()},
        comparison=comparison,
        curves={
            task: {stack: roc_curve(rows) for stack, rows in stacks.items()}
            for task, stacks in comparison.scored.items()
        },
        resamples=resamples,
        seed=seed,
    )


def _held_out_perplexity(run: RunRecord, resamples: int, seed: int) -> dict[str, Any]:
    """Measure on test patients, or on validation patients where the test split has no notes; the split is named."""
    path = run.folder / "losses.parquet"
    return perplexity_metrics(path, resamples, seed, "test" if "test" in read_splits(path) else "validation")
