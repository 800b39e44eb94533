"""The report's findings in words, generated from the figures."""

from __future__ import annotations

from clinstack.evaluate.compare import MACRO
from clinstack.report.summary import FROZEN, FROZEN_LORA, Summary
from clinstack.report.tables.cells import holds, interval, number, p_value, perplexity_digits
from clinstack.report.tables.names import row_name, task_name
from clinstack.report.tables.outcomes import reference_name

_NAMED = 10
_LISTED = 5


def findings(summary: Summary) -> list[str]:
    """Return the headline sentences, as many as the figures allow."""
    sentences = [*_perplexity(summary), *_best(summary), *_against_reference(summary)]
    waiting = [run.name for run in summary.data.unfinished]
    if waiting:
        listed = ", ".join(waiting[:_NAMED]) + (f" and {len(waiting) - _NAMED} more" if len(waiting) > _NAMED else "")
        sentences.append(f"Not in this report, because unfinished: {listed}.")
    sentences += [f"Not in this report: {name}, because {reason}." for name, reason in summary.data.failures.items()]
    return sentences


def headline_task(summary: Summary) -> str | None:
    """Return what the headline figures are about: the mean over tasks, or the only task."""
    if not summary.tasks:
        return None
    return summary.tasks[0] if len(summary.tasks) == 1 else MACRO


def _perplexity(summary: Summary) -> list[str]:
    sentences = []
    for label, figures in summary.perplexity.items():
        base, adapted = figures["base"]["perplexity"], figures["adapted"]["perplexity"]
        ratio = figures["ratio"]
        if base["value"] is None or ratio["value"] is None:
            continue
        change = f"{number(ratio['value'], 1)} times lower" if ratio["value"] >= 1 else "not lower"
        name = "" if len(summary.perplexity) == 1 else f" ({label})"
        between = f" (95 % interval of the ratio {interval(ratio['interval'], 2)})" if ratio["interval"] else ""
        sentences.append(
            f"Pretraining on notes{name} took the perplexity of {figures['notes']:,} held-out notes of "
            f"{figures['patients']:,} patients from {number(base['value'], perplexity_digits(base['value']))} to "
            f"{number(adapted['value'], perplexity_digits(adapted['value']))}, {change}{between}."
        )
    return sentences


def _mean_auroc(summary: Summary, task: str) -> str:
    if task != MACRO:
        return f"AUROC on {task_name(task)}"
    return f"mean AUROC over {', '.join(task_name(one) for one in summary.tasks)}"


def _best(summary: Summary) -> list[str]:
    task = headline_task(summary)
    if task is None:
        return []
    known = [(row["value"], stack, row) for stack in summary.data.stacks if (row := summary.auroc(stack, task))]
    if len(known) < 2:
        return []
    _, stack, row = max(known, key=lambda entry: entry[0])
    sentence = (
        f"Of {len(known)} rows, “{row_name(summary.data, stack)}” has the highest {_mean_auroc(summary, task)}: "
        f"{number(row['value'])}{_bracket(row['interval'])}"
    )
    reference = summary.data.reference_of(stack)
    against = summary.auroc(reference, task) if reference is not None else None
    if against and reference is not None:
        what = (
            "the head alone on the unchanged base" if reference == "head" else f"“{row_name(summary.data, reference)}”"
        )
        sentence += f"; {what} reaches {number(against['value'])}"
    return [sentence + "."]


def _against_reference(summary: Summary) -> list[str]:
    task = headline_task(summary)
    if task is None:
        return []
    rows = [row for stack in summary.data.stacks if (row := summary.against_reference(stack, task))]
    if not rows:
        return []
    above = [row for row in rows if holds(row, above=True)]
    below = [row for row in rows if holds(row, above=False)]
    above.sort(key=lambda row: -row["value"])
    listed = ", ".join(f"“{row_name(summary.data, row['a'])}” by {number(row['value'])}" for row in above[:_LISTED])
    listed += f" and {len(above) - _LISTED} more" if len(above) > _LISTED else ""
    verb = "is" if 1 in (len(above), len(rows)) else "are"
    sentence = (
        f"{len(above)} of {len(rows)} {'row' if len(rows) == 1 else 'rows'} {verb} above {reference_name(summary)} in "
        f"{_mean_auroc(summary, task)} by a paired difference that holds after Holm's correction"
    )
    sentence += f": {listed}." if listed else "."
    if below:
        sentence += f" Below it likewise: {', '.join(row_name(summary.data, row['a']) for row in below)}."
    return [sentence]


def _bracket(bounds: list[float] | None, *, signed: bool = False) -> str:
    return f" [{interval(bounds, signed=signed)}]" if bounds else ""


def frozen_sentences(summary: Summary) -> list[str]:
    """Say whether a second adapter on the frozen clinical one changes anything, and why that is worth a sentence."""
    task = headline_task(summary)
    sentences = []
    for rows in summary.data.bases.values():
        keys = {row.spec: row.key for row in rows}
        two, one = keys.get(FROZEN_LORA), keys.get(FROZEN)
        difference = summary.difference(two, one, task) if task and two and one else None
        if difference is None or task is None or two is None or one is None:
            continue
        if holds(difference, above=True):
            verdict = "so the second adapter adds to the first"
        elif holds(difference, above=False):
            verdict = "so here the second adapter made it worse"
        else:
            verdict = (
                "which does not hold after the correction: these data do not show that the second adapter adds anything"
            )
        p = p_value(difference.get("p_holm"))
        sentences.append(
            f"“{row_name(summary.data, two)}” minus “{row_name(summary.data, one)}” is "
            f"{number(difference['value'], signed=True)} in {_mean_auroc(summary, task)}"
            f"{_bracket(difference['interval'], signed=True)}{', ' + p if p else ''}, {verdict}."
        )
    if not sentences:
        return []
    return [
        *sentences,
        "In the code published with Gema et al. (2023) these two rows were the same computation: with the PEFT "
        "versions pinned there the second adapter never entered the forward pass and got no gradient, and training "
        "losses with and without it were bit-identical. (Whether the printed figures came from exactly that code is "
        "not known.) Here both adapters are active; a stack in which one of them does not change the output is refused "
        "when it is built.",
    ]
