"""All figures of a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from clinstack.report.collect import RunRecord
from clinstack.report.figures.answers import answer_figures
from clinstack.report.figures.canvas import Drawing
from clinstack.report.figures.forest import forest_figures
from clinstack.report.figures.language import learning_curves, perplexity_bars, pretraining_curves
from clinstack.report.figures.probabilities import decision_figure, reliability_figure
from clinstack.report.figures.ranking import precision_recall_figure, roc_figure
from clinstack.report.summary import Summary
from clinstack.report.tables.names import stack_label


@dataclass(frozen=True)
class Drawings:
    """All figures of a report; each list may be empty."""

    perplexity: list[Drawing]
    pretraining: list[Drawing]
    roc: list[Drawing]
    precision_recall: list[Drawing]
    forest: list[Drawing]
    calibration: list[Drawing]
    decision: list[Drawing]
    learning: list[Drawing]
    answers: list[Drawing]

    @property
    def all(self) -> list[Drawing]:
        """Every figure."""
        return [drawing for one in fields(self) for drawing in getattr(self, one.name)]


def draw(summary: Summary) -> Drawings:
    """Draw what there is to draw."""
    caveat = summary.data.caveat
    tasks = summary.tasks
    return Drawings(
        perplexity=[perplexity_bars(label, figures, caveat) for label, figures in summary.perplexity.items()],
        pretraining=_there([pretraining_curves(_named(summary), "learning-pretraining", caveat)]),
        roc=_there(roc_figure(summary, task, caveat) for task in tasks),
        precision_recall=_there(precision_recall_figure(summary, task, caveat) for task in tasks),
        forest=forest_figures(summary, caveat),
        calibration=_there(reliability_figure(summary, task, caveat) for task in tasks),
        decision=_there(decision_figure(summary, task, caveat) for task in tasks),
        learning=_there(learning_curves(summary, task, caveat) for task in tasks),
        answers=answer_figures(summary.answers, caveat),
    )


def _named(summary: Summary) -> dict[str, RunRecord]:
    return {stack_label(label): run for label, run in summary.data.pretrain.items()}


def _there(drawings: Iterable[Drawing | None]) -> list[Drawing]:
    return [drawing for drawing in drawings if drawing is not None]
