"""Tables 1 to 4 as printed in Gema et al. (2023), arXiv 2307.03042; read off the pictures in the authors' README.

Table 2: LLaMA and PMC-LLaMA of 7 billion parameters, pretrained on MIMIC-IV notes (2,653,149, split at random by note),
of which the published code reads the first 128 tokens, padded; perplexity there is the exponential of the mean over
batches of their mean losses. Times are of one epoch on an A100 with 80 GB.

Tables 3 and 4: AUROC in per cent on the test patients of MIMIC-III, one run for each figure, no interval. The figures
are those of June 2023, before the first version on arXiv. Pictures of August 2023 differ in one row, `REVISED`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

PAPER = "Gema et al. (2023)"
ARXIV = "arXiv 2307.03042"
SOURCE = "Gema et al. (2023), Table 2, https://arxiv.org/abs/2307.03042"


@dataclass(frozen=True)
class PublishedRow:
    """A row of the paper's table."""

    base: str
    method: str
    trainable_parameters: int
    share: str
    """Per cent of the base's parameters, with the paper's digits."""
    train_perplexity: str
    test_perplexity: str
    time: str
    """Hours, minutes and seconds of the training."""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as it stands in ``table2.json``."""
        return {
            "base": self.base,
            "method": self.method,
            "trainable_parameters": self.trainable_parameters,
            "trainable_percent": float(self.share),
            "train_perplexity": float(self.train_perplexity),
            "test_perplexity": float(self.test_perplexity),
            "time": self.time,
        }


TABLE2 = (
    PublishedRow("LLaMA", "lora", 8_388_608, "0.12", "1.858", "2.244", "21:37:42"),
    PublishedRow("LLaMA", "adaption_prompt", 1_228_830, "0.02", "2.561", "2.865", "24:57:17"),
    PublishedRow("LLaMA", "prefix", 5_242_880, "0.08", "2.815", "2.748", "20:11:07"),
    PublishedRow("LLaMA", "prompt", 61_440, "0.0009", "4.846", "4.007", "23:27:28"),
    PublishedRow("LLaMA", "p_tuning", 16_093_696, "0.24", "2.723", "3.271", "23:49:31"),
    PublishedRow("PMC-LLaMA", "lora", 2_097_152, "0.03", "1.938", "2.404", "21:32:59"),
    PublishedRow("PMC-LLaMA", "adaption_prompt", 1_228_830, "0.018", "2.374", "2.867", "23:33:10"),
    PublishedRow("PMC-LLaMA", "prefix", 2_621_440, "0.04", "1.789", "2.848", "20:13:10"),
    PublishedRow("PMC-LLaMA", "prompt", 40_960, "0.0006", "4.821", "4.385", "22:25:32"),
    PublishedRow("PMC-LLaMA", "p_tuning", 2_171_392, "0.03", "3.491", "4.572", "22:28:15"),
)
"""In the order of the paper. LoRA has the lowest test perplexity on both bases."""


def published_row(base: str | None, method: str) -> PublishedRow | None:
    """Return the paper's row for a method on one of its two bases; None where the paper has none."""
    return next((row for row in TABLE2 if (row.base, row.method) == (base, method)), None)


@dataclass(frozen=True)
class PublishedData:
    """A row of the paper's Table 1."""

    task: str
    classes: int
    multilabel: bool
    train: int
    validation: int
    test: int


TABLE1 = (
    PublishedData("length_of_stay", 4, False, 30_421, 4_391, 8_797),
    PublishedData("mortality", 2, False, 33_954, 4_908, 9_822),
    PublishedData("prolonged_ventilation", 2, False, 5_666, 707, 706),
    PublishedData("diagnoses", 1_266, True, 33_994, 4_918, 9_829),
    PublishedData("procedures", 711, True, 30_030, 4_357, 8_681),
)
"""In the order of the paper. In the picture of June 2023 the first and third have each other's number of classes."""

MEAN = "macro"
"""Stands in the place of a task for the mean over tasks."""
_COLUMNS = ("prolonged_ventilation", "mortality", "length_of_stay", "diagnoses", "procedures", MEAN)


@dataclass(frozen=True)
class PublishedAuroc:
    """A row of the paper's Table 3 or 4: per cent, as printed.

    Parameters
    ----------
    table : {"table3", "table4"}
    base, spec : str
        The paper's name of the model, and the label of the stack in this package (encoders: ``full`` or ``lora``).
    figures : tuple of str
        Of the five tasks in the paper's order (PMV, MOR, LOS, DIAG, PROC), then the mean.
    """

    table: str
    base: str
    spec: str
    figures: tuple[str, ...]

    def printed(self, task: str) -> str | None:
        """Return the figure of a task (``macro``: the mean) with the paper's digits; None for a task it has not."""
        return dict(zip(_COLUMNS, self.figures, strict=True)).get(task)

    @property
    def arithmetic_mean(self) -> float:
        """The mean of the five printed figures, which the printed mean ought to be."""
        return sum(float(figure) for figure in self.figures[:5]) / 5

    @property
    def mean_is_a_slip(self) -> bool:
        """Whether the printed mean is further from that of the printed figures than rounding can bring it."""
        # Each of five figures and the mean itself is rounded to 0.01: half of that each way, and no more.
        return abs(self.arithmetic_mean - float(self.figures[5])) > 0.01 + 1e-9


