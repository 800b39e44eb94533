"""Read ``study.json``, which says what the Runs of a grid study are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.report.collect import ReportData, RunRecord, StackRow, read_run
from clinstack.report.published import PublishedAuroc, published_auroc_rows
from clinstack.report.rows import SPEC_NAMES, arranged

STUDY_FILE = "study.json"


def read_study(root: Path) -> dict[str, Any]:
    """Return the contents of a study's ``study.json``.

    Raises
    ------
    InputError
        There is none, or it is of another form.
    """
    path = root / STUDY_FILE
    if not path.is_file():
        raise InputError(f"{root} is not the folder of a grid study: it holds no {STUDY_FILE}.")
    try:
        study = read_json(path)
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}; run the study again.") from None
    cells = study.get("cells") if isinstance(study, dict) else None
    if not isinstance(cells, list) or study.get("format_version") != 1:
        raise InputError(f"{path}: expected format_version 1 and a list of cells; run the study again.")
    for cell in cells:
        missing = [key for key in ("name", "role", "run") if not isinstance(cell, dict) or key not in cell]
        if missing:
            raise InputError(f"{path}: a cell lacks {missing[0]}; run the study again.")
    return dict(study)


def collect_study(root: Path, failures: Mapping[str, str] | None = None) -> ReportData:
    """Read the finished final Runs of a grid study, and the pretrained stacks that it made.

    Parameters
    ----------
    root : Path
        The study's folder.
    failures : mapping of cell name to reason, optional
        Cells that failed in the call that asks for the report; without it those that the study's record names.

    Raises
    ------
    InputError
        ``study.json`` or a Run's file cannot be read, or no final Run is finished.
    """
    study = read_study(root)
    if failures is None:
        failures = {cell["name"]: cell["failure"] for cell in study["cells"] if cell.get("failure")}
    rows: dict[str, StackRow] = {}
    finetune: list[tuple[str, RunRecord]] = []
    pretrain: dict[str, RunRecord] = {}
    budgets: dict[str, dict[str, Any]] = {}
    unfinished: list[RunRecord] = []
    several = len({cell.get("base") for cell in study["cells"] if cell["role"] == "final"}) > 1
    for cell in study["cells"]:
        if cell["role"] not in {"final", "pretrain"}:
            continue
        folder = root / cell["run"]
        run = read_run(folder, root) if (folder / "run.json").is_file() else None
        if cell["role"] == "final":
            # The row stands where the study has it, whichever of its Runs is done first.
            row = _row_of(cell, study, several)
            rows.setdefault(row.key, row)
            budgets.setdefault(row.key, cell.get("budget") or {})
        if run is None or run.record.get("status") != "done":
            if cell["name"] not in failures:
                unfinished.append(RunRecord(folder, cell["run"], {}, {}, {}) if run is None else run)
        elif cell["role"] == "final":
            finetune.append((row.key, run))
        else:
            label = run.label
            pretrain[label if label not in pretrain else f"{cell.get('base')}/{label}"] = run
    if not finetune:
        raise InputError(f"{root}: none of the study's {len(study['cells'])} cells that end in a table is done.")
    filled = {key for key, _ in finetune}
    return arranged(
        root,
        pretrain,
        finetune,
        {key: row for key, row in rows.items() if key in filled},
        unfinished=unfinished,
        failures=dict(failures),
        table=study.get("table"),
        budgets=budgets,
    )


def _row_of(cell: Mapping[str, Any], study: Mapping[str, Any], several: bool) -> StackRow:
    base, spec = str(cell.get("base")), str(cell.get("spec"))
    return StackRow(
        key=f"{base}/{spec}" if several else spec,
        base=base,
        spec=spec,
        # Below the name of its base a row does not repeat it.
        name=str(cell.get("row") or SPEC_NAMES.get(spec, spec)).removeprefix(f"{base} "),
        paper=_paper_row(str(study.get("table")), cell),
    )


def _paper_row(table: str, cell: Mapping[str, Any]) -> PublishedAuroc | None:
    """Return the paper's row that a cell stands for: that of its stack which has the figure that the cell names."""
    paper = cell.get("paper")
    if paper is None:
        return None
    rows = [row for row in published_auroc_rows(table) if row.spec == cell.get("spec")]
    return next((row for row in rows if row.printed(str(cell.get("task"))) == f"{paper:.2f}"), None)
