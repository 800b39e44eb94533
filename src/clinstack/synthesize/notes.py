"""`clinstack synthesize notes`: case reports to synthetic discharge summaries.

After the first step of Asclepius (Kweon et al. 2024), with gates where it has none.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.endpoint import Endpoint, Reply, Request
from clinstack.endpoint.store import ReplyStore
from clinstack.errors import InputError
from clinstack.files import sha256_file, write_json
from clinstack.notes.attrition import Attrition
from clinstack.notes.corpus import COLUMNS, Corpus
from clinstack.notes.prepared import PreparedFolder, Progress, prepared_folder, refuse_other_folder
from clinstack.recipe.synthesize import SynthesizeNotesRecipe
from clinstack.synthesize.gates import SeenTexts, speaks_of_a_model, without_thoughts
from clinstack.synthesize.plan import Plan, hidden, store_of
from clinstack.synthesize.prompts import Template, read_template
from clinstack.synthesize.seeds import request_seed
from clinstack.synthesize.source import CaseReport, read_case_reports

NOTE_TYPE = "Discharge summary"
_ROWS = 256


@dataclass(frozen=True)
class _Note:
    """A note that passed the gates."""

    report: CaseReport
    text: str
    model: str
    seed: int


def plan_notes(source: Path, out: Path, recipe: SynthesizeNotesRecipe, *, show: bool = False) -> Plan:
    """Return what `synthesize_notes` would ask; nothing is sent.

    Raises
    ------
    InputError
        As `synthesize_notes`.
    """
    refuse_other_folder(out)
    template = read_template(recipe.prompts, "note.txt")
    plan = Plan(recipe.endpoint)
    store = ReplyStore(store_of(out)) if store_of(out).is_file() else None
    try:
        for report in _reports(source, recipe):
            request = _request(report, template, recipe)
            if store is not None and request.digest(recipe.endpoint) in store:
                plan.stored += 1
            else:
                plan.add(request)
            if not plan.shown:
                text = report.text if show else hidden(report.text, "case report")
                plan.shown.append(("note.txt", template.fill(case_report=text)))
    finally:
        if store is not None:
            store.close()
    if not plan.shown:
        raise InputError(f"{source}: no row has text in the column {recipe.text}; name the column as text=COLUMN.")
    return plan


def synthesize_notes(
    source: Path, out: Path, recipe: SynthesizeNotesRecipe, progress: Progress | None = None
) -> dict[str, Any]:
    """Ask for a note for each case report and write those that pass the gates as a folder of Notes.

    Parameters
    ----------
    source : Path
        Table of case reports.
    out : Path
        Folder to write, in one step at the end. The replies are kept beside it in ``<out>.replies.sqlite``: whatever
        ends the work, the next start goes on there.
    recipe : SynthesizeNotesRecipe
    progress : callable, optional
        Called with a description, the units done and the units in all.

    Returns
    -------
    dict
        The content of ``prepare.json``.

    Raises
    ------
    InputError
        If source, recipe, prompts or ``out`` are wrong, or no note is left.
    EndpointError
        If the server cannot be used.
    """
    refuse_other_folder(out)
    template = read_template(recipe.prompts, "note.txt")
    total = sum(1 for _ in _reports(source, recipe))
    with (
        Endpoint(recipe.endpoint, store_of(out), progress) as endpoint,
        prepared_folder(out, progress) as folder,
        Corpus(folder) as corpus,
    ):
        counts: Counter[str] = Counter()
        rows: list[_Note] = []
        provenance: list[dict[str, Any]] = []
        asked = _kept_notes(endpoint, source, recipe, template, counts, total)
        for note in asked:
            rows.append(note)
            provenance.append(
                {"note_id": _note_id(note.report), "row": note.report.row, "model": note.model, "seed": note.seed}
            )
            if len(rows) == _ROWS:
                corpus.add(_table(rows))
                rows.clear()
        if rows:
            corpus.add(_table(rows))
        attrition = _attrition(counts, recipe)
        if not provenance:
            kept = ", ".join(f"{step['step']}: {step['kept']:,}" for step in attrition.steps)
            raise InputError(f"No note is left ({kept}); look at the model's replies in {store_of(out)} and the gates.")
        found = corpus.deduplicate()
        patients = folder.split_patients(corpus.patients(), recipe.seed)
        notes = corpus.write_notes("synthesize")
        _write_provenance(folder, provenance, template)
        write_json(folder.folder / "notes" / "attrition.json", {"steps": attrition.steps})
        return folder.finish(
            {
                "source": "synthesize notes",
                "synthetic": True,
                "seed": recipe.seed,
                "text": "full",
                "tables": {source.name: sha256_file(source)},
                "prompts": {template.name: template.digest},
                "endpoint": endpoint_facts(endpoint),
                "complete": not endpoint.failures,
                "counts": {**found, "patients": patients, "notes": notes},
            }
        )


def endpoint_facts(endpoint: Endpoint) -> dict[str, Any]:
    """Return what ``prepare.json`` says of the server and what was asked of it."""
    recipe = endpoint.recipe
    return {
        "base_url": recipe.base_url,
        "remote": endpoint.remote is not None,
        "model": recipe.model,
        "temperature": recipe.temperature,
        "requests": endpoint.summary(),
    }


def _reports(source: Path, recipe: SynthesizeNotesRecipe) -> Iterator[CaseReport]:
    for report in read_case_reports(source, recipe.text, recipe.patient_id, recipe.max_rows):
        if report.text:
            yield report


def _request(report: CaseReport, template: Template, recipe: SynthesizeNotesRecipe) -> Request:
    # By what the report says, not by its row: a table that grows at its head is not paid for again.
    key = "note:" + hashlib.sha256(report.text.encode()).hexdigest()[:24]
    prompt = template.fill(case_report=report.text)
    return Request(key, (("user", prompt),), request_seed(recipe.seed, key), recipe.max_tokens)


def _note_id(report: CaseReport) -> str:
    return f"case-{report.row}"


def _kept_notes(
    endpoint: Endpoint,
    source: Path,
    recipe: SynthesizeNotesRecipe,
    template: Template,
    counts: Counter[str],
    total: int,
) -> Iterator[_Note]:
    """Yield the notes that pass the gates, in the order of the reports; count why the others did not."""
    asked: deque[tuple[CaseReport, int]] = deque()

    def requests() -> Iterator[Request]:
        for report in read_case_reports(source, recipe.text, recipe.patient_id, recipe.max_rows):
            counts["rows"] += 1
            if not report.text:
                counts["empty"] += 1
                continue
            request = _request(report, template, recipe)
            asked.append((report, request.seed))
            yield request

    threshold = recipe.gates.near_duplicates
    seen = None if threshold is None else SeenTexts(threshold)
    for reply in endpoint.ask(requests(), "Notes", total):
        report, seed = asked.popleft()
        text = without_thoughts(reply.text)
        reason = _reason_against(reply, text, recipe, seen)
        if reason:
            counts[reason] += 1
        else:
            yield _Note(report, text, reply.model, seed)


def _reason_against(reply: Reply, text: str, recipe: SynthesizeNotesRecipe, seen: SeenTexts | None) -> str | None:
    gates = recipe.gates
    if reply.failure is not None:
        return "failed"
    if reply.is_cut_off or not gates.min_words <= len(text.split()) <= gates.max_words:
        return "length"
    if gates.phrases and speaks_of_a_model(text):
        return "phrases"
    if seen is not None and not seen.is_new(text):
        return "near_duplicate"
    return None


def _attrition(counts: Counter[str], recipe: SynthesizeNotesRecipe) -> Attrition:
    gates, attrition = recipe.gates, Attrition()
    kept = counts["rows"]
    attrition.step("case reports", kept)
    steps = [
        ("empty", "with text"),
        ("failed", "answered by the endpoint"),
        ("length", f"note of {gates.min_words:,} to {gates.max_words:,} words, not cut off"),
    ]
    if gates.phrases:
        steps.append(("phrases", "note in which no model speaks of itself"))
    if gates.near_duplicates is not None:
        steps.append(("near_duplicate", f"note like no earlier one (resemblance below {gates.near_duplicates:g})"))
    for reason, words in steps:
        kept -= counts[reason]
        attrition.step(words, kept)
    return attrition


def _table(notes: list[_Note]) -> pa.Table:
    """Return notes as `Corpus.add` takes them."""
    rows = len(notes)
    columns = {
        "row": pa.array([note.report.row for note in notes], pa.int64()),
        "note_id": pa.array([_note_id(note.report) for note in notes], pa.string()),
        "patient_id": pa.array([note.report.patient_id for note in notes], pa.string()),
        "encounter_id": pa.nulls(rows, pa.string()),
        "charttime": pa.nulls(rows, pa.timestamp("us")),
        "note_type": pa.array([NOTE_TYPE] * rows, pa.string()),
        "text": pa.array([note.text for note in notes], pa.large_string()),
    }
    return pa.table({name: columns[name] for name in COLUMNS})


def _write_provenance(folder: PreparedFolder, rows: list[dict[str, Any]], template: Template) -> None:
    """Write which model made each note, from which prompt and with which seed."""
    table = pa.Table.from_pylist(rows).append_column("prompt_hash", pa.array([template.digest] * len(rows)))
    pq.write_table(table, folder.folder / "provenance.parquet", compression="zstd")
