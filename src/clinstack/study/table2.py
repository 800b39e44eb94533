"""Table 2 of the paper from the Runs of a study: parameters, perplexity, time, beside the figures that are printed.

Written as ``table2.html``, ``table2.md`` and ``table2.json``. One table for each base: perplexities under two
tokenizers do not compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from clinstack import __version__
from clinstack.files import write_json
from clinstack.recipe import EvaluationRecipe
from clinstack.report.build import facts_of
from clinstack.report.collect import ReportData, read_run
from clinstack.report.console import rich_table
from clinstack.report.figures.language import pretraining_curves
from clinstack.report.pages import Gallery, Page, Section, banner, write_page
from clinstack.report.tables.cells import MISSING, Cell, Table, count, duration, figure, number, perplexity_digits
from clinstack.study.order import order_sentences, paired_ratio, ranked
from clinstack.study.published import SOURCE, TABLE2, published_row
from clinstack.study.row import Row

if TYPE_CHECKING:
    from rich.console import Console

TITLE = "Pretraining methods beside each other"
PAPER = "Paper: "
_MEASURED = ("Trainable", "Train perplexity", "Test perplexity", "Bits per character", "Time, tokens/s")
_PRINTED = tuple(PAPER + name for name in ("trainable", "train", "test", "time"))
_WIDE = 130
"""Columns of a terminal that shows both halves beside each other."""
Key = tuple[str | None, str | None]
"""A base, and the base of the paper that it stands for."""


@dataclass(frozen=True)
class TablePaths:
    """What `write_table2` wrote, and what a terminal shows of it."""

    html: Path
    markdown: Path
    json: Path
    caveat: str
    tables: list[Table] = field(repr=False)
    sentences: list[str] = field(repr=False)

    def show(self, console: Console) -> None:
        """Print the tables, and what they say in words."""
        for table in self.tables:
            if console.width >= _WIDE:
                console.print(rich_table(table, self.caveat))
                continue
            console.print(rich_table(_measured(table), self.caveat))
            if (printed := _printed(table)).rows:
                console.print(rich_table(printed, ""))
        for sentence in self.sentences:
            console.print(escape(sentence), highlight=False)


def write_table2(
    root: Path,
    cells: Mapping[str, tuple[Path, str | None]],
    failures: Mapping[str, str],
    evaluation: EvaluationRecipe,
    out: Path | None = None,
) -> TablePaths:
    """Write the table of a study's finished Runs.

    Each file appears whole or not at all; the same Runs give the same bytes.

    Parameters
    ----------
    root : Path
        Folder of the study.
    cells : mapping of cell name to (folder of its Run, base of the paper that it stands for)
    failures : mapping of cell name to reason
        Cells that have no row; they are named.
    evaluation : EvaluationRecipe
        Of the paired comparison of the first with the second.
    out : Path, optional
        Folder to write into; ``root`` by default.
    """
    rows = []
    for name, (folder, half) in cells.items():
        run = read_run(folder, root)
        row = Row(name, run, None, half)
        rows.append(Row(name, run, published_row(half, row.method), half))
    data = ReportData(root=root, pretrain={row.cell: row.run for row in rows})
    groups = _groups(rows)
    orders = [ranked(group) for group in groups.values()]
    pairs = [paired_ratio(order, evaluation.resamples, evaluation.seed) for order in orders]
    sentences = [
        sentence
        for key, order, pair in zip(groups, orders, pairs, strict=True)
        for sentence in order_sentences(order, pair, _place(key, groups))
    ]
    sentences += _published_sentences(rows)
    sentences += [f"Not in the table: {name}, because {reason}." for name, reason in failures.items()]
    tables = [_table(key, group, groups) for key, group in groups.items()]
    page = Page(
        title=TITLE,
        caveat=data.caveat,
        banner=banner(data),
        sections=[
            Section("findings", "Findings", sentences, tables),
            Section("training", "How training went", blocks=_curves(groups, data.caveat)),
        ],
        reproduce="The study keeps its resolved recipe, and each run below it its own; the same recipes on the same "
        "notes give the same figures.",
        commands=[f"clinstack study {root.name}/study.yaml"],
        facts=facts_of(data),
        wide=True,
    )
    written = write_page(root if out is None else out, "table2", page)
    paths = TablePaths(written.html, written.markdown, written.json, data.caveat, tables, sentences)
    write_json(
        paths.json,
        {
            "synthetic": data.synthetic,
            "toy_base": data.toy_base,
            "rows": [row.to_dict() for row in rows],
            "order": [
                {"base": key[0], "paper_base": key[1], "cells": [row.cell for row in order], "first_over_second": pair}
                for key, order, pair in zip(groups, orders, pairs, strict=True)
            ],
            "sentences": sentences,
            "failed": dict(failures),
            "paper": {"source": SOURCE, "rows": [row.to_dict() for row in TABLE2]},
            "clinstack": __version__,
        },
    )
    return paths


def _curves(groups: Mapping[Key, list[Row]], caveat: str) -> list[Gallery]:
    """Draw the perplexity of each base's rows over their steps, where their logs are there."""
    drawings = [
        pretraining_curves({row.name: row.run for row in rows}, f"learning-{place or 'pretraining'}", caveat)
        for key, rows in groups.items()
        for place in [_place(key, groups)]
    ]
    known = [drawing for drawing in drawings if drawing is not None]
    return [Gallery(known)] if known else []


