"""From FHIR (R4 or R5) to Notes: DocumentReference and Binary to notes, Encounter and Patient to stays and tasks."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.notes.corpus import COLUMNS, Corpus
from clinstack.notes.fhir.resources import (
    READABLE,
    Resource,
    at,
    attached_text,
    content_type,
    fhir_files,
    items,
    resources,
    word,
)
from clinstack.notes.fhir.stays import TASKS, write_admissions, write_tasks
from clinstack.notes.prepared import PreparedFolder, Progress, prepared_folder
from clinstack.notes.text_store import TextStore

_BATCH_ROWS, _BATCH_CHARACTERS = 1024, 8 * 1024 * 1024
_NOT_CURRENT = ("entered-in-error", "superseded")
_NOT_VALID = ("entered-in-error", "cancelled", "deprecated")
_TABLES = {
    "encounters": [
        *(("id", pa.string()), ("patient", pa.string()), ("admitted", pa.timestamp("us"))),
        *(("discharged", pa.timestamp("us")), ("class", pa.string()), ("status", pa.string()), ("died", pa.int64())),
    ],
    "people": [
        *(("id", pa.string()), ("gender", pa.string()), ("language", pa.string()), ("born", pa.timestamp("us"))),
        *(("deceased", pa.timestamp("us")), ("deceased_day", pa.bool_())),
    ],
    "binaries": [("id", pa.string()), ("number", pa.int64()), ("reason", pa.string())],
    "waiting": [
        *(("row", pa.int64()), ("note_id", pa.string()), ("patient_id", pa.string()), ("encounter_id", pa.string())),
        *(("charttime", pa.timestamp("us")), ("note_type", pa.string()), ("binary", pa.string())),
    ],
    "seen": [("kind", pa.string()), ("id", pa.string()), ("file", pa.string()), ("part", pa.string())],
}
_DIED_CODES = {"exp", "expired", "died", "dead", "deceased"}
_DIED_NUBC = {"20", "40", "41", "42"}


@dataclass(frozen=True)
class FhirOptions:
    """What to make of an export.

    Parameters
    ----------
    tasks : tuple of str
        Of ``mortality`` and ``length_of_stay``; none for notes alone.
    seed : int
        Of the split by patient.
    text : {"admission", "full"}
        What the examples hold of the notes of a stay.
    note_types : tuple of str, optional
        Only these notes make a task's texts.
    hours : float, optional
        Only notes of so many hours from admission make a task's texts.
    encounter_classes : tuple of str, optional
        Classes of encounters that are stays; inpatient ones when not given.
    charset : str
        Of attachments that name none.
    synthetic : bool
        Whether everyone in the export is invented.
    """

    tasks: tuple[str, ...] = ()
    seed: int = 0
    text: Literal["admission", "full"] = "admission"
    note_types: tuple[str, ...] | None = None
    hours: float | None = None
    encounter_classes: tuple[str, ...] | None = None
    charset: str = "utf-8"
    synthetic: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.tasks if name not in TASKS]
        if unknown:
            raise InputError(f"tasks: {', '.join(unknown)}; choose from {', '.join(TASKS)}.")
        if self.text not in ("admission", "full"):
            raise InputError(f"text is {self.text!r}; use admission or full.")
        if self.hours is not None and not self.hours > 0:
            raise InputError(f"hours is {self.hours}; use a number above 0.")
        try:
            codecs.lookup(self.charset)
        except LookupError:
            raise InputError(f"charset is {self.charset!r}, which is not known; use for instance latin-1.") from None


def prepare_fhir(
    source: Path, out: Path, options: FhirOptions | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Prepare notes, admissions and, where asked for, the examples of tasks from FHIR resources.

    Parameters
    ----------
    source : Path
        NDJSON (``.ndjson``, ``.jsonl``) or Bundles (``.json``), plain or gzipped: a file, or a folder of them.
    out : Path
        Folder to write, in one step at the end; an earlier output there is replaced, anything else is refused.
    options : FhirOptions, optional
        What to make of it.
    progress : callable, optional
        Called with a description, the units done and the units in all.

    Returns
    -------
    dict
        The content of ``prepare.json``.

    Raises
    ------
    InputError
        If a file, a resource or an attachment is wrong, or no notes are left; nothing is written then.
    """
    chosen = options or FhirOptions()
    files = fhir_files(source)
    with prepared_folder(out, progress) as folder, Corpus(folder) as corpus:
        reader = _Reader(folder, corpus, chosen.charset)
        with reader.binaries:
            for resource in resources(files, lambda done, total: folder.report("Reading resources", done, total)):
                reader.take(resource)
            reader.finish()
        counts: dict[str, Any] = {"resources": dict(sorted(reader.kinds.items()))}
        counts |= {"documents_skipped": dict(reader.skipped.most_common())} | corpus.deduplicate()
        if not corpus.patients():
            raise InputError(
                f"{source} has no note that can be read: {reader.kinds['DocumentReference']:,} DocumentReference, "
                f"skipped: {dict(reader.skipped.most_common()) or 'none'}. Readable are {', '.join(READABLE)}."
            )
        counts["patients"] = folder.split_patients(corpus.patients(), chosen.seed)
        counts["notes"] = corpus.write_notes("fhir")
        counts["admissions"] = write_admissions(folder, chosen.encounter_classes)
        counts["examples"] = write_tasks(
            corpus,
            chosen.tasks,
            note_types=chosen.note_types,
            admission_only=chosen.text == "admission",
            hours=chosen.hours,
        )
        base = source if source.is_dir() else source.parent
        return folder.finish(
            {
                "source": "fhir",
                "synthetic": chosen.synthetic,
                "seed": chosen.seed,
                "text": chosen.text,
                "tasks": list(chosen.tasks),
                "note_types": list(chosen.note_types) if chosen.note_types else None,
                "hours": chosen.hours,
                "tables": {str(path.relative_to(base)): sha256_file(path) for path in files},
                "counts": counts,
            }
        )


