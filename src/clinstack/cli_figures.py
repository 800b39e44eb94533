"""The figures of a finished Run that a person wants first, for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clinstack.run import Run

_OF_ANSWERS = ("token_f1", "exact_match", "rougeL", "grounding", "refusal_sensitivity", "refusal_specificity")


def run_figures(metrics: dict[str, Any]) -> dict[str, str]:
    """Return the figures of a Run that a person wants first, with their intervals."""
    splits = {name: metrics[name] for name in ("train", "validation", "test") if isinstance(metrics.get(name), dict)}
    result = {}
    for split, figures in splits.items():
        chosen = {name: figures[name]["perplexity"] for name in ("base", "adapted") if name in figures}
        if "primary" in figures:
            chosen = {figures["primary"]: figures[figures["primary"]], "auprc": figures["auprc"]}
        if "token_f1" in figures:
            chosen = {name: figures[name] for name in _OF_ANSWERS if name in figures}
        for name, figure in chosen.items():
            kind = "perplexity, " if name in {"base", "adapted"} else ""
            result[f"{split} {kind}{name}"] = _figure(figure, "")
        result |= {f"{split} {name}": value for name, value in _decision_figures(figures).items()}
        for item in figures.get("differences", []):
            task = f", {item['task']}" if "token_f1" in figures and item["task"] != "all" else ""
            result[f"{split} difference, {item['metric']}{task}"] = _figure(item, "+")
    if "judge" in metrics:
        from clinstack.report.judged import judge_figures

        result |= judge_figures(metrics)
    return result


def _decision_figures(figures: dict[str, Any]) -> dict[str, str]:
    """Return F1 and how far probabilities are from what happens, where they were measured."""
    result = {}
    decided = figures.get("threshold")
    if decided is not None:
        name = "F1" if figures["task"]["kind"] == "binary" else "macro F1"
        chosen = f" at the threshold of {decided['chosen_on']}" if "chosen_on" in decided else ""
        result[name + chosen] = _figure(decided["f1"], "")
    for method, fit in figures.get("calibration", {}).items():
        error = _figure(fit["ece"], "")
        result["calibration error"] = error if method == "none" else f"{result['calibration error']}; {method} {error}"
    return result


def _figure(figure: dict[str, Any], sign: str) -> str:
    """Write a value and its interval; either is None where the data cannot tell."""
    if figure["value"] is None:
        return "unknown"
    if figure["interval"] is None:
        return f"{figure['value']:{sign}.3f}"
    low, high = figure["interval"]
    return f"{figure['value']:{sign}.3f}  [{low:{sign}.3f}, {high:{sign}.3f}]"


def privacy_figures(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what a private Run promises; nothing of any other."""
    privacy = record.get("privacy")
    if not privacy:
        return {}
    cost = f"epsilon {privacy['epsilon']:.3g} at delta {privacy['delta']:.2g} for each {privacy['unit']}"
    how = f"{privacy['steps']:,} steps, noise multiplier {privacy['noise_multiplier']:.3g}, {privacy['accountant']}"
    figures = {"privacy of this training": f"{cost} ({how})"}
    return figures | ({"privacy of the stack": privacy["sentence"]} if "sentence" in privacy else {})


def prediction_lines(run: Run) -> list[str]:
    """Return what a person wants to know of finished predictions first."""
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    tokens = metrics["tokens"]
    lines = [f"rows: {metrics['rows']:,}"]
    if metrics["rows_left_out"]:
        lines.append(f"rows without text, left out: {metrics['rows_left_out']:,}")
    lines.append(f"tokens: {tokens['read']:,} read, {tokens['cut']:,} cut from {tokens['rows_cut']:,} rows")
    calibrated = "not calibrated" if metrics["calibration"] == "none" else f"calibrated ({metrics['calibration']})"
    lines.append(f"probabilities: {calibrated}, {'with' if metrics['intervals'] else 'without'} intervals")
    if "rows_per_second" in run.record:
        lines.append(f"rows per second: {run.record['rows_per_second']:,}")
    return lines
