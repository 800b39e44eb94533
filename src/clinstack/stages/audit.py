"""Auditing a stack: can whoever has its weights find out whose notes it was trained on, or what they say?

::

    Stack + the Notes it was trained on ──▶ canaries, membership, extraction ──▶ verdict
                                                                                   │
                        RUN/audit: audit.json, audit.html, audit.sacro.json, attacks-*.parquet
                        STACK/audit.json: the verdict with the fingerprint of what it is of; the cards, again

Each attack is a step that is kept when it is done: an audit that was killed goes on after the last one, and what it
writes is the same.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from clinstack.audit.sections import attack_of, report_of, summary_of, untested
from clinstack.audit.target import AuditTarget, TargetFiles, find_target
from clinstack.engine.distributed import open_shared_run, world
from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file, write_json
from clinstack.model.cards import write_cards
from clinstack.model.lineage import stack_folder
from clinstack.recipe.audit import ATTACKS, AttackName, AuditRecipe
from clinstack.report.audit import write_audit_page
from clinstack.report.sacro import write_sacro
from clinstack.run import Run

REPORT, SUMMARY = "audit.json", "audit.json"
"""In the audit's Run, and in the Stack's folder."""
_PARTS = "sections"


def audit(recipe: AuditRecipe, *, fresh: bool = False) -> Run:
    """Run the stage, or go on with it, and return its finished Run.

    Raises
    ------
    InputError
        As `find_target` does, and when several processes were started.
    """
    if world().size > 1:
        raise InputError("audit: attacks are done by one process; start it without accelerate launch.")
    files = find_target(recipe)
    facts = {"stage": "audit", "task": None, "synthetic": files.synthetic}
    with open_shared_run(recipe, _inputs(files, recipe), fresh=fresh, **facts) as run:
        if run.is_done:
            _publish(files, run)
            return run
        with run.timed("prepare"):
            target = AuditTarget.open(files, recipe)
        sections: dict[str, Any] = {name: _section(name, target, recipe, run) for name in ATTACKS}
        report = report_of(target, recipe, sections)
        write_json(run.folder / REPORT, report)
        with run.timed("report"):
            write_audit_page(run.folder, report, run.record)
            write_sacro(run.folder, report, run.record)
        write_json(run.folder / "metrics.json", {key: report[key] for key in ("verdict", "findings")})
        _publish(files, run)
        run.finish(label=target.stack.label, task=report["stack"]["task"], stack=target.stack.summary())
        shutil.rmtree(run.folder / _PARTS, ignore_errors=True)
        return run


def _inputs(files: TargetFiles, recipe: AuditRecipe) -> dict[str, str]:
    """Return the hashes of all that decides the result; an audit of other weights is another one."""
    records = [files.stack_folder]
    if recipe.reference is not None:
        records.append(stack_folder(Path(recipe.reference)))
    return files.inputs | {str(folder / "stack.json"): sha256_file(folder / "stack.json") for folder in records}


def _section(name: AttackName, target: AuditTarget, recipe: AuditRecipe, run: Run) -> dict[str, Any]:
    """Return the section of an attack: left out, kept by an earlier start, or done now."""
    left_out = untested(recipe, name)
    if left_out is not None:
        return left_out
    file = run.folder / _PARTS / f"{name}.json"
    if not file.is_file():
        begin = time.monotonic()
        section = attack_of(name)(target, recipe, run)
        write_json(file, {"seconds": time.monotonic() - begin, "section": section})
        run.log({"attack": name, "tested": section["tested"]})
    # Read back also when it was done now, so that both ways give the same numbers.
    kept = read_json(file)
    run.add_seconds(name, kept["seconds"])
    section = kept["section"]
    return dict(section)


def _publish(files: TargetFiles, run: Run) -> None:
    """Put the verdict into the Stack's folder, and render its cards with it; ``stack.json`` stays as it is."""
    report = read_json(run.folder / REPORT)
    # Relative, because the Stack may travel, and the way to it is this machine's business.
    place = os.path.relpath(run.folder, files.stack_folder)
    summary = summary_of(report, sha256_file(run.folder / REPORT), run.record["created"][:10], place)
    write_json(files.stack_folder / SUMMARY, summary)
    write_cards(files.stack_folder)
