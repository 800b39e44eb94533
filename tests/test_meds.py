"""The MEDS export, held against the package that defines the standard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import meds
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.files import read_json, write_json
from clinstack.notes.meds.export import MEDS_SPLITS, MEDS_VERSION, choose_classes, export_meds, folder_names
from clinstack.notes.meds.samples import map_subjects, probabilities
from clinstack.notes.splits import SPLITS
from clinstack.tasks import Task
from tiny_notes import CANARY, TASKS

ADMITTED = datetime(2131, 5, 4, 3, 2, 1)


@pytest.fixture
def data(tiny_notes: Path, tmp_path: Path) -> Path:
    """The tiny Notes with times of admission and discharge; everybody was admitted a minute after the one before."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_notes, folder)
    names = sorted(pq.read_table(folder / "splits.parquet")["patient_id"].to_pylist())
    came = [ADMITTED + timedelta(minutes=index) for index in range(len(names))]
    table = {
        "encounter_id": [f"e{name}" for name in names],
        "admitted": pa.array(came, pa.timestamp("ns")),
        "discharged": pa.array([time + timedelta(days=3) for time in came], pa.timestamp("s")),
    }
    pq.write_table(pa.table(table), folder / "admissions.parquet")
    write_json(folder / "prepare.json", {"source": "test", "synthetic": True, "text": "admission"})
    return folder


def _write_run(data: Path, task: str, **changes: Any) -> Path:
    """Write a Run with predictions of validation and test, in another order than the data's."""
    run = data.parent / "run"
    run.mkdir(exist_ok=True)
    write_json(run / "run.json", {"status": "done", "task": task, "synthetic": True, **changes})
    random = np.random.default_rng(3)
    rows = []
    for split in SPLITS[1:]:
        for row in reversed(pq.read_table(data / "examples" / task / f"{split}.parquet").to_pylist()):
            score = random.normal(size=len(TASKS[task].classes)).tolist()
            names = ("example_id", "patient_id", "label")
            rows.append({name: row[name] for name in names} | {"split": split, "score": score})
    pq.write_table(pa.Table.from_pylist(rows), run / "predictions.parquet")
    return run


def _examples(data: Path, task: str, split: str) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(data / "examples" / task / f"{split}.parquet").to_pylist()
    return {row["patient_id"]: row for row in rows}


def _patients(out: Path) -> dict[int, str]:
    table = pq.read_table(out / "metadata" / "subject_ids.parquet")
    return dict(zip(table["subject_id"].to_pylist(), table["patient_id"].to_pylist(), strict=True))


