"""Pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)


def _escaped(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def count(cell: int | str) -> str:
    """Return a cell that may be a count."""
    return f"{cell:,}" if isinstance(cell, int) else cell


def bullets(lines: Iterable[str]) -> str:
    """Return a list, each line ended by a period."""
    return "\n".join(f"- {line if line.endswith('.') else line + '.'}" for line in lines)


def python(code: Sequence[str]) -> str:
    """Return lines of code in a fence."""
    return "```python\n" + "\n".join(code) + "\n```"
