"""The large form of the synthetic cohort: its counts, its long notes, and that workers change nothing."""

import csv
import gzip
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from clinstack.errors import InputError
from clinstack.notes.cohort import write, write_cohort
from clinstack.notes.cohort.bulk import FEWEST_NOTES
from clinstack.notes.cohort.codes import PROCEDURE_TITLES, diagnosis_titles
from clinstack.notes.cohort.paragraphs import paragraph_pools
from clinstack.notes.cohort.tables import COLUMNS
from clinstack.notes.cohort.wording import HOSPITAL_LINE
from clinstack.notes.sections.find import admission_text

NOTES = 5000


def read(folder: Path, table: str) -> list[dict[str, str]]:
    with (folder / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort") / "large"
    write_cohort(out, None, 5, notes=NOTES)
    return out


@pytest.fixture(scope="module")
def notes(large: Path) -> list[dict[str, str]]:
    return read(large, "NOTEEVENTS")


def test_the_short_form_is_byte_for_byte_what_it_was(tmp_path: Path) -> None:
    # Recorded before the long form came: the demo's figures rest on these bytes.
    write_cohort(tmp_path / "out", 40, 7)
    digest = hashlib.sha256()
    for path in sorted((tmp_path / "out").glob("*.csv")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    assert digest.hexdigest() == "bed2d424915d1499510ed097528b6d444aede167b7c3a4e1d1c4ac94a293ff36"


def test_there_are_as_many_rows_as_mimic_has_for_the_notes(large: Path, notes: list[dict[str, str]]) -> None:
    facts = json.loads((large / "cohort.json").read_text())
    assert facts["notes"] == facts["rows"]["NOTEEVENTS"] == len(notes) == NOTES
    assert {name: len(read(large, name)) for name in COLUMNS} == facts["rows"]
    for table, rows in (("ADMISSIONS", 59_000), ("DIAGNOSES_ICD", 650_000), ("PROCEDURES_ICD", 240_000)):
        assert facts["rows"][table] == pytest.approx(rows * NOTES / 2_000_000, rel=0.15), table
    kinds = Counter(row["CATEGORY"] for row in notes)
    assert kinds["Discharge summary"] == pytest.approx(60_000 * NOTES / 2_000_000, rel=0.2)
    assert kinds["Nursing/other"] > kinds["Radiology"] > kinds["Physician "] > kinds["Respiratory "] > 0
    assert 0.05 < sum(not row["HADM_ID"] for row in notes) / NOTES < 0.15
    for table in COLUMNS:
        assert [int(row["ROW_ID"]) for row in read(large, table)] == list(range(1, facts["rows"][table] + 1))


def test_notes_are_long_and_no_two_are_alike(notes: list[dict[str, str]]) -> None:
    assert len({row["TEXT"] for row in notes}) == NOTES
    assert all(row["TEXT"].startswith(HOSPITAL_LINE) for row in notes)
    lengths = [len(row["TEXT"]) for row in notes if row["DESCRIPTION"] == "Report" and row["CATEGORY"][:5] == "Disch"]
    assert 8_000 < statistics.median(lengths) < 10_000
    assert 1_500 < statistics.mean(len(row["TEXT"]) for row in notes) < 2_200


def test_long_summaries_keep_their_sections(notes: list[dict[str, str]]) -> None:
    texts = [row["TEXT"] for row in notes if row["CATEGORY"] == "Discharge summary" and row["DESCRIPTION"] == "Report"]
    parts = [part for text in texts if (part := admission_text(text))]
    assert len(parts) > 0.9 * len(texts)
    assert all("Discharge Instructions:" in text for text in texts if "NEONATOLOGY" not in text)
    assert not any("Discharge Instructions" in part or "course complicated" in part for part in parts)


def test_no_paragraph_of_an_admission_section_would_end_it() -> None:
    pools = paragraph_pools(1)
    assert not [text for kind in ("illness", "history", "exam", "medications") for text in pools[kind] if ":" in text]
    assert not [text for pool in pools.values() for text in pool if "<" in text or ">" in text]


def test_further_codes_have_titles(large: Path) -> None:
    assert {row["ICD9_CODE"] for row in read(large, "DIAGNOSES_ICD")} <= set(diagnosis_titles())
    assert {row["ICD9_CODE"] for row in read(large, "PROCEDURES_ICD")} <= set(PROCEDURE_TITLES)
    pairs = Counter((row["HADM_ID"], row["ICD9_CODE"]) for row in read(large, "DIAGNOSES_ICD"))
    assert max(pairs.values()) == 1


def test_workers_and_gzip_change_no_table(large: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    write_cohort(tmp_path / "out", None, 5, lambda *call: calls.append(call), notes=NOTES, workers=2, compress=True)
    for name in COLUMNS:
        with gzip.open(tmp_path / "out" / f"{name}.csv.gz") as file:
            assert file.read() == (large / f"{name}.csv").read_bytes(), name
    assert calls[-1][1] == calls[-1][2] == json.loads((large / "cohort.json").read_text())["patients"]
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_it_says_that_paragraphs_return(large: Path) -> None:
    sign = (large / "SYNTHETIC.md").read_text()
    assert "paragraphs return in many of them" in sign
    assert "5,000 notes" in sign


@pytest.mark.parametrize(
    ("patients", "wanted", "workers", "message"),
    [
        (100, 99, 1, "notes is 99; 100 patients need 2500 to 1000000, and MIMIC-III has about 4348"),
        (1, 10**7, 1, "notes is 10000000; 1 patients need 25 to 10000"),
        (None, 3, 1, "notes is 3; use 25 or more"),
        (None, 10**9, 1, "patients is 23000000; use 1 to"),
        (None, None, 1, "give one of them"),
        (10, None, 0, "workers is 0; use 1 to"),
        (10, None, 10_000, "workers is 10000; use 1 to"),
    ],
)
def test_wrong_numbers_are_refused(
    tmp_path: Path, patients: int | None, wanted: int | None, workers: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_cohort(tmp_path / "out", patients, 1, notes=wanted, workers=workers)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_seen_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = write.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    with pytest.raises(InputError, match=r"needs about 4.2 GB and its disk has 1.0 GB left; make room"):
        write_cohort(tmp_path / "deep" / "out", None, 1, notes=2_000_000)
    assert not (tmp_path / "deep").exists()


def test_every_number_of_notes_is_met_exactly(tmp_path: Path) -> None:
    # The fewest notes are the hardest: a patient may have nearly as many before filling up.
    rows = write_cohort(tmp_path / "out", 60, 3, notes=60 * FEWEST_NOTES)
    assert rows["NOTEEVENTS"] == 60 * FEWEST_NOTES


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_worker_that_dies_leaves_the_earlier_cohort(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_cohort(out, 5, 0)
    before = (out / "NOTEEVENTS.csv").read_bytes()

    def kill_a_worker(description: str, done: int, total: int) -> None:
        # The first call comes when both workers live; children of this process are its workers alone.
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), 9)

    with pytest.raises(InputError, match="a worker process was killed"):
        write_cohort(out, 2000, 1, kill_a_worker, workers=2)
    assert (out / "NOTEEVENTS.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_command_leaves_the_earlier_cohort_and_no_workers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_cohort(out, 5, 0)
    before = (out / "NOTEEVENTS.csv").read_bytes()
    code = (
        "import sys; from pathlib import Path; from clinstack.notes.cohort import write_cohort\n"
        "if __name__ == '__main__':\n"
        "    say = lambda *call: print('drawn', flush=True)\n"
        "    write_cohort(Path(sys.argv[1]), 100_000, 1, say, workers=2)\n"
    )
    script = tmp_path / "write.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script), str(out)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(children) >= 2
    end = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert (out / "NOTEEVENTS.csv").read_bytes() == before
    write_cohort(out, 6, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "write.py"]