def test_everything_satisfies_the_standard(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "meds"
    export_meds(data, out)
    files = sorted((out / "tasks").rglob("*.parquet"))
    assert len(files) == 3 + 3 + 3 * 4
    for file in files:
        meds.LabelSchema.validate(pq.read_table(file))
    splits = pq.read_table(out / meds.subject_splits_filepath)
    meds.SubjectSplitSchema.validate(splits)
    assert set(splits["split"].to_pylist()) == {meds.train_split, meds.tuning_split, meds.held_out_split}
    metadata = read_json(out / meds.dataset_metadata_filepath)
    meds.DatasetMetadataSchema.validate(metadata)
    assert metadata["meds_version"] == MEDS_VERSION == meds.__version__
    assert "synthetic" in metadata["dataset_name"]
    assert datetime.fromisoformat(metadata["created_at"]).tzinfo is not None


def test_labels_times_and_splits_are_the_examples(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "meds"
    summary = export_meds(data, out)
    patients = _patients(out)
    assert sorted(patients.values()) == sorted(pq.read_table(data / "splits.parquet")["patient_id"].to_pylist())
    names = sorted(patients.values())
    for split in SPLITS:
        deaths = pq.read_table(out / "tasks" / "mortality" / MEDS_SPLITS[split] / "0.parquet").to_pylist()
        examples = _examples(data, "mortality", split)
        assert {patients[row["subject_id"]]: row["boolean_value"] for row in deaths} == {
            name: bool(row["label"]) for name, row in examples.items()
        }
        for row in deaths:
            assert row["prediction_time"] == ADMITTED + timedelta(minutes=names.index(patients[row["subject_id"]]))
        assert [row["subject_id"] for row in deaths] == sorted(row["subject_id"] for row in deaths)
        stays = pq.read_table(out / "tasks" / "length_of_stay" / MEDS_SPLITS[split] / "0.parquet").to_pylist()
        assert {patients[row["subject_id"]]: row["categorical_value"] for row in stays} == {
            name: TASKS["length_of_stay"].classes[row["label"]]
            for name, row in _examples(data, "length_of_stay", split).items()
        }
        codes = pq.read_table(out / "tasks" / "diagnoses" / "428" / MEDS_SPLITS[split] / "0.parquet").to_pylist()
        assert {patients[row["subject_id"]]: row["boolean_value"] for row in codes} == {
            name: "428" in row["label"] for name, row in _examples(data, "diagnoses", split).items()
        }
        assert summary["tasks"]["mortality"]["samples"][MEDS_SPLITS[split]] == len(examples)
    assert summary["prediction_time"] == "admitted"
    assert summary["tasks"]["mortality"]["samples_that_share_subject_and_time"] == 0


def test_full_texts_are_known_at_discharge(data: Path, tmp_path: Path) -> None:
    write_json(data / "prepare.json", {"source": "test", "text": "full"})
    export_meds(data, tmp_path / "meds", ["mortality"])
    table = pq.read_table(tmp_path / "meds" / "tasks" / "mortality" / "train" / "0.parquet")
    assert min(table["prediction_time"].to_pylist()) >= ADMITTED + timedelta(days=3)
    assert "synthetic" not in read_json(tmp_path / "meds" / "metadata" / "dataset.json")["dataset_name"]
    export_meds(data, tmp_path / "meds", ["mortality"], prediction_time="admitted")
    table = pq.read_table(tmp_path / "meds" / "tasks" / "mortality" / "train" / "0.parquet")
    assert max(table["prediction_time"].to_pylist()) < ADMITTED + timedelta(days=3)


def test_a_time_with_a_zone_is_written_in_utc(data: Path, tmp_path: Path) -> None:
    table = pq.read_table(data / "admissions.parquet")
    zoned = table["admitted"].cast(pa.timestamp("us")).cast(pa.timestamp("us", "+02:00"))
    pq.write_table(table.set_column(1, "admitted", zoned), data / "admissions.parquet")
    assert zoned[0].as_py().astimezone(UTC).replace(tzinfo=None) == ADMITTED
    export_meds(data, tmp_path / "meds", ["mortality"])
    shards = (tmp_path / "meds" / "tasks" / "mortality").rglob("*.parquet")
    assert min(min(pq.read_table(file)["prediction_time"].to_pylist()) for file in shards) == ADMITTED


@pytest.mark.parametrize("task", sorted(TASKS))
def test_predictions(data: Path, tmp_path: Path, task: str) -> None:
    run, out = _write_run(data, task), tmp_path / "meds"
    summary = export_meds(data, out, ["mortality"], run)
    classes, kind = TASKS[task].classes, TASKS[task].kind
    predicted = {row["example_id"]: row for row in pq.read_table(run / "predictions.parquet").to_pylist()}
    patients = _patients(out)
    assert summary["predictions"][task]["samples"].keys() == {"tuning", "held_out"}
    for index, name in enumerate(classes):
        if kind == "binary" and index == 0:
            continue
        place = out / "predictions" / task / ("" if kind == "binary" else folder_names(classes)[name])
        table = pq.read_table(place / "held_out" / "0.parquet")
        # The columns of meds-evaluation 0.0.6, which extends the label schema by its two.
        meds.LabelSchema.validate(table.select(["subject_id", "prediction_time", "boolean_value"]))
        assert table.schema.names[3:] == ["predicted_boolean_value", "predicted_boolean_probability"]
        assert table.schema.types[3:] == [pa.bool_(), pa.float32()]
        examples = _examples(data, task, "test")
        assert table.num_rows == len(examples)
        for row in table.to_pylist():
            truth = predicted[examples[patients[row["subject_id"]]]["example_id"]]
            logits = np.array(truth["score"])
            if kind == "multilabel":
                expected, decided = 1 / (1 + np.exp(-logits[index])), logits[index] >= 0
                has = name in truth["label"]
            else:
                expected = np.exp(logits[index]) / np.exp(logits).sum()
                decided, has = logits.argmax() == index, truth["label"] == index
            assert row["predicted_boolean_probability"] == pytest.approx(expected, rel=1e-6)
            assert row["predicted_boolean_value"] == decided
            assert row["boolean_value"] == has
    assert not (out / "predictions" / task / "train").exists()


def test_probabilities_of_large_logits_are_finite() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, -1e4]])
    assert probabilities(Task("a", "binary", ("no", "yes")), logits).tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert probabilities(Task("a", "multilabel", ("x", "y")), logits).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_whole_numbers_stay_and_other_identifiers_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert map_subjects(["10006", "-3", "0"]) == ({"10006": 10006, "-3": -3, "0": 0}, False)
    for name in ("007", "p1", "1.0", "", "９", str(2**63), "1 "):
        subjects, mapped = map_subjects(["5", name])
        assert mapped
        assert len(set(subjects.values())) == 2
        assert all(0 <= number < 2**63 for number in subjects.values())
        # The same number whoever else is in the set.
        assert map_subjects([name])[0][name] == subjects[name]
    # The first 63 bits of what sha256sum says: exports of different versions can be joined.
    assert map_subjects(["p1"])[0]["p1"] == 0xF64551FCD6F07823 >> 1

    def clash(name: str, attempt: int) -> int:
        return attempt

    monkeypatch.setattr("clinstack.notes.meds.samples._hashed", clash)
    assert map_subjects(["c", "a", "b"]) == ({"a": 0, "b": 1, "c": 2}, True)