class _Reader:
    """Takes resources in, in batches."""

    def __init__(self, folder: PreparedFolder, corpus: Corpus, charset: str) -> None:
        self.corpus = corpus
        self.connection = folder.connection
        self.charset = charset
        self.binaries = TextStore(folder.scratch / "binaries.texts")
        self.kinds: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self._notes: list[tuple[Any, ...]] = []
        self._characters = 0
        self._rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in _TABLES}
        for name, columns in _TABLES.items():
            self.connection.register("shape", pa.schema(columns).empty_table())
            self.connection.execute(f"CREATE TABLE {name} AS SELECT * FROM shape")
            self.connection.unregister("shape")

    def take(self, resource: Resource) -> None:
        """Take one resource in."""
        take = {
            "DocumentReference": self._document,
            "Binary": self._binary,
            "Encounter": self._encounter,
            "Patient": self._patient,
        }.get(resource.kind)
        self.kinds[resource.kind] += 1
        if take is None:
            return
        self._add("seen", (resource.kind, resource.id, str(resource.file), resource.part))
        take(resource)

    def finish(self) -> None:
        """Write what is pending, refuse resources that stand twice, and give waiting documents their Binary."""
        for name in _TABLES:
            self._flush(name)
        twice = self.connection.execute(
            "SELECT kind, id, list(file || ', ' || part ORDER BY file, length(part), part)[1:2] FROM seen "
            "GROUP BY kind, id HAVING count(*) > 1 ORDER BY min(file), kind, id LIMIT 1"
        ).fetchall()
        if twice:
            kind, name, places = twice[0]
            raise InputError(f"{places[1]}: {kind} {name} stands at {places[0]} too; keep the newer one.")
        query = (
            "SELECT row, note_id, patient_id, encounter_id, charttime, note_type, number, reason, binaries.id IS NULL "
            "FROM waiting LEFT JOIN binaries ON binaries.id = waiting.binary ORDER BY row"
        )
        cursor = self.connection.cursor().execute(query)
        while rows := cursor.fetchmany(_BATCH_ROWS):
            for *note, number, reason, missing in rows:
                if missing or reason:
                    self.skipped["the Binary of its attachment is missing" if missing else reason] += 1
                else:
                    self._note((*note, self.binaries.text(number)))
        self._flush_notes()

    def _document(self, resource: Resource) -> None:
        status, state = resource.word("status"), resource.word("docStatus")
        if status in _NOT_CURRENT or state in _NOT_VALID:
            self.skipped[f"status {status}" if status in _NOT_CURRENT else f"docStatus {state}"] += 1
            return
        patient = resource.reference("Patient", "subject")
        if patient is None:
            if not resource.word("subject", "reference") or resource.word("subject", "reference").startswith("#"):
                resource.wrong("has no subject.reference to its Patient; export it with it, or take the document out")
            self.skipped["its subject is no Patient"] += 1
            return
        time = resource.time("date") or resource.time("context", "period", "start") or resource.time("period", "start")
        note = (self.kinds[resource.kind], resource.id, patient, _encounter(resource), time, _note_type(resource))
        attachments = [at(content, "attachment") for content in items(resource.get("content"))]
        found, reason = _best(attachments)
        if found is None:
            self.skipped[reason] += 1
        elif found.get("data") is not None:
            text = attached_text(resource, found["data"], found.get("contentType"), self.charset)
            self._note((*note, text))
        else:
            binary = re.search(r"(?:^|/)Binary/([^/]+)(?:/_history/[^/]+)?$", str(found["url"]))
            if binary:
                self._add("waiting", (*note, binary.group(1)))
            else:
                self.skipped["its attachment is at a url that is no Binary"] += 1

    def _binary(self, resource: Resource) -> None:
        kind, _ = content_type(resource.get("contentType"))
        reason = None if kind in READABLE else f"content type {kind[:60] or 'not named'}"
        if reason is None and resource.get("data") is None:
            reason = "its Binary has no data"
        number = None
        if reason is None:
            text = attached_text(resource, resource.get("data"), resource.get("contentType"), self.charset)
            number = self.binaries.add(text.encode())
        self._add("binaries", (resource.id, number, reason))

    def _encounter(self, resource: Resource) -> None:
        patient = resource.reference("Patient", "subject") or resource.reference("Patient", "patient")
        if patient is None:
            if not resource.word("subject", "reference"):
                resource.wrong("has no subject.reference to its Patient; export it with it, or take it out")
            return
        field = "period" if resource.get("period") is not None else "actualPeriod"
        admitted, discharged = resource.time(field, "start"), resource.time(field, "end")
        if admitted and discharged and discharged < admitted:
            resource.wrong(f"has a {field} that ends before it begins; correct it")
        kinds = [code for value in items(resource.get("class")) for code in _codes(value)]
        row = (patient, admitted, discharged, kinds[0] if kinds else None, resource.word("status"), _died(resource))
        self._add("encounters", (resource.id, *row))

    def _patient(self, resource: Resource) -> None:
        deceased = resource.time("deceasedDateTime")
        day = len(resource.word("deceasedDateTime")) <= len("2020-05-01")
        row = (resource.word("gender") or None, _language(resource), resource.time("birthDate"), deceased, day)
        self._add("people", (resource.id, *row))

    def _note(self, note: tuple[Any, ...]) -> None:
        self._notes.append(note)
        self._characters += len(note[-1])
        if len(self._notes) >= _BATCH_ROWS or self._characters >= _BATCH_CHARACTERS:
            self._flush_notes()

    def _flush_notes(self) -> None:
        if self._notes:
            kinds = (pa.int64(), *[pa.string()] * 3, pa.timestamp("us"), pa.string(), pa.large_string())
            columns = [
                pa.array(values, kind) for values, kind in zip(zip(*self._notes, strict=True), kinds, strict=True)
            ]
            self.corpus.add(pa.table(columns, names=list(COLUMNS)))
        self._notes.clear()
        self._characters = 0

    def _add(self, table: str, row: tuple[Any, ...]) -> None:
        self._rows[table].append(row)
        if len(self._rows[table]) >= 16 * _BATCH_ROWS:
            self._flush(table)

    def _flush(self, table: str) -> None:
        rows = self._rows[table]
        if rows:
            schema = pa.schema(_TABLES[table])
            columns = [
                pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), schema.types, strict=True)
            ]
            self.connection.register("new_rows", pa.Table.from_arrays(columns, schema=schema))
            self.connection.execute(f"INSERT INTO {table} SELECT * FROM new_rows")
            self.connection.unregister("new_rows")
        rows.clear()


