"""`prepare fhir`: documents, attachments and encounters of R4 and R5, and what is wrong with an export."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys
import textwrap
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.notes.corpus import Corpus
from clinstack.notes.fhir.prepare import _TABLES, FhirOptions, _Reader, prepare_fhir
from clinstack.notes.fhir.resources import Resource
from clinstack.notes.prepared import prepared_folder
from clinstack.notes.read import read_examples, read_notes
from clinstack.notes.splits import SPLITS

CANARY = "zebra quartz lantern"
Content = dict[str, Any]


def encoded(text: str, charset: str = "utf-8") -> str:
    return base64.b64encode(text.encode(charset)).decode()


def document(name: str, text: str = "Chest pain.", patient: str = "p0", **changes: Any) -> Content:
    """A DocumentReference as R4 has it; a change to None removes the element."""
    values: Content = {
        "resourceType": "DocumentReference",
        "id": name,
        "status": "current",
        "type": {"coding": [{"system": "http://loinc.org", "code": "18842-5", "display": "Discharge summary"}]},
        "subject": {"reference": f"Patient/{patient}"},
        "date": "2020-03-02T10:00:00+02:00",
        "content": [{"attachment": {"contentType": "text/plain; charset=utf-8", "data": encoded(text)}}],
    }
    return {key: value for key, value in (values | changes).items() if value is not None}


def attached(kind: str | None, data: str | None = None, **more: str) -> list[Content]:
    attachment = {"contentType": kind, "data": data, **more}
    return [{"attachment": {key: value for key, value in attachment.items() if value is not None}}]


def encounter(name: str, patient: str = "p0", days: int = 5, **changes: Any) -> Content:
    values: Content = {
        "resourceType": "Encounter",
        "id": name,
        "status": "finished",
        "class": {"code": "IMP"},
        "subject": {"reference": f"Patient/{patient}"},
        "period": {"start": "2020-03-01T08:00:00Z", "end": f"2020-03-{1 + days:02d}T08:00:00Z"},
    }
    return {key: value for key, value in (values | changes).items() if value is not None}


def disposition(code: str, system: str = "http://terminology.hl7.org/CodeSystem/discharge-disposition") -> Content:
    return {"dischargeDisposition": {"coding": [{"system": system, "code": code}]}}


def write(path: Path, contents: list[Content]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(content) + "\n" for content in contents).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def notes_of(data: Path) -> dict[str, dict[str, Any]]:
    return {row["note_id"]: row for row in pq.read_table(data / "notes" / "notes.parquet").to_pylist()}


def prepared_notes(tmp_path: Path, contents: list[Content], **options: Any) -> dict[str, dict[str, Any]]:
    prepare_fhir(write(tmp_path / "in.ndjson", contents), tmp_path / "data", FhirOptions(**options))
    return notes_of(tmp_path / "data")


def hospital(folder: Path) -> Path:
    """A bulk export of 40 patients with two stays each, in files as servers name them."""
    documents, encounters, patients = [], [], []
    for index in range(40):
        patient = f"p{index:02d}"
        patients.append(
            {
                "resourceType": "Patient",
                "id": patient,
                "gender": ("female", "male")[index % 2],
                "birthDate": "1950-06",
                # In the second stay of every fifth, on a day and at no known time.
                **({"deceasedDateTime": "2020-03-11"} if index % 5 == 0 else {}),
            }
        )
        for number, days in enumerate((2, 10)):
            name = f"{patient}-{number}"
            dispositions = ("exp", "home") if index % 4 == 0 else ("home", "home")
            gone = disposition(dispositions[number])
            encounters.append(encounter(name, patient, days, hospitalization=gone))
            context = {"encounter": [{"reference": f"https://server/fhir/Encounter/{name}/_history/1"}]}
            text = (
                f"Chief Complaint: cough {name}\nHistory of Present Illness: {CANARY}.\n\n"
                f"Hospital Course: {'The patient expired.' if index % 4 == 0 else 'fine'}"
            )
            documents.append(document(name, text, patient, context=context))
            late = {"date": "2020-03-02T09:00:00Z", "type": {"text": "Nursing"}}
            documents.append(document(f"{name}-n", f"Slept well {name}.", patient, context=context, **late))
    write(folder / "DocumentReference.000.ndjson", documents[::2])
    write(folder / "DocumentReference.001.ndjson.gz", documents[1::2])
    write(folder / "Encounter.ndjson", [*encounters, encounter("visit", "p00", 0, **{"class": {"code": "AMB"}})])
    write(folder / "Patient.ndjson", patients)
    write(folder / "Observation.ndjson", [{"resourceType": "Observation", "id": "o"}])
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fhir")
    options = FhirOptions(tasks=("mortality", "length_of_stay"), synthetic=True)
    prepare_fhir(hospital(folder / "export"), folder / "data", options)
    return folder / "data"


def test_a_bulk_export_becomes_notes(prepared: Path) -> None:
    assert sum(len(split.texts) for split in read_notes(prepared, None).values()) == 160
    row = notes_of(prepared)["p03-1"]
    assert row["patient_id"] == "p03"
    assert row["encounter_id"] == "p03-1"
    assert row["note_type"] == "Discharge summary"
    assert row["charttime"] == datetime(2020, 3, 2, 8)  # in UTC
    assert row["text"].startswith("Chief Complaint: cough p03-1\n")
    facts = json.loads((prepared / "prepare.json").read_text())
    assert facts["counts"]["resources"]["Observation"] == 1
    assert set(facts["tables"]) >= {"DocumentReference.000.ndjson", "DocumentReference.001.ndjson.gz"}
    assert facts["synthetic"] is True
    assert (prepared / "DATASHEET.md").is_file()


def test_stays_and_their_outcomes(prepared: Path) -> None:
    stays = {row["encounter_id"]: row for row in pq.read_table(prepared / "admissions.parquet").to_pylist()}
    assert len(stays) == 80  # the visit is none
    assert stays["p01-0"]["sex"] == "male"
    assert stays["p01-0"]["age"] == 69
    died = {name for name, row in stays.items() if row["died"] == 1}
    told = {f"p{index:02d}-0" for index in range(0, 40, 4)}
    assert died == told | {f"p{index:02d}-1" for index in range(0, 40, 5)}
    task, examples = read_examples(prepared / "examples" / "length_of_stay")
    labels = {
        key: task.classes[label]
        for split in SPLITS
        for key, label in zip(examples[split].example_ids, examples[split].labels, strict=True)
    }
    assert set(labels) == set(stays) - died
    assert labels["p01-0"] == "up to 3 days"
    assert labels["p01-1"] == "7 to 14 days"
    assert all("expired" not in text for split in SPLITS for text in examples[split].texts)
    assert all(CANARY in text for split in SPLITS for text in examples[split].texts)


def test_whole_texts_that_tell_the_death_are_left_out(prepared: Path, tmp_path: Path) -> None:
    options = FhirOptions(tasks=("mortality",), text="full", note_types=("Discharge summary",))
    prepare_fhir(prepared.parent / "export", tmp_path / "data", options)
    attrition = json.loads((tmp_path / "data" / "examples" / "mortality" / "attrition.json").read_text())
    steps = {step["step"]: step["removed"] for step in attrition["steps"]}
    assert steps["text free of: names the patient's death"] == 20
    _, examples = read_examples(tmp_path / "data" / "examples" / "mortality")
    assert all("Slept" not in text for split in SPLITS for text in examples[split].texts)
    assert sum(sum(examples[split].labels) for split in SPLITS) == 6  # of every fifth, not of every fourth


def test_only_notes_of_the_first_hours(prepared: Path, tmp_path: Path) -> None:
    # The nurse wrote 25 hours after admission, the summary is dated 24.
    for hours, expected in ((24.5, 0), (25.5, 80)):
        options = FhirOptions(tasks=("length_of_stay",), text="full", hours=hours)
        prepare_fhir(prepared.parent / "export", tmp_path / "data", options)
        _, examples = read_examples(tmp_path / "data" / "examples" / "length_of_stay")
        texts = [text for split in SPLITS for text in examples[split].texts]
        assert sum("Slept" in text for text in texts) == (len(texts) if expected else 0)


def test_the_command_line(prepared: Path, tmp_path: Path) -> None:
    arguments = ["prepare", "fhir", "--source", str(prepared.parent / "export"), "--out", str(tmp_path / "data")]
    result = CliRunner().invoke(app, [*arguments, "--tasks", "length_of_stay"])
    assert result.exit_code == 0, result.output
    assert "160 notes of 40 patients" in result.stdout
    assert CANARY not in result.output
    wrong = CliRunner().invoke(app, [*arguments, "--tasks", "weight"])
    assert isinstance(wrong.exception, InputError)
    assert "choose from mortality, length_of_stay" in str(wrong.exception)


def test_r5_and_bundles(tmp_path: Path) -> None:
    bundle = {
        "resourceType": "Bundle",
        "entry": [
            {"fullUrl": "urn:uuid:1234", "resource": {"resourceType": "Patient", "id": "p7"}},
            {"fullUrl": "urn:uuid:5678", "resource": encounter(
                "e7", subject={"reference": "urn:uuid:1234"}, status="completed",
                period=None, actualPeriod={"start": "2020-03-01", "end": "2020-03-05"},
                admission=disposition("exp"), **{"class": [{"coding": [{"code": "IMP"}]}]},
            )},
            {"resource": document(
                "d7", subject={"reference": "urn:uuid:1234"},
                context=[{"reference": "Appointment/1"}, {"reference": "urn:uuid:5678", "type": "Encounter"}],
            )},
            {"request": {"method": "DELETE", "url": "Patient/9"}},
        ],
    }  # fmt: skip
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "patient.json").write_text(json.dumps(bundle, indent=1))
    prepare_fhir(tmp_path / "export", tmp_path / "data")
    row = notes_of(tmp_path / "data")["d7"]
    assert (row["patient_id"], row["encounter_id"]) == ("p7", "e7")
    stay = pq.read_table(tmp_path / "data" / "admissions.parquet").to_pylist()[0]
    assert (stay["encounter_id"], stay["patient_id"], stay["died"]) == ("e7", "p7", 1)
    assert stay["discharged"] == datetime(2020, 3, 5)


@pytest.mark.parametrize(
    ("kind", "data", "text"),
    [
        ("text/plain", encoded("Fièvre"), "Fièvre"),
        ("text/plain", encoded("\ufeffFever\r\nand cough"), "Fever\nand cough"),
        ("Text/Plain;charset=ISO-8859-1", encoded("Fièvre", "latin-1"), "Fièvre"),
        ('text/plain; charset="utf-16"', encoded("Fièvre", "utf-16"), "Fièvre"),
        ("text/html", encoded("<p>Fi&egrave;vre</p><p>Toux</p>"), "Fièvre\n\nToux"),
        ("text/html", encoded('<meta charset="latin-1"><p>Fièvre', "latin-1"), "Fièvre"),
        ("application/rtf", encoded(r"{\rtf1\ansi Fi\'e8vre\par Toux}"), "Fièvre\nToux"),
        ("text/rtf", "\n".join(textwrap.wrap(encoded(r"{\rtf1\ansi Fi\u232?vre}"), 20)), "Fièvre"),
    ],
)
def test_attachments_become_text(kind: str, data: str, text: str, tmp_path: Path) -> None:
    notes = prepared_notes(tmp_path, [document("d", content=attached(kind, data))])
    assert notes["d"]["text"] == text


def test_charset_of_attachments_that_name_none(tmp_path: Path) -> None:
    content = attached("text/plain", encoded("Fièvre", "latin-1"))
    assert prepared_notes(tmp_path, [document("d", content=content)], charset="latin-1")["d"]["text"] == "Fièvre"


def test_of_several_formats_the_plainest_is_read(tmp_path: Path) -> None:
    content = [
        *attached("application/pdf", encoded("%PDF")),
        *attached("text/html", encoded("<b>from html</b>")),
        *attached("text/plain", encoded("from plain text")),
    ]
    assert prepared_notes(tmp_path, [document("d", content=content)])["d"]["text"] == "from plain text"


def test_attachments_in_binaries(tmp_path: Path) -> None:
    contents = [
        document("a", content=attached("text/plain", url="Binary/x")),
        document("b", content=attached(None, url="https://server/fhir/Binary/y/_history/2")),
        document("c", content=attached("text/plain", url="Binary/pdf")),
        document("d", content=attached("text/plain", url="Binary/none")),
        document("e", content=attached("text/plain", url="https://server/letters/1.txt")),
        {"resourceType": "Binary", "id": "x", "contentType": "text/plain", "data": encoded("from x")},
        {"resourceType": "Binary", "id": "y", "contentType": "text/html", "data": encoded("<p>from y")},
        {"resourceType": "Binary", "id": "pdf", "contentType": "application/pdf", "data": encoded("%PDF")},
    ]
    source = write(tmp_path / "in.ndjson", contents)
    facts = prepare_fhir(source, tmp_path / "data")
    assert {name: row["text"] for name, row in notes_of(tmp_path / "data").items()} == {"a": "from x", "b": "from y"}
    assert facts["counts"]["documents_skipped"] == {
        "content type application/pdf": 1,
        "the Binary of its attachment is missing": 1,
        "its attachment is at a url that is no Binary": 1,
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "entered-in-error"}, "status entered-in-error"),
        ({"status": "superseded"}, "status superseded"),
        ({"docStatus": "entered-in-error"}, "docStatus entered-in-error"),
        ({"subject": {"reference": "Group/7"}}, "its subject is no Patient"),
        ({"content": None}, "no content"),
        ({"content": attached("application/pdf", encoded("%PDF"))}, "content type application/pdf"),
        ({"content": attached(None, encoded("words"))}, "content type not named"),
        ({"content": attached("text/plain")}, "an attachment without data and url"),
        ({"content": "words"}, "content type not named"),
    ],
)
def test_what_is_skipped_is_counted(changes: Content, reason: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.ndjson", [document("kept"), document("d", **changes)])
    facts = prepare_fhir(source, tmp_path / "data")
    assert facts["counts"]["documents_skipped"] == {reason: 1}
    assert set(notes_of(tmp_path / "data")) == {"kept"}


@pytest.mark.parametrize(
    ("changes", "note_type"),
    [
        ({"type": {"text": " Letter ", "coding": [{"display": "x"}]}}, "Letter"),
        ({"type": {"coding": [{"code": "18842-5"}]}}, "18842-5"),
        ({"type": None, "category": [{"text": "Clinical note"}]}, "Clinical note"),
        ({"type": None}, "Document"),
    ],
)
def test_note_types(changes: Content, note_type: str, tmp_path: Path) -> None:
    assert prepared_notes(tmp_path, [document("d", **changes)])["d"]["note_type"] == note_type


@pytest.mark.parametrize(
    ("date", "time"),
    [
        ("2020", datetime(2020, 1, 1)),
        ("2020-05", datetime(2020, 5, 1)),
        ("2020-05-07", datetime(2020, 5, 7)),
        ("2020-05-07T23:30:00.123-02:00", datetime(2020, 5, 8, 1, 30, 0, 123000)),
        ("2016-12-31T23:59:60Z", datetime(2016, 12, 31, 23, 59, 59)),
        (None, None),
    ],
)
def test_dates(date: str | None, time: datetime | None, tmp_path: Path) -> None:
    assert prepared_notes(tmp_path, [document("d", date=date)])["d"]["charttime"] == time


LONG = json.dumps(document("d"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (LONG[:200], r"in.ndjson, line 2 is not JSON \(character \d+\); it may have been cut off"),
        ("[1]", "in.ndjson, line 2 is no FHIR resource"),
        ('{"id": "d"}', "in.ndjson, line 2 is no FHIR resource"),
        ("[" * 100_000, "in.ndjson, line 2 is nested too deeply"),
        (document("d", subject=None), "in.ndjson, line 2: this DocumentReference has no subject.reference"),
        (document("d", subject={"display": "x"}), "in.ndjson, line 2: this DocumentReference has no subject.reference"),
        (document("d", subject={"reference": "#p"}), "in.ndjson, line 2: this DocumentReference has no subject"),
        (document("d", id=None), "in.ndjson, line 2: this DocumentReference has no id"),
        (document("d", date="1 May 2020"), "in.ndjson, line 2: this DocumentReference has a date that is no date"),
        (document("d", date="0001-01-01T00:00:00+14:00"), "line 2: this DocumentReference has a date that is no date"),
        (document("d", content=attached("text/plain", "Zm9v!")), "line 2: this DocumentReference has data that is not"),
        (document("d", content=attached("text/plain", encoded(CANARY)[:-1])), "line 2: .* data that is not base64"),
        (document("d", content=[{"attachment": {"contentType": "text/plain", "data": 7}}]), "data that is not base64"),
        (
            document("d", content=attached("text/plain", encoded(f"{CANARY} é", "latin-1"))),
            "line 2: .* not utf-8; name",
        ),
        (
            document("d", content=attached("text/plain;charset=klingon", "eA==")),
            "line 2: .* 'klingon', which is not known",
        ),
        (document("d", content=attached("text/plain;charset=rot13", "eA==")), "line 2: .* 'rot13', which is not known"),
        (document("kept"), "in.ndjson, line 2: DocumentReference kept stands at .*in.ndjson, line 1 too"),
        (encounter("e", subject=None), "in.ndjson, line 2: this Encounter has no subject.reference"),
        (encounter("e", period={"start": "2020-03-02", "end": "2020-03-01"}), "line 2: .* ends before it begins"),
    ],
)
def test_what_is_wrong_is_named(line: str | Content, words: str, tmp_path: Path) -> None:
    source = tmp_path / "in.ndjson"
    second = line if isinstance(line, str) else json.dumps(line)
    source.write_text(f"{json.dumps(document('kept', f'{CANARY} again'))}\n{second}\n")
    with pytest.raises(InputError, match=words) as caught:
        prepare_fhir(source, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert CANARY not in str(caught.value)
    assert encoded(CANARY)[:-1] not in str(caught.value)
    assert not list(tmp_path.glob("*data*"))


def test_wrong_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        prepare_fhir(tmp_path / "none", tmp_path / "data")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no file that ends in .ndjson"):
        prepare_fhir(tmp_path / "empty", tmp_path / "data")
    cut = write(tmp_path / "cut.ndjson.gz", [document(f"d{index}", str(index)) for index in range(500)])
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"cut.ndjson.gz is a damaged or truncated gzip file \(after line \d+\)"):
        prepare_fhir(cut, tmp_path / "data")
    (tmp_path / "latin.ndjson").write_bytes(b'{"resourceType": "Patient", "id": "\xe9"}\n')
    with pytest.raises(InputError, match=r"latin.ndjson, line 1 is not UTF-8 \(byte 35\)"):
        prepare_fhir(tmp_path / "latin.ndjson", tmp_path / "data")
    (tmp_path / "bundle.json").write_text('{"resourceType": "Bundle",\n"entry": [')
    with pytest.raises(InputError, match=r"bundle.json is not JSON \(line 2, character 11\)"):
        prepare_fhir(tmp_path / "bundle.json", tmp_path / "data")
    with pytest.raises(InputError, match="has no note that can be read: 0 DocumentReference"):
        prepare_fhir(write(tmp_path / "in.ndjson", [encounter("e")]), tmp_path / "data")


def test_encounters_of_others_and_classes_that_do_not_occur(tmp_path: Path) -> None:
    context = {"encounter": [{"reference": "Encounter/e"}]}
    contents = [document("d", patient="p1", context=context), encounter("e", patient="p2")]
    with pytest.raises(InputError, match="DocumentReference d names Encounter e, which is another patient's"):
        prepared_notes(tmp_path, contents)
    contents[1] = encounter("e", patient="p1")
    with pytest.raises(InputError, match="No Encounter has the class EMER; there are: IMP"):
        prepared_notes(tmp_path, contents, encounter_classes=("EMER",))
    with pytest.raises(InputError, match=r"mortality: no example is left \(stays: 1, .* death in the stay: 0"):
        prepared_notes(tmp_path, contents, tasks=("mortality",))


@pytest.mark.parametrize(
    ("changes", "died"),
    [
        ({"hospitalization": disposition("exp")}, 1),
        ({"hospitalization": disposition("20", "https://www.nubc.org/CodeSystem/PatDischargeStatus")}, 1),
        ({"hospitalization": disposition("20", "https://hospital/ward")}, 0),
        ({"hospitalization": {"dischargeDisposition": {"text": "Died"}}}, 1),
        ({"hospitalization": disposition("home")}, 0),
        ({}, None),
    ],
)
def test_who_died(changes: Content, died: int | None, tmp_path: Path) -> None:
    prepared_notes(tmp_path, [document("d"), encounter("e", **changes)])
    assert pq.read_table(tmp_path / "data" / "admissions.parquet")["died"].to_pylist() == [died]


KEYS = ("reference", "attachment", "contentType", "data", "url", "coding", "code", "encounter", "text", "start", "end")
PARTS = ("subject", "content", "context", "type", "category", "date", "status", "period", "class", "id", "birthDate")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["\ud800", "Patient/1", "2020"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)


def test_a_resource_of_any_shape_is_taken_or_named(tmp_path: Path) -> None:
    taken, named = [], []
    with prepared_folder(tmp_path / "data") as folder, Corpus(folder) as corpus:
        reader = _Reader(folder, corpus, "utf-8")

        @settings(max_examples=150, deadline=None)
        @given(
            st.dictionaries(st.sampled_from(PARTS), JSON),
            st.sampled_from(["DocumentReference", "DocumentReference", "Encounter", "Patient", "Binary"]),
        )
        def take(changes: Content, kind: str) -> None:
            content = {**document("d"), **attached("text/plain", "eA==")[0]["attachment"], **changes}
            try:
                reader.take(Resource(content | {"resourceType": kind}, tmp_path / "in.ndjson", "line 1"))
            except InputError as error:
                named.append(str(error))
            else:
                taken.append(kind)
            for table in _TABLES:
                reader._flush(table)
            reader._flush_notes()

        take()
    assert {"DocumentReference", "Encounter", "Patient", "Binary"} == set(taken)
    assert named
    assert all("line 1" in words and "\n" not in words for words in named)


@pytest.mark.slow
def test_two_hundred_thousand_documents_in_little_memory(tmp_path: Path) -> None:
    """About 1.4 GB of NDJSON; prepared by a process whose peak is asked for at its end."""
    source = tmp_path / "DocumentReference.ndjson.gz"
    template = json.dumps(document("DOCUMENT", patient="PATIENT", content=attached("text/plain", "DATA")))
    with gzip.open(source, "wt", compresslevel=1) as file:
        for index in range(200_000):
            data = encoded(f"Note {index}. " + "The patient slept well and had no pain. " * 120)
            file.write(
                template.replace("DOCUMENT", f"d{index}").replace("PATIENT", f"p{index % 20_000}").replace("DATA", data)
                + "\n"
            )
    code = (
        "import resource, sys; from pathlib import Path; from clinstack.notes.fhir.prepare import prepare_fhir\n"
        "facts = prepare_fhir(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(facts['counts']['notes'], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    arguments = [sys.executable, "-c", code, str(source), str(tmp_path / "data")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    notes, peak = map(int, done.stdout.split())
    assert notes == 200_000
    assert peak < 2 * 1024 * 1024  # kB