def test_numeric_identifiers_need_no_file_beside(data: Path, tmp_path: Path) -> None:
    def number(file: Path) -> None:
        table = pq.read_table(file)
        ids = pa.array([name.removeprefix("p").lstrip("0") or "0" for name in table["patient_id"].to_pylist()])
        pq.write_table(table.set_column(table.column_names.index("patient_id"), "patient_id", ids), file)

    for file in [data / "splits.parquet", *(data / "examples").glob("*/*.parquet")]:
        number(file)
    summary = export_meds(data, tmp_path / "meds")
    assert summary["subject_ids"] == "the source's"
    assert not (tmp_path / "meds" / "metadata" / "subject_ids.parquet").exists()
    ids = pq.read_table(tmp_path / "meds" / "metadata" / "subject_splits.parquet")["subject_id"].to_pylist()
    assert sorted(ids) == list(range(60))


def test_classes_of_a_multilabel_task(data: Path, tmp_path: Path) -> None:
    task, training = TASKS["diagnoses"], [["486"], ["486", "428"], ["428"], ["486"], ["038"]]
    assert choose_classes(task, training, "top:2") == ["428", "486"]
    assert choose_classes(task, training, "top:99") == list(task.classes)
    assert choose_classes(task, training, "584, 038") == ["038", "584"]
    for wrong in ("top:0", "top:", "top:many", "999", "038,999", "", ","):
        with pytest.raises(InputError, match="classes"):
            choose_classes(task, training, wrong)
    export_meds(data, tmp_path / "meds", ["diagnoses"], _write_run(data, "diagnoses"), classes="038,584")
    for kind in ("tasks", "predictions"):
        assert sorted(path.name for path in (tmp_path / "meds" / kind / "diagnoses").iterdir()) == ["038", "584"]


def test_folders_of_classes_are_safe_and_differ() -> None:
    names = folder_names(("up to 3 days", "a/b", "a b", "A_B", "..", "E885"))
    assert names["up to 3 days"] == "up_to_3_days"
    assert names["E885"] == "E885"
    assert names[".."] == "class"
    assert len({name.lower() for name in names.values()}) == 6
    assert all(name.strip("._") and "/" not in name for name in names.values())


def test_samples_that_share_subject_and_time_are_counted(data: Path, tmp_path: Path) -> None:
    path = data / "examples" / "mortality" / "test.parquet"
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([*rows, {**rows[0], "example_id": "again"}]), path)
    summary = export_meds(data, tmp_path / "meds", ["mortality"])
    assert summary["tasks"]["mortality"]["samples_that_share_subject_and_time"] == 2


def test_no_note_text(data: Path, tmp_path: Path) -> None:
    export_meds(data, tmp_path / "meds", run=_write_run(data, "diagnoses"))
    words = [CANARY.split()[0], "admitted with"]
    for file in (tmp_path / "meds").rglob("*.*"):
        content = pq.read_table(file).to_pylist() if file.suffix == ".parquet" else read_json(file)
        assert not any(word in json.dumps(content, default=str) for word in words), file