def _encounter(resource: Resource) -> str | None:
    """Return the encounter of a document: ``context.encounter`` in R4, ``context`` in R5."""
    path: tuple[str | int, ...] = (
        ("context", "encounter") if isinstance(resource.get("context"), dict) else ("context",)
    )
    listed = resource.get(*path)
    if isinstance(listed, dict):
        return resource.reference("Encounter", *path)
    found = (resource.reference("Encounter", *path, place) for place in range(len(items(listed))))
    return next((name for name in found if name), None)


def _note_type(resource: Resource) -> str:
    """Return the words for the type of a document, else its code, else its category's."""
    for path in (("type",), ("category", 0)):
        words = resource.word(*path, "text") or resource.word(*path, "coding", 0, "display")
        words = words or resource.word(*path, "coding", 0, "code")
        if words:
            return words
    return "Document"


def _best(attachments: list[Any]) -> tuple[dict[str, Any] | None, str]:
    """Return the attachment to read, of several formats of one document the plainest; else why there is none."""
    kinds = [content_type(at(attachment, "contentType"))[0] for attachment in attachments]
    readable = [
        (READABLE.index(kind), place)
        for place, (kind, attachment) in enumerate(zip(kinds, attachments, strict=True))
        if kind in READABLE and (at(attachment, "data") is not None or at(attachment, "url"))
    ]
    if readable:
        found: dict[str, Any] = attachments[min(readable)[1]]
        return found, ""
    # A Binary names its own type.
    unnamed = next((item for item, kind in zip(attachments, kinds, strict=True) if not kind and at(item, "url")), None)
    if unnamed and at(unnamed, "data") is None:
        return unnamed, ""
    if not attachments:
        return None, "no content"
    if any(kind in READABLE for kind in kinds):
        return None, "an attachment without data and url"
    return None, f"content type {next((kind for kind in kinds if kind), '')[:60] or 'not named'}"


