"""Judge Runs in a report: what a language model gave the answers, and how far it can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clinstack.report.collect import RunRecord
from clinstack.report.tables.cells import MISSING, Cell, Table, count, duration, figure, number, p_value

SECTION = "judged"
TITLE = "What a language model judged"
_DIGITS = 2


def judged_runs(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the finished judge Runs."""
    return [run for run in runs if run.stage == "judge" and run.record.get("status") == "done"]


def judged_sentences(runs: Sequence[RunRecord]) -> list[str]:
    """Say of each judge how many scores are missing, what an answer's place did, and how far it can be believed."""
    sentences = []
    for run in runs:
        metrics = run.metrics
        counts, position = metrics["counts"], metrics["position"]
        name = metrics["judge"]["model"]
        missing = sum(scores["missing"] for scores in metrics["scores"].values())
        given = sum(scores["given"] for scores in metrics["scores"].values())
        sentences.append(
            f"{name} graded the answers to {counts['examples']:,} instructions of {counts['patients']:,} patients, in "
            f"{counts['questions']:,} questions. {missing:,} of {missing + given:,} scores are missing: "
            f"{counts['unparsed']:,} replies could not be read, {counts['unanswered']:,} questions got none. Such "
            "scores are in no mean."
        )
        if position["flipped"]["value"] is not None:
            sentences.append(
                f"The same answer got {_with_interval(position['earlier_minus_later'], signed=True)} points when it "
                f"stood before the other rather than behind it. In {_percent(position['flipped'])} of the pairs "
                "the better answer was the worse one when they were turned round."
            )
        agreed = metrics["agreement"]
        if "human" in agreed:
            human = agreed["human"]
            sentences.append(
                f"Against people, on {human['answers']:,} answers: quadratic kappa "
                f"{_with_interval(human['kappa_quadratic'])}, the same grade in {_percent(human['exact'])}."
            )
        else:
            sentences.append(f"Nobody held the grades of {name} against people's: they say what a model prefers.")
        learned = metrics["judge"]["splits"].get("train", 0)
        if learned:
            sentences.append(f"{learned:,} of the instructions are of training patients: a tuned model has seen them.")
    return sentences


