r"""Tables as LaTeX, for ``\input`` into a paper: ``booktabs`` and nothing else is needed."""

from __future__ import annotations

import re

from clinstack import __version__
from clinstack.report.tables.cells import Cell, Table

_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "−": r"$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "▼": r"$\downarrow$",
    "†": r"\textdagger{}",
    "–": "--",
    "—": "---",
    "“": "``",
    "”": "''",
    "’": "'",
    "…": r"\ldots{}",
    "\N{NO-BREAK SPACE}": "~",
    "\n": " ",
}


def escape(text: str) -> str:
    """Return text as LaTeX shows it, whatever signs are in it."""
    return "".join(_CHARACTERS.get(character, character) for character in text)


def latex_table(table: Table, caveat: str) -> str:
    r"""Return a table as a ``table`` environment.

    A figure, its interval, what else stands beside it, and the paper's figure stand in rows below each other; the
    caption says ``caveat``.
    """
    columns = len(table.columns)
    prose = rf"p{{{0.9 / columns:.2f}\linewidth}}"
    others = "l" * (columns - 2) + r"p{0.3\linewidth}" if table.words and columns > 2 else "r" * (columns - 1)
    notes = " ".join(part for part in (f"{caveat}." if caveat and not table.foreign else "", table.note) if part)
    lines = [
        f"% Written by clinstack {__version__}; \\usepackage{{booktabs}} in the preamble.",
        r"\begin{table}",
        r"\centering",
        r"\small",
        rf"\caption{{{escape(_title(table))}. {escape(notes)}}}",
        rf"\label{{tab:{table.key}}}",
        rf"\begin{{tabular}}{{{prose * columns if table.prose else f'l{others}'}}}",
        r"\toprule",
        _line([escape(column) for column in table.columns]),
        r"\midrule",
    ]
    for place, (name, cells) in enumerate(table.rows):
        if place in table.groups:
            if place:
                lines.append(r"\addlinespace")
            lines.append(rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{escape(table.groups[place])}}}}} \\")
        lines.append(_line([escape(name), *(_value(cell) for cell in cells)]))
        for part in range(max(len(cell.details) for cell in cells)):
            lines.append(_line(["", *(_small("".join(cell.details[part : part + 1])) for cell in cells)]))
        if any(cell.paper for cell in cells):
            lines.append(_line([r"\quad {\scriptsize paper}", *(_small(cell.paper) for cell in cells)]))
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _title(table: Table) -> str:
    """Return the title without the number that the table has in the paper: LaTeX counts for itself."""
    title = re.sub(r"^Table \d+: ", "", table.title)
    return title[:1].upper() + title[1:]


def _line(cells: list[str]) -> str:
    return " & ".join(cells).rstrip() + r" \\"


def _value(cell: Cell) -> str:
    return rf"\textbf{{{escape(cell.text)}}}" if cell.strong else escape(cell.text)


def _small(text: str) -> str:
    return rf"{{\scriptsize {escape(text)}}}" if text else ""