def _codes(concept: Any) -> list[str]:
    """Return the codes of a Coding (R4's class) or a CodeableConcept (R5's)."""
    codings = [concept] if at(concept, "code") else items(at(concept, "coding"))
    return [code for coding in codings if (code := word(at(coding, "code")))]


def _language(resource: Resource) -> str | None:
    """Return the code of the language that a Patient prefers, or of the first; without its region."""
    spoken = items(resource.get("communication"))
    preferred = [entry for entry in spoken if at(entry, "preferred") is True]
    codes = [code for entry in [*preferred, *spoken] for code in _codes(at(entry, "language"))]
    return codes[0].split("-")[0] if codes else None


def _died(resource: Resource) -> int | None:
    """Return whether the disposition at discharge says that the patient died; None where it says nothing."""
    for part in ("hospitalization", "admission"):
        concept = resource.get(part, "dischargeDisposition")
        codings = items(at(concept, "coding"))
        words = {str(at(coding, key) or "").strip().lower() for coding in codings for key in ("code", "display")}
        words.add(str(at(concept, "text") or "").strip().lower())
        nubc = {str(at(coding, "code")) for coding in codings if "nubc" in str(at(coding, "system") or "").lower()}
        if words & _DIED_CODES or nubc & _DIED_NUBC:
            return 1
        if words - {""}:
            return 0
    return None