def judged_dict(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Return what ``report.json`` holds of judges: each one's metrics by the name of its Run; empty without any."""
    judges = judged_runs(runs)
    return {"judged": {run.name: run.metrics for run in judges}} if judges else {}


def judged_tables(runs: Sequence[RunRecord]) -> list[Table]:
    """Return the tables of judge Runs: scores, differences, and agreement."""
    tables = [_scores_table(runs), _differences_table(runs), _agreement_table(runs)]
    return [table for table in tables if table.rows]


def _scores_table(runs: Sequence[RunRecord]) -> Table:
    rows: list[tuple[str, list[Cell]]] = []
    groups: dict[int, str] = {}
    for run in runs:
        groups[len(rows)] = _name(run)
        for label, scores in run.metrics["scores"].items():
            cells = [figure(scores["mean"], _DIGITS), figure(scores["excellent"], _DIGITS)]
            cells += [count(scores["grades"][grade]) for grade in ("1", "2", "3", "4")]
            rows.append((label, [*cells, count(scores["missing"]), count(scores["examples"])]))
    return Table(
        "judge-scores",
        "Grades by a language model",
        "From 1 (unacceptable) to 4 (excellent), the mean over the orders in which the judge saw an answer, then over "
        "examples; beside it the 95 % interval over patients. Excellent is the share of fours. Missing scores could "
        "not be read or were not given; they are in no mean.",
        ["Answers", "Mean", "Excellent", "1", "2", "3", "4", "Missing", "Examples"],
        rows,
        groups=groups,
    )


def _differences_table(runs: Sequence[RunRecord]) -> Table:
    rows: list[tuple[str, list[Cell]]] = []
    groups: dict[int, str] = {}
    for run in runs:
        groups[len(rows)] = _name(run)
        wins = {(row["a"], row["b"]): row for row in run.metrics["wins"]}
        for row in run.metrics["differences"]:
            won = wins[row["a"], row["b"]]
            cells = [
                figure(row, _DIGITS, signed=True, strong=row["holds"]),
                Cell(p_value(row["p_holm"]).removeprefix("p = ").removeprefix("p ") or MISSING),
                figure(won, _DIGITS),
                Cell(f"{won['won']:,} / {won['tied']:,} / {won['lost']:,}"),
            ]
            rows.append((f"{row['a']} − {row['b']}", cells))
    return Table(
        "judge-differences",
        "Differences between answers to the same instructions",
        "Paired by example; bold where the p-value, corrected for all differences of the judge (Holm), is at most "
        "0.05. The win rate counts questions in which the first got the higher grade, a tie as half.",
        ["Difference", "Points", "p (Holm)", "Win rate", "Won / tied / lost"],
        rows,
        groups=groups,
    )


def _agreement_table(runs: Sequence[RunRecord]) -> Table:
    rows: list[tuple[str, list[Cell]]] = []
    groups: dict[int, str] = {}
    for run in runs:
        groups[len(rows)] = _name(run)
        for key, name in (("orders", "Judge, turned round"), ("human", "Judge and people")):
            found = run.metrics["agreement"].get(key)
            if found:
                cells = [figure(found[part], _DIGITS) for part in ("kappa", "kappa_quadratic", "exact")]
                rows.append((name, [*cells, count(found["ratings"])]))
    return Table(
        "judge-agreement",
        "How far grades agree",
        "Cohen's kappa: 0 is chance, 1 is perfect; quadratic kappa weighs a disagreement by its square. The judge with "
        "itself, when the same answers stood in another order, and with people where their grades were given.",
        ["Between", "Kappa", "Quadratic kappa", "Same grade", "Ratings"],
        rows,
        groups=groups,
    )


def _name(run: RunRecord) -> str:
    return f"{run.metrics['judge']['model']} ({run.name})"


def _with_interval(estimate: Mapping[str, Any], *, signed: bool = False) -> str:
    if estimate["value"] is None:
        return "an unknown number of" if signed else "unknown"
    value = number(estimate["value"], _DIGITS, signed=signed)
    if estimate["interval"] is None:
        return value
    low, high = (number(bound, _DIGITS, signed=signed) for bound in estimate["interval"])
    return f"{value} ({low} to {high})"


def _percent(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "an unknown share"
    value = f"{100 * estimate['value']:.0f} %"
    if estimate["interval"] is None:
        return value
    low, high = estimate["interval"]
    return f"{value} ({100 * low:.0f} to {100 * high:.0f})"


def judge_figures(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return what a person at the terminal wants first of a judge Run's metrics."""
    counts = metrics["counts"]
    result = {
        f"{label}, mean grade": f"{_with_interval(scores['mean'])}; excellent {_percent(scores['excellent'])}"
        for label, scores in metrics["scores"].items()
    }
    for row in metrics["differences"]:
        p = p_value(row["p_holm"])
        result[f"{row['a']} − {row['b']}"] = _with_interval(row, signed=True) + (f", {p} (Holm)" if p else "")
    result["flipped when turned round"] = f"{_percent(metrics['position']['flipped'])} of pairs"
    if "human" in metrics["agreement"]:
        result["quadratic kappa with people"] = _with_interval(metrics["agreement"]["human"]["kappa_quadratic"])
    result["could not be read"] = f"{counts['unparsed']:,} of {counts['questions']:,} replies"
    if counts["unanswered"]:
        result["without a reply"] = f"{counts['unanswered']:,} of {counts['questions']:,} questions"
    return result


def estimate_sentence(estimate: Mapping[str, Any]) -> str:
    """Say what questions will come to, before they are asked."""
    time = duration(estimate["seconds"]).text
    cost = "" if estimate["cost"] is None else f", costing at most {estimate['cost']:,.2f} at your prices"
    stored = f" ({estimate['in_store']:,} more are answered already)" if estimate["in_store"] else ""
    return (
        f"{estimate['requests']:,} questions{stored}: about {estimate['prompt_tokens']:,} tokens to read, at most "
        f"{estimate['completion_tokens']:,} to write{cost}; about {time} at most. Replies that cannot be read are "
        "asked for again."
    )