def _without(path: str, column: str) -> Callable[[Path], None]:
    def drop(data: Path) -> None:
        pq.write_table(pq.read_table(data / path).drop_columns([column]), data / path)

    return drop


def _without_first_time(data: Path) -> None:
    table = pq.read_table(data / "admissions.parquet")
    pq.write_table(table.slice(1), data / "admissions.parquet")


def _times_as_text(data: Path) -> None:
    table = pq.read_table(data / "admissions.parquet")
    pq.write_table(table.set_column(1, "admitted", table["admitted"].cast(pa.string())), data / "admissions.parquet")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda data: (data / "admissions.parquet").unlink(), r"admissions\.parquet is missing\. MEDS needs the time"),
        (_without("admissions.parquet", "admitted"), "the column admitted is missing; it has encounter_id, discharged"),
        (_without_first_time, r"1 example\(s\), the first xp000, have no time"),
        (_times_as_text, "the column admitted is string, not timestamp"),
        (_without("examples/mortality/test.parquet", "encounter_id"), "the column encounter_id is missing"),
        (lambda data: write_json(data / "prepare.json", {}), "pass --prediction-time admitted or discharged"),
        (lambda data: (data / "splits.parquet").write_text("no"), "not a readable Parquet"),
        (lambda data: shutil.rmtree(data / "examples"), "holds no tasks"),
    ],
)
def test_wrong_data_is_named_and_nothing_written(
    data: Path, tmp_path: Path, break_it: Callable[[Path], None], message: str
) -> None:
    break_it(data)
    with pytest.raises(InputError, match=message):
        export_meds(data, tmp_path / "meds")
    assert not (tmp_path / "meds").exists()


def test_a_run_on_other_data_is_refused(data: Path, tmp_path: Path) -> None:
    def refused(message: str, task: str = "mortality", **changes: Any) -> None:
        run = _write_run(data, task, **changes)
        table = pq.read_table(run / "predictions.parquet")
        if edit := edits.get(message):
            table = edit(table)
        pq.write_table(table, run / "predictions.parquet")
        with pytest.raises(InputError, match=message):
            export_meds(data, tmp_path / "meds", run=run)
        assert not (tmp_path / "meds").exists()

    def set_column(table: pa.Table, name: str, values: Any) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, pa.array(values))

    edits: dict[str, Callable[[pa.Table], pa.Table]] = {
        "the example stranger is not in the data": lambda table: set_column(
            table, "example_id", ["stranger", *table["example_id"].to_pylist()[1:]]
        ),
        "has another label in the data": lambda table: set_column(
            table, "label", [1 - label for label in table["label"].to_pylist()]
        ),
        "not one finite score for each of the 2 classes": lambda table: set_column(
            table, "score", [[0.0, 1.0, 2.0]] * table.num_rows
        ),
        "predicted twice": lambda table: pa.concat_tables([table, table]),
    }
    for message in edits:
        refused(message)
    refused("no finished Run", status="running")
    with pytest.raises(InputError, match=r"has no run\.json"):
        export_meds(data, tmp_path / "meds", run=tmp_path)


def test_a_foreign_folder_is_refused_and_an_earlier_export_replaced(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "meds"
    export_meds(data, out)
    export_meds(data, out, ["mortality"])
    assert [path.name for path in (out / "tasks").iterdir()] == ["mortality"]
    with pytest.raises(InputError, match="no earlier MEDS export"):
        export_meds(data, data)
    with pytest.raises(InputError, match="is a file"):
        export_meds(data, data / "prepare.json")
    with pytest.raises(InputError, match=r"task 'fever' is not in .*; there are diagnoses, length_of_stay, mortality"):
        export_meds(data, out, ["fever"])


def test_verb(data: Path, tmp_path: Path) -> None:
    run, out = _write_run(data, "mortality"), tmp_path / "meds"
    arguments = ["prepare", "meds", str(data), "--out", str(out), "--task", "mortality", "--run", str(run)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Synthetic: everyone in these tables is invented." in result.output
    assert "predictions/mortality: tuning 6, held_out 12" in result.output
    assert "metadata/subject_ids.parquet" in result.output
