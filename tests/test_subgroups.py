"""Groups of patients: their figures, gaps to the rest, and what is hidden of small ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import brier_score_loss, recall_score, roc_auc_score

from clinstack.errors import InputError
from clinstack.evaluate.classification import SplitScores, fit_on_validation, measure_split
from clinstack.evaluate.subgroups import SMALLEST
from clinstack.notes.groups import group_of, read_groups
from clinstack.notes.read import Examples
from clinstack.recipe import EvaluationRecipe
from clinstack.report.build import build_report
from clinstack.tasks import Task
from fake_runs import write_runs

TASK = Task("mortality", "binary", ("survived", "died"))
SETTINGS = EvaluationRecipe(resamples=200)


def logits_of(score: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros_like(score), score], axis=1)


def invented(patients: int, noise: dict[str, float], seed: int = 0) -> tuple[SplitScores, np.ndarray]:
    """A table with two rows a patient; of each group the scores are as noisy as it says."""
    draw = np.random.default_rng(seed)
    group = np.repeat(draw.choice(list(noise), patients), 2)
    labels = (draw.random(2 * patients) < 0.4).astype(int)
    spread = np.array([noise[name] for name in group])
    score = 2.0 * labels - 1.0 + spread * draw.normal(size=2 * patients)
    ids = [f"p{number // 2}" for number in range(2 * patients)]
    return SplitScores(labels.tolist(), logits_of(score), ids, {"sex": group.tolist()}), score


def by_group(metrics: dict[str, Any], attribute: str) -> dict[str, dict[str, Any]]:
    return {entry["group"]: entry for entry in metrics["subgroups"]["groups"] if entry["attribute"] == attribute}


def test_figures_and_gaps_are_those_of_scikit_learn() -> None:
    split, score = invented(300, {"female": 1.0, "male": 1.0, "other": 1.0})
    fitted = fit_on_validation(TASK, invented(300, {"female": 1.0, "male": 1.0}, seed=1)[0])
    metrics = measure_split(TASK, split, SETTINGS, fitted)
    found = by_group(metrics, "sex")
    group, labels = np.array(split.groups["sex"]), np.array(split.labels)  # type: ignore[index]
    assert metrics["subgroups"]["calibration"] == "isotonic"
    for name, entry in found.items():
        mine = group == name
        assert entry["rows"] == int(mine.sum())
        assert entry["auroc"]["value"] == pytest.approx(roc_auc_score(labels[mine], score[mine]))
        called = score >= fitted["threshold"]["score"]
        assert entry["recall"]["value"] == pytest.approx(recall_score(labels[mine], called[mine]))
        assert entry["specificity"]["value"] == pytest.approx(recall_score(labels[mine], called[mine], pos_label=0))
        gap = roc_auc_score(labels[mine], score[mine]) - roc_auc_score(labels[~mine], score[~mine])
        assert entry["gaps"]["auroc"]["value"] == pytest.approx(gap)
        assert entry["auroc"]["interval"][0] < entry["auroc"]["value"] < entry["auroc"]["interval"][1]
    largest = metrics["subgroups"]["largest_gaps"]
    assert [item["attribute"] for item in largest] == ["sex"]
    assert abs(largest[0]["value"]) == max(abs(entry["gaps"]["auroc"]["value"]) for entry in found.values())


def test_uncalibrated_probabilities_without_a_fit() -> None:
    split, score = invented(100, {"female": 1.0, "male": 1.0})
    metrics = measure_split(TASK, split, SETTINGS)
    entry = by_group(metrics, "sex")["female"]
    mine = np.array(split.groups["sex"]) == "female"  # type: ignore[index]
    probability = 1 / (1 + np.exp(-score[mine]))
    labels = np.array(split.labels)[mine]
    assert entry["brier"]["value"] == pytest.approx(brier_score_loss(labels, probability))
    assert entry["predicted_minus_observed"]["value"] == pytest.approx(float((probability - labels).mean()))
    assert "recall" not in entry  # no threshold


def test_a_group_that_is_served_worse_is_found_and_chance_is_not() -> None:
    worse = measure_split(TASK, invented(600, {"female": 4.0, "male": 0.8})[0], SETTINGS)
    gap = by_group(worse, "sex")["female"]["gaps"]["auroc"]
    assert gap["holds"]
    assert gap["value"] < -0.15
    assert gap["interval"][1] < 0
    alike = measure_split(TASK, invented(600, {"female": 1.0, "male": 1.0}, seed=2)[0], SETTINGS)
    assert not any(gap["holds"] for entry in by_group(alike, "sex").values() for gap in entry["gaps"].values())


def test_small_groups_are_hidden_and_cannot_be_worked_out() -> None:
    split, _ = invented(200, {"female": 1.0, "male": 1.0})
    group = np.array(split.groups["sex"])  # type: ignore[index]
    few = np.repeat(np.arange(200) < SMALLEST - 1, 2)
    group = np.where(few, "other", group)
    metrics = measure_split(
        TASK, SplitScores(split.labels, split.logits, split.patient_ids, {"sex": group.tolist()}), SETTINGS
    )
    found = by_group(metrics, "sex")
    assert found["other"] == {
        "attribute": "sex",
        "group": "other",
        "patients": "<10",
        "rows": "<10",
        "why": "fewer than 10 patients",
    }
    # 200 patients are known, so one of the two others is hidden with it.
    assert sorted(str(found[name]["patients"]) == "hidden" for name in ("female", "male")) == [False, True]


def test_a_share_of_few_patients_is_not_shown() -> None:
    """A recall of k / 8 says that eight died."""
    split, _ = invented(200, {"female": 1.0, "male": 1.0})
    group = np.array(split.groups["sex"])  # type: ignore[index]
    labels = np.array(split.labels)
    labels[group == "female"] = 0
    labels[np.flatnonzero(group == "female")[:8]] = 1
    metrics = measure_split(
        TASK, SplitScores(labels.tolist(), split.logits, split.patient_ids, {"sex": group.tolist()}), SETTINGS
    )
    female, male = by_group(metrics, "sex")["female"], by_group(metrics, "sex")["male"]
    assert "auroc" not in female
    assert female["classes"] == 0
    assert female["why"] == "no class with 10 patients who carry it and 10 who do not"
    assert set(female["gaps"]) == {"predicted_minus_observed"}
    # Nor the gap that it could be worked out from.
    assert set(male["gaps"]) == {"predicted_minus_observed"}
    assert male["auroc"]["value"] is not None


def test_several_classes_and_codes() -> None:
    draw = np.random.default_rng(3)
    rows = 240
    ids = [f"p{number}" for number in range(rows)]
    groups = {"sex": ["female", "male"] * (rows // 2), "insurance": ["medicare"] * rows}
    stay = Task("stay", "multiclass", ("a", "b", "c"))
    metrics = measure_split(
        stay, SplitScores(draw.integers(3, size=rows).tolist(), draw.normal(size=(rows, 3)), ids, groups), SETTINGS
    )
    found = by_group(metrics, "sex")
    assert found["female"]["classes"] == 3
    assert set(found["female"]["gaps"]) == {"auroc", "recall", "specificity"}
    assert not by_group(metrics, "insurance")  # one group is no comparison
    codes = Task("codes", "multilabel", ("1", "2", "rare"))
    labels = [[code for code, share in (("1", 0.5), ("2", 0.3)) if draw.random() < share] for _ in range(rows)]
    labels[0].append("rare")
    metrics = measure_split(codes, SplitScores(labels, draw.normal(size=(rows, 3)), ids, groups), SETTINGS)
    assert by_group(metrics, "sex")["male"]["classes"] == 2
    json.dumps(metrics, allow_nan=False)


@pytest.mark.parametrize(
    ("attribute", "value", "group"),
    [
        ("age_band", 17.9, "under 18"),
        ("age_band", 18, "18 to 44"),
        ("age_band", 64.99, "45 to 64"),
        ("age_band", 300.0, "80 and older"),
        ("age_band", float("nan"), None),
        ("sex", "F", "female"),
        ("ethnicity", "WHITE - RUSSIAN", "white"),
        ("ethnicity", "BLACK/CAPE VERDEAN", "black"),
        ("ethnicity", "HISPANIC/LATINO - PUERTO RICAN", "hispanic"),
        ("ethnicity", "UNKNOWN/NOT SPECIFIED", None),
        ("ethnicity", "PATIENT DECLINED TO ANSWER", None),
        ("ethnicity", "MIDDLE EASTERN", "middle eastern"),
        ("language", "ENGL", "english"),
        ("language", "English", "english"),
        ("language", "?", None),
        ("insurance", " Medicare ", "medicare"),
        ("insurance", None, None),
    ],
)
def test_which_group(attribute: str, value: Any, group: str | None) -> None:
    assert group_of(attribute, value) == group


def test_groups_of_examples(tmp_path: Path) -> None:
    folder = tmp_path / "examples" / "mortality"
    folder.mkdir(parents=True)
    examples = Examples(["1", "2", "3"], ["p", "q", "r"], ["", "", ""], [0, 1, 0], None, ["e2", None, "e9"])
    assert read_groups(folder, examples) == {}
    table = pa.table({"encounter_id": ["e1", "e2"], "sex": ["M", "F"], "age": [40.0, 80.0], "language": [None, None]})
    pq.write_table(table, tmp_path / "admissions.parquet")
    assert read_groups(folder, examples) == {"sex": ["female", None, None], "age_band": ["80 and older", None, None]}
    assert read_groups(folder, Examples(["1"], ["p"], [""], [0])) == {}
    pq.write_table(table.drop_columns("encounter_id"), tmp_path / "admissions.parquet")
    with pytest.raises(InputError, match="the column encounter_id is missing"):
        read_groups(folder, examples)


def with_subgroups(root: Path, gap: dict[str, Any]) -> Path:
    """Runs of one task, one of which says something of two groups."""
    write_runs(root, ("mortality",))
    file = next(path for path in root.glob("**/lora/metrics.json"))
    metrics = json.loads(file.read_text())
    figure = {"value": 0.7, "interval": [0.6, 0.8]}
    metrics.setdefault("test", {})["subgroups"] = {
        "groups": [
            {"attribute": "sex", "group": "female", "patients": 40, "auroc": figure, "gaps": {"auroc": gap}},
            {"attribute": "sex", "group": "other", "patients": "<10", "why": "fewer than 10 patients"},
        ]
    }
    file.write_text(json.dumps(metrics))
    return root


def test_the_report_says_for_whom_it_works(tmp_path: Path) -> None:
    gap = {"value": -0.2, "interval": [-0.3, -0.1], "p": 0.001, "p_holm": 0.004, "holds": True}
    paths = build_report(with_subgroups(tmp_path / "worse", gap), resamples=100)
    page = paths.markdown.read_text()
    assert "AUROC of female (sex) is −0.200 [−0.300 to −0.100] against everybody else." in page
    assert "| female | 40 | **0.700** (0.600 to 0.800) |" in page
    assert "| other | <10 | – |" in page
    measures = json.loads(paths.json.read_text())["measures"]
    assert [row["stack"] for row in measures if "subgroups" in row] == ["lora"]
    alike = build_report(with_subgroups(tmp_path / "alike", gap | {"holds": False}), resamples=100).markdown.read_text()
    assert "No group's AUROC differs from everybody else's beyond chance" in alike
    assert "| female | 40 | 0.700 (0.600 to 0.800) |" in alike
    plain = build_report(write_runs(tmp_path / "plain", ("mortality",)), resamples=100).markdown.read_text()
    assert "For whom it works" not in plain