def _row(table: str, base: str, spec: str, figures: str) -> PublishedAuroc:
    return PublishedAuroc(table, base, spec, tuple(figures.split()))


TABLE3 = (
    _row("table3", "BlueBERT", "full", "53.12 76.95 66.36 73.81 77.70 69.59"),
    _row("table3", "UmlsBERT", "full", "55.49 75.87 66.06 64.34 74.19 67.19"),
    _row("table3", "Bio+ClinicalBERT", "full", "54.49 72.92 65.13 65.97 71.73 66.05"),
    _row("table3", "CORe", "full", "52.11 71.52 64.17 72.40 72.73 66.59"),
    _row("table3", "LLaMA", "head", "51.38 66.80 57.65 60.06 63.83 58.61"),
    _row("table3", "LLaMA", "lora", "51.65 74.89 65.70 78.37 87.49 71.62"),
    _row("table3", "LLaMA", "clinical-frozen", "51.62 65.66 58.16 63.47 69.01 61.58"),
    _row("table3", "LLaMA", "clinical-frozen+lora", "51.11 66.00 58.04 60.46 65.30 60.18"),
    _row("table3", "LLaMA", "clinical-trainable", "55.76 74.81 64.83 76.07 82.76 70.85"),
    _row("table3", "LLaMA", "clinical-trainable+lora", "56.72 76.99 65.86 78.29 86.17 72.81"),
    _row("table3", "PMC-LLaMA", "head", "53.06 66.77 57.94 60.17 64.63 60.51"),
    _row("table3", "PMC-LLaMA", "lora", "53.84 78.03 66.14 78.81 86.68 72.70"),
    _row("table3", "PMC-LLaMA", "clinical-frozen", "51.33 67.19 58.13 63.59 68.26 60.06"),
    _row("table3", "PMC-LLaMA", "clinical-frozen+lora", "50.90 67.00 58.31 60.50 64.42 60.23"),
    _row("table3", "PMC-LLaMA", "clinical-trainable", "52.88 75.86 65.89 79.66 86.85 72.23"),
    _row("table3", "PMC-LLaMA", "clinical-trainable+lora", "52.21 76.54 68.42 78.67 87.08 72.58"),
)
"""In the order of the paper; encoders are fine-tuned whole."""

TABLE4 = (
    _row("table4", "BlueBERT", "full", "53.12 76.95 66.36 73.81 77.70 69.59"),
    _row("table4", "BlueBERT", "lora", "55.77 81.90 70.48 70.66 78.10 71.56"),
    _row("table4", "UmlsBERT", "full", "55.49 75.87 66.06 64.34 74.19 67.19"),
    _row("table4", "UmlsBERT", "lora", "56.59 80.33 69.03 69.68 77.53 70.63"),
    _row("table4", "Bio+ClinicalBERT", "full", "54.49 72.92 65.13 65.97 71.73 66.05"),
    _row("table4", "Bio+ClinicalBERT", "lora", "56.13 78.81 68.28 68.53 75.19 69.39"),
    _row("table4", "CORe", "full", "52.11 71.52 64.17 72.40 72.73 66.59"),
    _row("table4", "CORe", "lora", "55.31 79.27 68.18 67.34 72.36 68.49"),
    _row("table4", "LLaMA", "clinical-trainable+lora", "56.72 76.62 65.86 78.29 86.17 72.81"),
)
"""In the order of the paper. The last row stands in Table 3 too, there with another MOR."""

REVISED = _row("table3", "LLaMA", "clinical-trainable+lora", "56.72 77.36 66.32 78.52 87.15 73.21")
"""The row of both tables in the authors' pictures of August 2023; all other rows stayed as they were."""

_TABLES = {"table3": TABLE3, "table4": TABLE4}
PAPER_TABLES = tuple(_TABLES)
"""The tables of the paper that a grid study can end in."""


def published_auroc_rows(table: str) -> tuple[PublishedAuroc, ...]:
    """Return the paper's rows of ``table3`` or ``table4``; none of another table."""
    return _TABLES.get(table, ())


def published_auroc_row(table: str, base: str, spec: str) -> PublishedAuroc | None:
    """Return the paper's row of a base and a stack; None where the paper has none.

    Capitals and signs in the base's name do not count: ``bio-clinicalbert`` is Bio+ClinicalBERT.
    """
    wanted = _plain(base), spec
    return next((row for row in published_auroc_rows(table) if (_plain(row.base), row.spec) == wanted), None)


def published_auroc(table: str, base: str, spec: str, task: str) -> float | None:
    """Return a printed AUROC in per cent (task ``macro``: the printed mean); None where the paper has none."""
    row = published_auroc_row(table, base, spec)
    figure = None if row is None else row.printed(task)
    return None if figure is None else float(figure)


def slips(table: str) -> list[str]:
    """Say, for each row of Table 3 or 4 whose printed mean is not that of its printed figures, what the mean is."""
    names = {"head": "*", "full": ""}
    return [
        f"{row.base}{names.get(row.spec, f' {row.spec}')}: printed {row.printed(MEAN)}, the printed figures' mean is "
        f"{row.arithmetic_mean:.2f}"
        for row in published_auroc_rows(table)
        if row.mean_is_a_slip
    ]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
