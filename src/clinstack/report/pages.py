"""What all pages share: their templates, what they say first, and the files of tables and figures beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clinstack import __version__
from clinstack.files import replacing_file, write_text
from clinstack.report.collect import ReportData, RunRecord
from clinstack.report.figures.canvas import Drawing
from clinstack.report.latex import latex_table
from clinstack.report.tables.cells import Table

if TYPE_CHECKING:
    from jinja2 import Environment

TABLES, FIGURES = "tables", "figures"


@dataclass(frozen=True)
class Remark:
    """A few sentences that stand apart."""

    title: str
    sentences: Sequence[str]


@dataclass(frozen=True)
class Gallery:
    """Figures beside each other; with a title the page shows them only when asked."""

    drawings: Sequence[Drawing]
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Parameters
    ----------
    key, title : str
        Anchor and heading.
    sentences : sequence of str
        A list at its head.
    blocks : sequence of Table, Gallery or Remark
    """

    key: str
    title: str
    sentences: Sequence[str] = ()
    blocks: Sequence[Table | Gallery | Remark] = ()


@dataclass(frozen=True)
class Page:
    """A page, wherever it is shown.

    Parameters
    ----------
    title : str
    caveat, banner : str
        What every table and figure says, and what the page says first; empty when patients and model are real.
    sections : sequence of Section
        Those without anything in them are left out.
    reproduce : str
        How to read the commands.
    commands : sequence of str
    facts : sequence of (str, str)
        Versions and the like.
    appendix : sequence of Table
        Behind the facts.
    wide : bool
        Whether its tables want more room than text does.
    """

    title: str
    caveat: str
    banner: str
    sections: Sequence[Section]
    reproduce: str
    commands: Sequence[str]
    facts: Sequence[tuple[str, str]]
    appendix: Sequence[Table] = ()
    wide: bool = False

    @property
    def filled(self) -> list[Section]:
        """The sections that have something in them."""
        return [section for section in self.sections if section.sentences or section.blocks]

    @property
    def tables(self) -> list[Table]:
        """All tables."""
        blocks = [block for section in self.filled for block in section.blocks]
        return [*(block for block in blocks if isinstance(block, Table)), *self.appendix]

    @property
    def drawings(self) -> list[Drawing]:
        """All figures."""
        blocks = [block for section in self.filled for block in section.blocks]
        return [drawing for block in blocks if isinstance(block, Gallery) for drawing in block.drawings]


@dataclass(frozen=True)
class PagePaths:
    """Where a page is; whoever makes it writes the JSON."""

    html: Path
    markdown: Path
    json: Path


def template_environment() -> Environment:
    """Return what renders the pages' templates; HTML is escaped, an unknown name is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("clinstack.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown_table"] = markdown_table
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.tests["gallery"] = lambda block: isinstance(block, Gallery)
    return environment


def banner(data: ReportData) -> str:
    """Return what a page says first when its patients or its model are not real; empty when they are."""
    if not data.caveat:
        return ""
    what = ["the patients are invented"] * data.synthetic + ["the base model is a toy"] * data.toy_base
    no_use_for = ["real patients, real notes"] * data.synthetic + ["useful models"] * data.toy_base
    return (
        f"Here {' and '.join(what)}. These figures show that the pipeline works; "
        f"they say nothing about {' or '.join(no_use_for)}."
    )


def shared_facts(runs: list[RunRecord], key: str) -> list[str]:
    """Return ``name value`` for each entry of a part of run.json; several values where Runs differ."""
    values: dict[str, set[str]] = {}
    for run in runs:
        facts = run.record.get(key)
        for name, value in facts.items() if isinstance(facts, dict) else ():
            values.setdefault(name, set()).add(str(value))
    return [f"{name} {' and '.join(sorted(values[name]))}" for name in values]


def markdown_table(table: Table) -> str:
    """Return a table as GitHub Markdown."""
    alignment = "---" if table.words else "---:"
    lines = [list(table.columns), ["---", *[alignment] * (len(table.columns) - 1)]]
    for place, (name, cells) in enumerate(table.rows):
        if place in table.groups:
            lines.append([f"**{table.groups[place]}**", *[""] * (len(table.columns) - 1)])
        texts = [f"**{cell.text}**" if cell.strong else cell.text for cell in cells]
        small = ["; ".join(part for part in (cell.detail, _paper(cell.paper)) if part) for cell in cells]
        details = [f" ({part})" if part else "" for part in small]
        lines.append([name, *(text + detail for text, detail in zip(texts, details, strict=True))])
    return "\n".join("| " + " | ".join(entry.replace("|", "\\|") for entry in line) + " |" for line in lines)


def _paper(figure: str) -> str:
    return f"paper {figure}" if figure else ""


def write_page(folder: Path, stem: str, page: Page, further: dict[str, str] | None = None) -> PagePaths:
    """Write a page as HTML and Markdown, its tables as LaTeX and its figures as SVG and PNG.

    Each file appears whole or not at all. Files in ``tables/`` and ``figures/`` that are of other pages stay.

    Parameters
    ----------
    folder : Path
    stem : str
        Of the names of the page's files.
    page : Page
    further : dict of str to str, optional
        Texts for ``tables/``, by name of file.
    """
    environment = template_environment()
    context = {"page": page, "stem": stem, "version": __version__}
    markdown = environment.get_template("page.md.j2").render(**context)
    html = environment.get_template("page.html.j2").render(**context)
    tables = {f"{table.key}.tex": latex_table(table, page.caveat) for table in page.tables}
    paths = PagePaths(folder / f"{stem}.html", folder / f"{stem}.md", folder / f"{stem}.json")
    for name, text in {**tables, **(further or {})}.items():
        write_text(folder / TABLES / name, text)
    for drawing in page.drawings:
        write_text(folder / FIGURES / f"{drawing.key}.svg", drawing.file)
        with replacing_file(folder / FIGURES / f"{drawing.key}.png") as temporary:
            temporary.write_bytes(drawing.png)
    write_text(paths.markdown, markdown)
    write_text(paths.html, html)
    return paths
