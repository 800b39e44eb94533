"""Write ``report.html``, ``report.md`` and ``report.json`` from the Runs below a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinstack import __version__
from clinstack.files import write_json, write_text
from clinstack.report.collect import ReportData, RunRecord, collect
from clinstack.report.figures import draw
from clinstack.report.sentences import findings, frozen_sentences
from clinstack.report.summary import Summary, summarise
from clinstack.report.tables import Table, all_tables

if TYPE_CHECKING:
    from jinja2 import Environment

TITLE = "Adapter stacks on clinical notes"


@dataclass(frozen=True)
class ReportPaths:
    """What `build_report` wrote, and the figures in it."""

    html: Path
    markdown: Path
    json: Path
    summary: Summary


def build_report(root: Path, out: Path | None = None, resamples: int = 1000, seed: int = 0) -> ReportPaths:
    """Write the report of all finished Runs below ``root``.

    Each file appears whole or not at all. The same Runs, resamples and seed give the same bytes.

    Parameters
    ----------
    root : Path
        Folder with Runs at any depth.
    out : Path, optional
        Folder to write into; ``root`` by default.
    resamples, seed : int
        Of the bootstrap over patients.

    Raises
    ------
    InputError
        See `collect` and `summarise`.
    """
    summary = summarise(collect(root), resamples, seed)
    folder = root if out is None else out
    context = _context(summary)
    environment = template_environment()
    paths = ReportPaths(folder / "report.html", folder / "report.md", folder / "report.json", summary)
    write_json(paths.json, summary.to_dict())
    write_text(paths.markdown, environment.get_template("report.md.j2").render(**context))
    write_text(paths.html, environment.get_template("report.html.j2").render(**context, figures=draw(summary)))
    return paths


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
    return environment


def _context(summary: Summary) -> dict[str, Any]:
    data = summary.data
    return {
        "title": TITLE,
        "caveat": data.caveat,
        "banner": banner(data),
        "version": __version__,
        "findings": findings(summary),
        "frozen": frozen_sentences(summary),
        "tables": {table.key: table for table in all_tables(summary)},
        "commands": [f"clinstack {run.stage} {_recipe_path(run, data.root)}" for run in data.runs],
        "report_command": f"clinstack report {data.root.name or '.'}",
        "versions": shared_facts(data.runs, "versions"),
        "hardware": shared_facts(data.runs, "hardware"),
        "bases": sorted({f"{run.base} ({run.stack.get('fingerprint')})" for run in data.runs if run.stack}),
        "resamples": summary.resamples,
        "seed": summary.seed,
    }


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


def _recipe_path(run: RunRecord, root: Path) -> str:
    # The root's own name only: the way to it is this machine's business.
    inside = run.folder.relative_to(root).as_posix()
    return "/".join(part for part in (root.name, inside if inside != "." else "", "recipe.yaml") if part)


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
    lines = [table.columns, ["---", *[alignment] * (len(table.columns) - 1)]]
    for name, cells in table.rows:
        texts = [f"**{cell.text}**" if cell.strong else cell.text for cell in cells]
        details = [f" ({cell.detail})" if cell.detail else "" for cell in cells]
        lines.append([name, *(text + detail for text, detail in zip(texts, details, strict=True))])
    return "\n".join("| " + " | ".join(entry.replace("|", "\\|") for entry in line) + " |" for line in lines)