def _published_sentences(rows: list[Row]) -> list[str]:
    """Give perplexity as the published code takes it, where it was measured."""
    listed = [
        f"{row.cell} {number(test, perplexity_digits(test))}"
        + (f" (train {number(train, perplexity_digits(train))})" if train is not None else "")
        for row in rows
        if (test := row.published("test")) is not None
        for train in [row.published("train")]
    ]
    if not listed:
        return []
    return [f"As the published code measures, the mean over batches of their means: {', '.join(listed)}."]


def _groups(rows: list[Row]) -> dict[Key, list[Row]]:
    """Put rows together that have one base; what stands for no base of the paper joins the first that does."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        halves = [other.half for other in rows if other.run.base == row.run.base and other.half is not None]
        groups.setdefault((row.run.base, row.half or next(iter(halves), None)), []).append(row)
    return groups


def _place(key: Key, groups: Mapping[Key, list[Row]]) -> str:
    """Name a base, where there are several; with the paper's own where two of its bases share one."""
    if len(groups) == 1:
        return ""
    base, half = key
    shared = sum(other == base for other, _ in groups) > 1
    return f"{base} with the sizes for {half}" if shared and half else str(base)


def _table(key: Key, rows: list[Row], groups: Mapping[Key, list[Row]]) -> Table:
    lowest = ranked(rows)[0]
    body = [("Base, unchanged", _cells_of_base(rows[0]))]
    body += [(row.name, _cells(row, row is lowest)) for row in rows]
    place = _place(key, groups)
    where = list(groups).index(key)
    return Table(
        "table2" if where == 0 else f"table2-{where + 1}",
        "Table 2: perplexity after pretraining" + (f", {place}" if place else ""),
        _note(rows),
        ["Method", *_MEASURED, *_PRINTED],
        body,
    )


def _measured(table: Table) -> Table:
    """Return what was measured, for a narrow terminal: one interval less."""
    end, bits = len(_MEASURED), _MEASURED.index("Bits per character")
    rows = [
        (name, [Cell(cell.text) if place == bits else cell for place, cell in enumerate(cells[:end])])
        for name, cells in table.rows
    ]
    heads = ["\n".join(column.rsplit(" ", 1)) for column in table.columns[: end + 1]]
    return replace(table, columns=heads, rows=rows)


def _printed(table: Table) -> Table:
    """Return what is printed in the paper, for a narrow terminal."""
    end = len(_MEASURED)
    rows = [(name, cells[end:]) for name, cells in table.rows if any(cell.text != MISSING for cell in cells[end:])]
    columns = ["Method", "Trainable", "Train perplexity", "Test perplexity", "Time"]
    return replace(table, title="Printed in the paper (Gema et al. 2023, Table 2)", columns=columns, rows=rows)


def _cells_of_base(row: Row) -> list[Cell]:
    digits = perplexity_digits((row.perplexity("test", "base") or {}).get("value"))
    measured = [
        Cell(MISSING),
        figure(row.perplexity("train", "base"), digits),
        figure(row.perplexity("test", "base"), digits),
        figure(row.bits("base")),
        Cell(MISSING),
    ]
    return [*measured, *[Cell(MISSING)] * len(_PRINTED)]


def _cells(row: Row, lowest: bool) -> list[Cell]:
    stack, paper, speed = row.run.stack, row.paper, row.tokens_per_second
    digits = perplexity_digits((row.perplexity("test") or {}).get("value"))
    trainable, parameters = stack.get("trainable_parameters"), stack.get("parameters")
    share = f"{number(100 * trainable / parameters, 2)} %" if trainable is not None and parameters else ""
    measured = [
        Cell(count(trainable).text, share),
        figure(row.perplexity("train"), digits),
        figure(row.perplexity("test"), digits, strong=lowest),
        figure(row.bits()),
        Cell(duration(row.seconds).text, f"{speed:,.0f}/s" if speed is not None else ""),
    ]
    if paper is None:
        return [*measured, *[Cell(MISSING)] * len(_PRINTED)]
    printed = [
        Cell(f"{paper.trainable_parameters:,}", f"{paper.share} %"),
        Cell(paper.train_perplexity),
        Cell(paper.test_perplexity),
        Cell(paper.time),
    ]
    return [*measured, *printed]


def _note(rows: list[Row]) -> str:
    test, train = rows[0].run.metrics["test"], rows[0].run.metrics.get("train")
    trained = f"; train: on {train['notes']:,} notes of patients that it was trained on" if train else ""
    note = (
        f"Test: on {test['notes']:,} {test['split']} notes of {test['patients']:,} patients unseen in pretraining, "
        f"{test['tokens']:,} tokens, each counted once{trained}. Beside a figure its 95 % interval over patients. "
        "Lower is better; bold: the lowest test perplexity. Time is that of the training alone, with the tokens read a "
        "second, padding not counted."
    )
    if any(row.paper for row in rows):
        note += (
            " The columns that begin with “Paper” are printed in Gema et al. (2023), Table 2, train and test being "
            "perplexities: models of 7 billion parameters on MIMIC-IV, the first 128 tokens of each note, split by "
            "note, batches of unequal length averaged as equals, one epoch on an A100. They stand beside ours for the "
            "order of the methods; the figures themselves are not comparable."
        )
    return note
