"""The report's findings in words, generated from the figures."""

from __future__ import annotations

from clinstack.evaluate.compare import MACRO
from clinstack.report.summary import FROZEN, FROZEN_LORA, HEAD, Summary
from clinstack.report.tables import excludes_zero, interval, number, perplexity_digits, stack_name, task_name


def findings(summary: Summary) -> list[str]:
    """Return the headline sentences, as many as the figures allow."""
    sentences = [*_perplexity(summary), *_best(summary), *_against_head(summary)]
    waiting = [run.name for run in summary.data.unfinished]
    if waiting:
        sentences.append(f"Not in this report, because unfinished: {', '.join(waiting)}.")
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
        f"Of {len(known)} stacks, “{stack_name(stack)}” has the highest {_mean_auroc(summary, task)}: "
        f"{number(row['value'])}{_bracket(row['interval'])}"
    )
    head = summary.auroc(HEAD, task)
    if head and stack != HEAD:
        sentence += f"; the head alone on the unchanged base reaches {number(head['value'])}"
    return [sentence + "."]


def _against_head(summary: Summary) -> list[str]:
    task = headline_task(summary)
    if task is None:
        return []
    rows = [row for stack in summary.data.stacks if (row := summary.difference(stack, HEAD, task))]
    if not rows:
        return []
    above = [row for row in rows if excludes_zero(row, above=True)]
    below = [row for row in rows if excludes_zero(row, above=False)]
    listed = ", ".join(f"“{stack_name(row['a'])}” by {number(row['value'])}" for row in above)
    sentence = (
        f"{len(above)} of {len(rows)} stacks are above the head alone by a paired difference whose 95 % interval "
    )
    sentence += f"excludes 0: {listed}." if listed else "excludes 0."
    if below:
        sentence += f" Below it likewise: {', '.join(stack_name(row['a']) for row in below)}."
    return [sentence]


def _bracket(bounds: list[float] | None, *, signed: bool = False) -> str:
    return f" [{interval(bounds, signed=signed)}]" if bounds else ""


def frozen_sentences(summary: Summary) -> list[str]:
    """Say whether a second adapter on the frozen clinical one changes anything, and why that is worth a sentence."""
    task = headline_task(summary)
    row = summary.difference(FROZEN_LORA, FROZEN, task) if task else None
    if row is None or task is None:
        return []
    if excludes_zero(row, above=True):
        verdict = "so the second adapter adds to the first"
    elif excludes_zero(row, above=False):
        verdict = "so here the second adapter made it worse"
    else:
        verdict = "an interval that includes 0: these data do not show that the second adapter adds anything"
    return [
        f"“{stack_name(FROZEN_LORA)}” minus “{stack_name(FROZEN)}” is {number(row['value'], signed=True)} in "
        f"{_mean_auroc(summary, task)}{_bracket(row['interval'], signed=True)}, {verdict}.",
        "In the code published with Gema et al. (2023) these two rows were the same computation: with the PEFT "
        "versions pinned there the second adapter never entered the forward pass and got no gradient, and training "
        "losses with and without it were bit-identical. (Whether the printed figures came from exactly that code is "
        "not known.) Here both adapters are active; a stack in which one of them does not change the output is refused "
        "when it is built.",
    ]
