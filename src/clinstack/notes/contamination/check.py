"""`clinstack prepare check`: contamination and leakage of a prepared folder, reported and, when asked, put right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clinstack import __version__
from clinstack.files import recover_directory, write_json
from clinstack.notes.contamination.drop import check_droppable, drop_rows
from clinstack.notes.contamination.find import MINIMUM_WORDS, check_contamination, contamination_report
from clinstack.notes.contamination.leakage import check_leakage
from clinstack.notes.prepared import full_disk_is_named

Progress = Callable[[str, int, int], None]


def check_prepared(
    data: Path,
    against: Sequence[Path] = (),
    threshold: float = 0.8,
    drop: bool = False,
    minimum_words: int = MINIMUM_WORDS,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Check a prepared folder; write ``contamination.json`` and ``leakage.json`` into it.

    Parameters
    ----------
    data, against, threshold, minimum_words, progress
        As for `clinstack.notes.contamination.find.check_contamination`.
    drop : bool
        Leave out the rows on the training side of each pair: examples of train, of validation where the other is a test
        example, and notes, also those of ``against``. Test examples always stay. Each folder changes in one step.

    Returns
    -------
    tuple
        The contents of the two files; nothing in them is note text.

    Raises
    ------
    InputError
        If an argument or a file is wrong, or dropping would leave a file empty; nothing is changed then.
    """
    for folder in (data, *against):
        recover_directory(folder.resolve())
    result = check_contamination(data, against, threshold, minimum_words, progress)
    report = contamination_report(result, against, threshold, minimum_words)
    if drop:
        check_droppable(result.rows)
        report["dropped"] = {}
        for folder in (data, *against):
            rows = {file: gone for file, gone in result.rows.items() if gone and file.is_relative_to(folder)}
            if rows:
                check = {
                    "held_out": "this folder" if folder == data else str(data),
                    "threshold": threshold,
                    "minimum_words": minimum_words,
                    "clinstack": __version__,
                }
                with full_disk_is_named(folder):
                    report["dropped"][str(folder)] = drop_rows(folder, rows, check)
    write_json(data / "contamination.json", report)
    leakage = check_leakage(data, progress)
    write_json(data / "leakage.json", leakage)
    return report, leakage
