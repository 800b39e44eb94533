"""Make the course's notebook from its readable source, run it, and keep it with its outputs.

    python scripts/build_notebook.py                       # build and run: a few minutes on two cores
    python scripts/build_notebook.py --texts notebooks/fine_tune_a_clinical_llm.ko.md --out my.ipynb   # Korean texts

The source is a Markdown file: each ``python`` fence is a code cell, the text between two fences one Markdown cell. A
translation holds the texts only, with a line ``<!-- code -->`` where a code cell stands.

It runs in an empty folder. An output that names a folder of this machine, and a notebook that grew too large for a
repository, are refused.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "notebooks" / "fine_tune_a_clinical_llm.md"
CODE = "<!-- code -->"
_FENCE = re.compile(r"^```python\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
CELL_TIMEOUT = 1800
"""Seconds; training on a busy machine is the longest cell."""
LARGEST = 500_000
"""Bytes of a notebook with its outputs."""


def read_source(path: Path) -> list[tuple[str, str]]:
    """Return the cells of the source as (``markdown`` or ``code``, text)."""
    cells = []
    for index, part in enumerate(_FENCE.split(path.read_text(encoding="utf-8"))):
        kind = "code" if index % 2 else "markdown"
        if part.strip():
            cells.append((kind, part.strip("\n")))
    return cells


def read_texts(path: Path) -> list[str]:
    """Return the Markdown cells of a translation."""
    return [part.strip("\n") for part in path.read_text(encoding="utf-8").split(CODE) if part.strip()]


def build(cells: list[tuple[str, str]], texts: list[str] | None = None) -> NotebookNode:
    """Return a notebook without outputs; ``texts`` replace its Markdown cells."""
    if texts is not None:
        places = [index for index, (kind, _) in enumerate(cells) if kind == "markdown"]
        if len(places) != len(texts):
            sys.exit(f"The source has {len(places)} texts, the translation {len(texts)}.")
        cells = list(cells)
        for place, text in zip(places, texts, strict=True):
            cells[place] = ("markdown", text)
    makers = {"code": new_code_cell, "markdown": new_markdown_cell}
    notebook = new_notebook(cells=[makers[kind](text) for kind, text in cells])
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02d}"  # not random: a rebuilt notebook differs where something changed
    notebook.metadata = NotebookNode(
        kernelspec={"name": "python3", "display_name": "Python 3", "language": "python"},
        language_info={"name": "python"},
    )
    return notebook


def run(notebook: NotebookNode, folder: Path, environment: dict[str, str] | None = None) -> NotebookNode:
    """Run a notebook in a folder and return it with its outputs.

    Parameters
    ----------
    notebook : NotebookNode
    folder : Path
        Where it runs and what it writes to.
    environment : dict of str to str, optional
        Added to that of the kernel.

    Raises
    ------
    CellExecutionError
        If a cell fails.
    """
    before = dict(os.environ)
    os.environ.update(environment or {})
    try:
        client = NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return notebook


def outputs(notebook: NotebookNode) -> str:
    """Return everything that the cells showed as text."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            parts.append(str(output.get("text", "")))
            parts += [str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(parts)


def refuse_machine_paths(notebook: NotebookNode, folder: Path) -> None:
    """Exit if an output names a folder of this machine."""
    text = outputs(notebook)
    for path in (folder, ROOT, Path(sys.prefix), Path.home()):
        if str(path) in text:
            place = text.index(str(path))
            sys.exit(f"An output names a folder of this machine: ...{text[max(0, place - 60) : place + 60]}...")


def main() -> None:
    """Build, run, check and write the notebook."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, default=SOURCE)
    parser.add_argument("--texts", type=Path, help="a translation of the texts")
    parser.add_argument("--out", type=Path, default=SOURCE.with_suffix(".ipynb"))
    parser.add_argument("--no-run", action="store_true", help="without outputs")
    arguments = parser.parse_args()
    notebook = build(read_source(arguments.source), read_texts(arguments.texts) if arguments.texts else None)
    if not arguments.no_run:
        with tempfile.TemporaryDirectory() as name:
            run(notebook, Path(name))
            refuse_machine_paths(notebook, Path(name))
    nbformat.validate(notebook)
    text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > LARGEST:
        sys.exit(
            f"The notebook has {len(text.encode()):,} bytes; at most {LARGEST:,} are kept. Make its figures smaller."
        )
    arguments.out.write_text(text, encoding="utf-8")
    print(f"{arguments.out.name}: {len(notebook.cells)} cells, {len(text.encode()) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
