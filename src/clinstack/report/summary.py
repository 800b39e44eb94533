"""The figures of a report, computed once from the predictions and losses of its Runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from clinstack import __version__
from clinstack.evaluate.compare import MACRO, Comparison, compare
from clinstack.evaluate.perplexity import perplexity_metrics
from clinstack.evaluate.predictions import read_splits
from clinstack.evaluate.scored import Scored
from clinstack.report.answers import Answers, measure_runs
from clinstack.report.collect import ReportData, RunRecord, StackRow
from clinstack.report.published import PAPER
from clinstack.tasks import OUTCOMES

HEAD, LORA, FULL = "head", "lora", "full"
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
    resamples, seed : int
    answers : Answers
        The figures of generate Runs.
    """

    data: ReportData
    perplexity: dict[str, dict[str, Any]]
    comparison: Comparison
    resamples: int
    seed: int
    answers: Answers = field(default_factory=Answers)

    def auroc(self, stack: str, task: str) -> dict[str, Any] | None:
        """Return a stack's primary AUROC on a task (``macro`` for the mean over tasks)."""
        return _find(self.comparison.auroc, stack=stack, task=task)

    def auprc(self, stack: str, task: str) -> dict[str, Any] | None:
        """Return a stack's AUPRC on a task (``macro`` for the mean over tasks)."""
        return _find(self.comparison.auprc, stack=stack, task=task)

    def difference(self, a: str, b: str | None, task: str) -> dict[str, Any] | None:
        """Return the AUROC of a minus that of b."""
        return None if b is None else _find(self.comparison.differences, a=a, b=b, task=task)

    def against_reference(self, stack: str, task: str) -> dict[str, Any] | None:
        """Return the AUROC of a row minus that of the row it is held against."""
        return self.difference(stack, self.data.reference_of(stack), task)

    def scored(self, stack: str, task: str) -> Scored:
        """Return the aligned test rows of a row's first Run on a task."""
        return self.comparison.scored[task][stack]

    def measured(self, stack: str, task: str) -> list[dict[str, Any]]:
        """Return what ``metrics.json`` says of the test patients, for each Run of a row on a task."""
        runs = self.data.finetune.get(task, {}).get(stack, [])
        tests = [run.metrics.get("test") for run in runs]
        return [test for test in tests if isinstance(test, dict)]

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
            "rows": [
                {
                    "stack": row.key,
                    "base": row.base,
                    "spec": row.spec,
                    "name": row.name,
                    "reference": self.data.reference_of(row.key),
                    "budget": self.data.budgets.get(row.key),
                    "paper": self._printed(row),
                }
                for row in self.data.rows.values()
            ],
            "measures": self._measures(),
            "perplexity_details": self.perplexity,
            **self.answers.to_dict(),
            "runs": [run_facts(run) for run in self.data.runs],
            "unfinished": [run.name for run in self.data.unfinished],
            "failed": self.data.failures,
            "bootstrap": {"unit": "patient", "resamples": self.resamples, "seed": self.seed, "level": 0.95},
        }

    def _printed(self, row: StackRow) -> dict[str, Any] | None:
        """Return the figures of the paper's row, in per cent, with the mean that they have."""
        if row.paper is None:
            return None
        return {
            "source": f"{PAPER}, {row.paper.table.replace('table', 'Table ')}",
            "unit": "per cent",
            "auroc": {task: row.paper.printed(task) for task in (*OUTCOMES, MACRO)},
            "arithmetic_mean": round(row.paper.arithmetic_mean, 3),
            "mean_is_a_slip": row.paper.mean_is_a_slip,
        }

    def _measures(self) -> list[dict[str, Any]]:
        """Return, for each Run, what its ``metrics.json`` says beyond the ranking."""
        keys = ("threshold", "calibration", "delong", "subgroups")
        rows = []
        for task, stacks in self.data.finetune.items():
            for stack, run in ((stack, run) for stack, runs in stacks.items() for run in runs):
                test = run.metrics.get("test")
                measured = {key: test[key] for key in keys if key in test} if isinstance(test, dict) else {}
                if "calibration" in measured:
                    # The bins stay in the Run's own file.
                    measured["calibration"] = {
                        method: {name: value for name, value in fitted.items() if name != "reliability"}
                        for method, fitted in measured["calibration"].items()
                    }
                if measured:
                    rows.append({"stack": stack, "task": task, "seed": run.seed, **measured})
        return rows

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


def pairs(data: ReportData) -> list[tuple[str, str]]:
    """Return the contrasts of interest among the rows that are there.

    Each row against its reference, then the paper's contrasts within a base. Between bases: the same stack on one
    decoder and the next, and the paper's two-step stack on a decoder against each encoder with LoRA (Table 4).
    """
    result = []
    bases = [{row.spec: row.key for row in rows} for rows in data.bases.values()]
    for rows, own in zip(data.bases.values(), bases, strict=True):
        result += [(row.key, reference) for row in rows if (reference := data.reference_of(row.key)) is not None]
        result += [(own[a], own[b]) for a, b in _CONTRASTS if data.reference is None and a in own and b in own]
    if data.reference is not None:
        return result
    decoders = [own for own in bases if FULL not in own]
    for first, second in pairwise(decoders):
        result += [(second[spec], first[spec]) for spec in second if spec in first]
    for own in decoders:
        others = [other for other in bases if other not in decoders and LORA in other]
        result += [(own[TRAINABLE_LORA], other[LORA]) for other in others if TRAINABLE_LORA in own]
    return list(dict.fromkeys(result))


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
        {task: {stack: _tables(runs) for stack, runs in stacks.items()} for task, stacks in data.finetune.items()},
        data.tasks,
        pairs(data),
        resamples,
        seed,
    )
    return Summary(
        data=data,
        perplexity={label: _held_out_perplexity(run, resamples, seed) for label, run in data.pretrain.items()},
        comparison=comparison,
        resamples=resamples,
        seed=seed,
        answers=measure_runs(data.answers, resamples, seed),
    )


def _tables(runs: list[RunRecord]) -> dict[int, Path]:
    """Return where a row's predictions are, by seed; rows are paired by it. A Run that does not say has its place."""
    return {
        place if run.seed is None else run.seed: run.folder / "predictions.parquet" for place, run in enumerate(runs)
    }


def _held_out_perplexity(run: RunRecord, resamples: int, seed: int) -> dict[str, Any]:
    """Measure on test patients, or on validation patients where the test split has no notes; the split is named."""
    path = run.folder / "losses.parquet"
    return perplexity_metrics(path, resamples, seed, "test" if "test" in read_splits(path) else "validation")
