"""Generate Runs in a report: whose answers are nearest to the references, what the notes say of them, refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clinstack.evaluate.predictions import read_splits
from clinstack.evaluate.text import text_metrics
from clinstack.evaluate.text_compare import ALL, compare_answers, read_measures, same_examples
from clinstack.report.collect import RunRecord

MEASURES = "measures.parquet"
NAMES = {
    "token_f1": "Token F1",
    "exact_match": "Exact match",
    "item_f1": "Item F1",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "grounding": "Grounding",
    "grounded_answers": "Grounded answers",
    "refusal_sensitivity": "Refusal sensitivity",
    "refusal_specificity": "Refusal specificity",
    "empty": "Empty",
    "cut": "Cut",
    "answer_tokens": "Tokens",
}
_BASE = "base"


@dataclass(frozen=True)
class Answers:
    """The figures of all generate Runs, computed once from their measures.

    Parameters
    ----------
    runs : dict of row name to RunRecord
        In the order of the tables: untouched bases first.
    split : str
        Whose questions were answered.
    metrics : dict of row name to dict
        As `text_metrics` returns them.
    differences : list of dict
        As `compare_answers` returns them.
    references : dict of row name to row name
        The untouched base that a row is held against.
    unpaired : list of str
        Rows that answered other questions than most, and so stand in no difference.
    without : list of str
        Rows without an answer to a question of the split.
    """

    runs: dict[str, RunRecord] = field(default_factory=dict)
    split: str = "test"
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    differences: list[dict[str, Any]] = field(default_factory=list)
    references: dict[str, str] = field(default_factory=dict)
    unpaired: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    def difference(self, a: str, b: str | None, metric: str, task: str = ALL) -> dict[str, Any] | None:
        """Return the figure of a minus that of b."""
        keys = {"a": a, "b": b, "metric": metric, "task": task}
        return next((row for row in self.differences if all(row[key] == keys[key] for key in keys)), None)

    def tasks(self) -> list[str]:
        """Return the names of the tasks, by alphabet."""
        return sorted({task for metrics in self.metrics.values() for task in metrics["by_task"]})

    def to_dict(self) -> dict[str, Any]:
        """Return what ``report.json`` has of answers: ``answers``, a row for each Run, and ``answer_differences``."""
        if not self.runs:
            return {}
        rows = [
            {
                "answers": name,
                "run": self.runs[name].name,
                "base": self.runs[name].base,
                "stack": self.runs[name].label,
                "shots": shots_of(self.runs[name]),
                **{key: value for key, value in metrics.items() if key != "bootstrap"},
            }
            for name, metrics in self.metrics.items()
        ]
        return {"answers": rows, "answer_differences": [dict(row) for row in self.differences]}


def name_runs(runs: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Return generate Runs by the names of their rows: untouched bases first, each by its solved examples.

    Where two would be called alike, the name says their folders too.
    """
    several = len({run.base for run in runs}) > 1
    ordered = sorted(runs, key=lambda run: (str(run.base), run.label != _BASE, shots_of(run), run.label, run.name))
    called = [f"{run.base}: {_name(run)}" if several else _name(run) for run in ordered]
    often = Counter(called)
    return {f"{name} ({run.name})" if often[name] > 1 else name: run for name, run in zip(called, ordered, strict=True)}


def _name(run: RunRecord) -> str:
    shots = shots_of(run)
    shown = f", {shots} shot{'s' if shots > 1 else ''}" if shots else ""
    return f"Base{shown or ', zero-shot'}" if run.label == _BASE else f"{run.label}{shown}"


def shots_of(run: RunRecord) -> int:
    """Return how many solved examples stand in a Run's prompt."""
    return int(run.record.get("shots") or 0)


def measure_runs(runs: Mapping[str, RunRecord], resamples: int, seed: int) -> Answers:
    """Compute the figures of all Runs, and their paired differences.

    Parameters
    ----------
    runs : mapping of row name to RunRecord
    resamples, seed : int
        Of the bootstrap over patients; the same draws for all Runs of the same questions.

    Raises
    ------
    InputError
        A Run's measures are missing or broken.
    """
    if not runs:
        return Answers()
    splits = {name: read_splits(run.folder / MEASURES) for name, run in runs.items()}
    split = next(one for one in ("test", "validation", "train") if any(one in found for found in splits.values()))
    shown = {name: run for name, run in runs.items() if split in splits[name]}
    tables = {name: read_measures(run.folder / MEASURES, split) for name, run in shown.items()}
    groups: list[list[str]] = []
    for name, table in tables.items():
        own = next((group for group in groups if same_examples(tables[group[0]], table)), None)
        if own is None:
            groups.append([name])
        else:
            own.append(name)
    paired = max(groups, key=len)
    references = _references({name: shown[name] for name in paired})
    pairs = _pairs({name: shown[name] for name in paired}, references)
    return Answers(
        runs=dict(shown),
        split=split,
        metrics={name: text_metrics(table, resamples, seed, split) for name, table in tables.items()},
        differences=compare_answers({name: tables[name] for name in paired}, pairs, resamples, seed, split),
        references=references,
        unpaired=[name for name in shown if name not in paired],
        without=[name for name in runs if name not in shown],
    )


def _references(runs: Mapping[str, RunRecord]) -> dict[str, str]:
    """Return for each row the untouched base without solved examples that it stands on."""
    bases: dict[str | None, str] = {}
    for name, run in runs.items():
        if run.label == _BASE and not shots_of(run):
            bases.setdefault(run.stack.get("fingerprint"), name)
    found = {name: bases.get(run.stack.get("fingerprint")) for name, run in runs.items()}
    return {name: base for name, base in found.items() if base is not None and base != name}


def _pairs(runs: Mapping[str, RunRecord], references: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return each row against its base, then tuned ones against prompted ones, and against what they stand on."""
    pairs = list(references.items())
    same_base = [
        (a, b)
        for a in runs
        for b in runs
        if a != b and runs[a].stack.get("fingerprint") == runs[b].stack.get("fingerprint")
    ]
    tuned = {name for name, run in runs.items() if run.label != _BASE}
    pairs += [(a, b) for a, b in same_base if a in tuned and runs[b].label == _BASE and shots_of(runs[b])]
    pairs += [(a, b) for a, b in same_base if runs[a].label.startswith(f"{runs[b].label}+") and b in tuned]
    return list(dict.fromkeys(pairs))
