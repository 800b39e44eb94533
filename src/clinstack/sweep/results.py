"""What a sweep writes at its end: all trials, the best of them, and its recipe ready to run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from clinstack.errors import ClinstackError
from clinstack.files import replacing_file, write_json, write_text
from clinstack.recipe import SweepRecipe, dump_recipe
from clinstack.sweep.space import Space, Values, describe

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


@dataclass(frozen=True)
class TrialResult:
    """A trial as ``trials.json`` holds it.

    Parameters
    ----------
    number : int
        From 0; its Run is ``trials/<number>``.
    state : str
        ``complete``, ``pruned`` or ``failed`` (its loss was no number, or the base cannot have its values).
    value : float or None
        Of the sweep's metric on the validation patients: of the weights that were kept, or the last of a pruned trial.
    params : dict
        The value of each key of the space that it used.
    seconds : float or None
    validations : int
        How often it was measured.
    validation : dict or None
        All validation figures of the weights that were kept.
    reason : str or None
        Why it failed.
    """

    number: int
    state: str
    value: float | None
    params: Values
    seconds: float | None
    validations: int
    validation: dict[str, float] | None
    reason: str | None


def trial_result(trial: FrozenTrial, space: Space) -> TrialResult:
    """Return a finished trial of the storage in plain values."""
    return TrialResult(
        number=trial.number,
        state=_STATES[trial.state.name],
        value=trial.value,
        params=space.values_of(trial.params),
        seconds=trial.user_attrs.get("seconds"),
        validations=len(trial.intermediate_values),
        validation=trial.user_attrs.get("validation"),
        reason=trial.user_attrs.get("reason"),
    )


def best_of(results: Sequence[TrialResult], recipe: SweepRecipe) -> TrialResult:
    """Return the best complete trial, the earlier one on a tie.

    Raises
    ------
    ClinstackError
        If none is complete.
    """
    complete = [result for result in results if result.state == "complete" and result.value is not None]
    if not complete:
        reason = next((f": {result.reason}" for result in results if result.reason), ".")
        raise ClinstackError(f"None of the {len(results)} trials came to its end{reason}")
    sign = 1 if recipe.direction == "minimize" else -1
    return min(complete, key=lambda result: (sign * (result.value or 0.0), result.number))


def write_results(folder: Path, recipe: SweepRecipe, space: Space, results: Sequence[TrialResult]) -> None:
    """Write ``trials.json``, ``trials.parquet``, ``best.yaml`` and ``metrics.json`` into a sweep's Run."""
    best = best_of(results, recipe)
    write_json(folder / "trials.json", [asdict(result) for result in results])
    with replacing_file(folder / "trials.parquet") as temporary:
        pq.write_table(_table(results, space), temporary)
    head = f"# Trial {best.number} of the sweep {folder}: the best validation {recipe.metric} of {len(results)} trials."
    write_text(folder / "best.yaml", f"{head}\n{dump_recipe(space.recipe_of(best.params, folder / 'best'))}")
    states = Counter(result.state for result in results)
    metrics = {
        "metric": recipe.metric,
        "direction": recipe.direction,
        "best": asdict(best),
        "trials": {"total": len(results), **{state: states[state] for state in _STATES.values()}},
        "seconds": round(sum(result.seconds or 0.0 for result in results), 3),
    }
    write_json(folder / "metrics.json", metrics)


def results_table(results: Sequence[dict[str, Any]], metrics: dict[str, Any]) -> Table:
    """Return the trials as the console shows them: the best first, those that were given up last."""
    sign = 1 if metrics["direction"] == "minimize" else -1
    table = Table("trial", metrics["metric"], "state", "seconds", *_keys(results))
    for column in table.columns[:2]:
        column.justify = "right"
    order = list(_STATES.values())

    def rank(result: dict[str, Any]) -> tuple[int, float, int]:
        value = result["value"]
        return order.index(result["state"]), 0.0 if value is None else sign * value, result["number"]

    for result in sorted(results, key=rank):
        figure = "" if result["value"] is None else f"{result['value']:.4f}"
        seconds = "" if result["seconds"] is None else f"{result['seconds']:.0f}"
        values = [_cell(result["params"].get(key, "")) for key in _keys(results)]
        style = "bold" if result["number"] == metrics["best"]["number"] else ""
        table.add_row(str(result["number"]), figure, result["state"], seconds, *values, style=style)
    return table


def line_of(result: TrialResult, metric: str) -> str:
    """Return a trial on one line."""
    figure = "" if result.value is None else f" {metric} {result.value:.4f}"
    reason = f"; {result.reason}" if result.reason else ""
    return f"trial {result.number} {result.state}:{figure} ({describe(result.params)}){reason}"


def _keys(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for result in results for key in result["params"]))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _table(results: Sequence[TrialResult], space: Space) -> pa.Table:
    """Return the trials with a column for each key; a key whose values are of several kinds stands as JSON."""
    columns: dict[str, Any] = {
        "number": pa.array([result.number for result in results], pa.int64()),
        "state": pa.array([result.state for result in results], pa.string()),
        "value": pa.array([result.value for result in results], pa.float64()),
        "seconds": pa.array([result.seconds for result in results], pa.float64()),
        "validations": pa.array([result.validations for result in results], pa.int64()),
    }
    for key in space.entries:
        values = [result.params.get(key) for result in results]
        kinds = {type(value) for value in values if value is not None}
        if len(kinds) > 1 or kinds & {list, dict}:
            values = [
                json.dumps(value) if key in result.params else None
                for value, result in zip(values, results, strict=True)
            ]
        columns[f"params.{key}"] = pa.array(values)
    return pa.table(columns)
