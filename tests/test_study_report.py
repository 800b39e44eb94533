"""Studies, several bases and seeds, and runs side by side: the tables say what the Runs say."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.evaluate.perplexity import perplexity_metrics
from clinstack.files import read_json, write_json
from clinstack.recipe import EvaluationRecipe
from clinstack.report.build import ReportPaths, build_report
from clinstack.report.published import REVISED, TABLE1, TABLE3, TABLE4, published_auroc, slips
from clinstack.report.rows import SPEC_NAMES, collect
from clinstack.report.sentences import findings
from clinstack.report.side_by_side import build_comparison
from clinstack.report.study_file import collect_study
from clinstack.report.study_report import write_study_report
from clinstack.report.summary import summarise
from clinstack.report.tables.cells import number
from clinstack.report.tables.codes import SHOWN
from clinstack.report.tables.listing import all_tables
from fake_runs import write_finetune, write_measured, write_pretrain, write_study
from test_latex import check_latex

TASKS = ("mortality", "diagnoses")
SPECS = ("head", "clinical-frozen", "clinical-frozen+lora")
EVALUATION = EvaluationRecipe(resamples=100)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    bases = {"LLaMA": SPECS, "PMC-LLaMA": SPECS[:2]}
    return write_study(folder, bases, TASKS, seeds=2, rows=150, titles=SPEC_NAMES)


@pytest.fixture(scope="module")
def study(root: Path) -> ReportPaths:
    return write_study_report(root, EVALUATION)


def test_rows_are_bases_and_stacks_and_figures_are_means_over_seeds(study: ReportPaths) -> None:
    report = read_json(study.json)
    assert [row["stack"] for row in report["rows"]] == [
        "LLaMA/head",
        "LLaMA/clinical-frozen",
        "LLaMA/clinical-frozen+lora",
        "PMC-LLaMA/head",
        "PMC-LLaMA/clinical-frozen",
    ]
    assert report["rows"][2] == report["rows"][2] | {
        "base": "LLaMA",
        "spec": "clinical-frozen+lora",
        "reference": "LLaMA/head",
        "budget": {"trials": 10, "epochs": 3},
    }
    assert report["rows"][0]["reference"] is None
    assert report["table"] == "table3"
    for stack in ("LLaMA/head", "PMC-LLaMA/clinical-frozen"):
        runs = [study.json.parent / stack.lower() / "mortality" / f"seed-{seed}" / "metrics.json" for seed in (0, 1)]
        expected = sum(read_json(run)["test"]["auroc"]["value"] for run in runs) / 2
        row = next(row for row in report["auroc"] if (row["stack"], row["task"]) == (stack, "mortality"))
        assert row["value"] == pytest.approx(expected, abs=1e-12)
        assert row["seeds"] == 2


def test_contrasts_stay_within_a_base_or_hold_a_stack_fixed(study: ReportPaths) -> None:
    pairs = {(row["a"], row["b"]) for row in study.summary.comparison.differences}
    assert pairs == {
        ("LLaMA/clinical-frozen", "LLaMA/head"),
        ("LLaMA/clinical-frozen+lora", "LLaMA/head"),
        ("LLaMA/clinical-frozen+lora", "LLaMA/clinical-frozen"),
        ("PMC-LLaMA/clinical-frozen", "PMC-LLaMA/head"),
        ("PMC-LLaMA/head", "LLaMA/head"),
        ("PMC-LLaMA/clinical-frozen", "LLaMA/clinical-frozen"),
    }


def test_bold_is_what_holds_after_the_correction(study: ReportPaths) -> None:
    auroc = next(table for table in all_tables(study.summary) if table.key == "auroc")
    assert auroc.groups == {0: "LLaMA", 3: "PMC-LLaMA"}
    seen = set()
    for key, (_, cells) in zip(study.summary.data.stacks, auroc.rows, strict=True):
        for task, cell in zip([*TASKS, "macro"], cells, strict=True):
            row = study.summary.against_reference(key, task)
            holds = row is not None and row["holds"] and row["value"] > 0
            assert cell.strong == holds
            seen.add(cell.strong)
    assert seen == {True, False}
    differences = next(table for table in all_tables(study.summary) if table.key == "differences")
    assert differences.groups == {0: "LLaMA", 3: "PMC-LLaMA", 4: "Between bases"}
    assert [name for name, _ in differences.rows][-2:] == ["Head: PMC-LLaMA − LLaMA", "Frozen: PMC-LLaMA − LLaMA"]
    assert re.search(r"; p (=|<) [01]\.\d{3}$", differences.rows[0][1][0].detail)


def test_an_interval_without_zero_is_not_bold_when_it_does_not_hold(root: Path, study: ReportPaths) -> None:
    rows = study.summary.comparison.differences
    before = [(row["holds"], row["p_holm"]) for row in rows]
    try:
        for row in rows:
            row["holds"] = False
        auroc = next(table for table in all_tables(study.summary) if table.key == "auroc")
        assert not any(cell.strong for _, cells in auroc.rows for cell in cells)
    finally:
        for row, (holds, _) in zip(rows, before, strict=True):
            row["holds"] = holds


def test_the_papers_figures_stand_beside_ours_and_are_called_the_papers(study: ReportPaths) -> None:
    text, markdown = study.html.read_text(), study.markdown.read_text()
    assert '<small class="paper">paper 66.80</small>' in text
    assert '<small class="paper">paper 58.61 †</small>' in text
    assert "paper 66.80)" in markdown
    assert "LLaMA*: printed 58.61, the printed figures&#39; mean is 59.94" in text
    assert "PMC-LLaMA clinical-frozen: printed 60.06" in markdown
    assert "printed in Gema et al. (2023), Table 3" in markdown
    row = read_json(study.json)["rows"][0]["paper"]
    assert row["auroc"]["mortality"] == "66.80"
    assert row["mean_is_a_slip"] is True
    assert row["arithmetic_mean"] == pytest.approx(59.944)


def test_the_printed_table_stands_whole_behind_ours(study: ReportPaths) -> None:
    table = next(table for table in all_tables(study.summary) if table.key == "paper")
    assert table.title == "Table 3 as printed in Gema et al. (2023)"
    assert [group for _, group in sorted(table.groups.items())][-2:] == ["LLaMA", "PMC-LLaMA"]
    rows = {table.groups.get(place): [cell.text for cell in cells] for place, (_, cells) in enumerate(table.rows)}
    assert rows["LLaMA"] == ["51.38", "66.80", "57.65", "60.06", "63.83", "58.61", "59.94 †"]
    assert rows["PMC-LLaMA"][-2:] == ["60.51", "60.51"]
    assert "later picture" in table.note


def test_every_table_is_latex_that_compiles(study: ReportPaths) -> None:
    folder = study.html.parent / "tables"
    files = {path.stem for path in folder.glob("*.tex")}
    assert files == {table.key for table in all_tables(study.summary)}
    assert {"auroc", "differences", "auprc", "f1", "operating-points", "calibration", "codes-diagnoses"} <= files
    for path in folder.glob("*.tex"):
        text = path.read_text()
        check_latex(text)
        # The paper's own table is not about invented patients.
        assert ("Synthetic patients" in text) == (path.stem != "paper")
    assert "paper} & {\\scriptsize 66.80}" in (folder / "auroc.tex").read_text()


def test_figures_are_files_too_with_the_same_bytes_each_time(study: ReportPaths, tmp_path: Path) -> None:
    folder = study.html.parent / "figures"
    names = {path.name for path in folder.iterdir()}
    kinds = {"roc", "precision-recall", "forest", "learning", "calibration"}
    for kind in kinds:
        assert {f"{kind}-{task}.{ending}" for task in TASKS for ending in ("svg", "png")} <= names
    assert {"decision-mortality.svg", "forest-macro.png"} <= names
    assert "decision-diagnoses.svg" not in names
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in folder.glob("*.png"))
    again = write_study_report(study.html.parent, EVALUATION, out=tmp_path)
    for path in folder.glob("*.svg"):
        assert path.read_bytes() == (tmp_path / "figures" / path.name).read_bytes()
    assert again.html.read_bytes() == study.html.read_bytes()
    for link in re.findall(r"!\[[^]]*\]\(([^)]*)\)", study.markdown.read_text()):
        assert (study.html.parent / link).is_file()


def test_single_codes_are_shown_by_count_and_all_of_them_are_in_a_file(study: ReportPaths) -> None:
    table = next(table for table in all_tables(study.summary) if table.key == "codes-diagnoses")
    assert table.folded
    counts = [int(cells[2].text) for _, cells in table.rows]
    assert counts == sorted(counts, reverse=True)
    assert len(table.rows) <= 2 * SHOWN
    with (study.html.parent / "tables" / "codes-diagnoses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["stack"] for row in rows} == set(study.summary.data.stacks)
    assert {row["seed"] for row in rows} == {"0", "1"}
    entries = read_json(study.json.parent / "llama/head/diagnoses/seed-1/metrics.json")["test"]["per_class"]
    mine = [row for row in rows if (row["stack"], row["seed"]) == ("LLaMA/head", "1")]
    assert [row["class"] for row in mine] == [entry["class"] for entry in entries]
    assert float(mine[0]["auroc"]) == pytest.approx(entries[0]["auroc"]["value"], abs=1e-6)
    assert int(mine[0]["validation"]) == entries[0]["counts"]["validation"]


def test_decisions_and_calibration_are_those_of_the_runs(study: ReportPaths) -> None:
    tables = {table.key: table for table in all_tables(study.summary)}
    tests = [read_json(study.json.parent / f"llama/head/mortality/seed-{seed}/metrics.json")["test"] for seed in (0, 1)]
    values = [test["threshold"]["f1"]["value"] for test in tests]
    cell = tables["f1"].rows[0][1][0]
    assert cell.text == number(sum(values) / 2)
    assert cell.detail == f"{number(min(values))} to {number(max(values))}"
    errors = [test["calibration"]["temperature"]["ece"]["value"] for test in tests]
    assert tables["calibration"].rows[0][1][1].text == number(sum(errors) / 2)
    assert "reliability" not in json.dumps(read_json(study.json)["measures"])


def test_budgets_and_seeds_are_named(study: ReportPaths) -> None:
    table = next(table for table in all_tables(study.summary) if table.key == "budgets")
    texts = [cell.text for cell in table.rows[2][1]]
    assert texts[:3] == ["10", "3", "3"]
    assert texts[4] == "0, 1"


def test_the_terminal_shows_bases_and_the_papers_figures(study: ReportPaths) -> None:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    study.show(console)
    text = console.export_text()
    assert "LLaMA/clinical-frozen+lora" in text
    assert "paper 66.80" in text
    assert text.count("synthetic patients") == 2


def test_what_is_unfinished_or_failed_is_named(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns("report.*", "tables", "figures"))
    run = folder / "llama/head/mortality/seed-1"
    write_json(run / "run.json", read_json(run / "run.json") | {"status": "running"})
    study = read_json(folder / "study.json")
    study["cells"][-1]["failure"] = "there was no memory"
    shutil.rmtree(folder / study["cells"][-1]["run"])
    write_json(folder / "study.json", study)
    sentences = findings(summarise(collect_study(folder), 20))
    assert "Not in this report, because unfinished: llama/head/mortality/seed-1." in sentences
    assert f"Not in this report: {study['cells'][-1]['name']}, because there was no memory." in sentences


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda study: study["cells"][0].pop("run"), "a cell lacks run"),
        (lambda study: study.update(format_version=2), "expected format_version 1"),
        (lambda study: study.update(cells=study["cells"][:1]), "none of the study's 1 cells"),
    ],
)
def test_a_study_of_another_form_is_refused(tmp_path: Path, change: object, message: str) -> None:
    cell = {"name": "a", "role": "final", "base": "b", "spec": "head", "run": "a", "task": "mortality", "seed": 0}
    study = {"format_version": 1, "table": "table3", "cells": [cell]}
    change(study)  # type: ignore[operator]
    write_json(tmp_path / "study.json", study)
    with pytest.raises(InputError, match=message):
        write_study_report(tmp_path, EVALUATION)


def test_encoders_stand_beside_the_papers_table_4(tmp_path: Path) -> None:
    bases = {"BlueBERT": ("full", "lora"), "LLaMA": ("clinical-trainable+lora",)}
    write_study(tmp_path, bases, ("mortality",), seeds=1, rows=150, table="table4", titles=SPEC_NAMES)
    paths = write_study_report(tmp_path, EVALUATION)
    pairs = {(row["a"], row["b"]) for row in paths.summary.comparison.differences}
    assert pairs == {("BlueBERT/lora", "BlueBERT/full"), ("LLaMA/clinical-trainable+lora", "BlueBERT/lora")}
    text = paths.markdown.read_text()
    assert "Table 4: AUROC on the test patients" in text
    assert "paper 81.90" in text
    assert "paper 76.62" in text
    assert "above the same base fine-tuned whole" in text


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_measured(tmp_path / f"seed-{seed}", "mortality", "lora", 150, seed)
    data = collect(tmp_path)
    assert list(data.rows) == ["lora"]
    assert [run.seed for run in data.finetune["mortality"]["lora"]] == [0, 1]


def test_runs_with_other_recipes_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for task in TASKS[: 1 + (name == "a")]:
            folder = write_finetune(tmp_path / name, task, "lora", rows=30)
            (folder / "recipe.yaml").write_text(f"stage: finetune\nmax_tokens: {len(name) + (name == 'b')}\n")
    data = collect(tmp_path)
    assert list(data.rows) == ["lora (a)", "lora (b)"]
    assert [row.name for row in data.rows.values()] == ["+ LoRA (a)", "+ LoRA (b)"]
    assert list(data.finetune["diagnoses"]) == ["lora (a)"]


def test_several_bases_in_a_plain_folder_are_groups(tmp_path: Path) -> None:
    for base in ("llama", "bert"):
        facts = {"base": base, "fingerprint": "sha256:0", "trainable_parameters": 2, "parameters": 9}
        for stack in ("head", "lora"):
            write_finetune(tmp_path / base, "mortality", stack, rows=60, stack=facts)
    data = collect(tmp_path)
    assert list(data.rows) == ["bert/head", "bert/lora", "llama/head", "llama/lora"]
    assert data.reference_of("llama/lora") == "llama/head"
    assert data.reference_of("llama/head") is None


def test_trials_of_a_sweep_are_not_rows(tmp_path: Path) -> None:
    write_finetune(tmp_path, "mortality", "head", rows=30)
    write_json(tmp_path / "sweep" / "run.json", {"stage": "sweep", "status": "done", "label": "head"})
    write_measured(tmp_path / "sweep" / "trials" / "0", "mortality", "head", 60)
    data = collect(tmp_path)
    assert [run.name for run in data.runs] == ["finetune/mortality/head"]
    assert not data.unfinished


def test_runs_side_by_side(tmp_path: Path) -> None:
    first = write_measured(tmp_path / "a" / "one", "mortality", "head", 150)
    second = write_measured(tmp_path / "b", "mortality", "lora", 150)
    third = write_measured(tmp_path / "c", "diagnoses", "lora", 150)
    other = write_measured(tmp_path / "d", "diagnoses", "head", 100)
    paths = build_comparison([first, second, third, other], resamples=100)
    assert paths.html == tmp_path / "comparison" / "report.html"
    report = read_json(paths.json)
    assert [row["stack"] for row in report["rows"]] == ["a/one", "b", "c", "d"]
    assert {(row["a"], row["b"]) for row in report["differences"]} == {("b", "a/one")}
    assert report["unpaired"] == ["diagnoses"]
    text = paths.markdown.read_text()
    assert "DIAG is not compared in pairs: the Runs were tested on other examples." in text
    assert "How the finetune recipes differ" in text
    assert "| training.learning_rate | 0.01 | 0.001 | 0.001 | 0.01 |" in text
    assert "training.epochs" not in text
    for metrics, name in ((first, "a/one"), (other, "d")):
        test = read_json(metrics / "metrics.json")["test"]
        assert f"| {name} | " in text
        assert number(test[test["primary"]]["value"]) in text
    assert str(tmp_path) not in text


def test_pretrained_stacks_side_by_side(tmp_path: Path) -> None:
    first, second = write_pretrain(tmp_path / "x", notes=40), write_pretrain(tmp_path / "y", notes=40)
    text = build_comparison([first, second], resamples=100).markdown.read_text()
    assert "| x/pretrain |" in text
    assert "| y/pretrain |" in text


def test_folders_that_hold_each_other_do_not_stand_side_by_side(tmp_path: Path) -> None:
    folder = write_finetune(tmp_path, "mortality", "head", rows=30)
    for folders in ([folder, folder], [tmp_path, folder], [folder, folder.parent]):
        with pytest.raises(InputError, match="name folders side by side"):
            build_comparison(folders, resamples=100)


def test_the_command_takes_a_study_and_several_folders(tmp_path: Path) -> None:
    run = CliRunner()
    root = write_study(tmp_path / "study", {"LLaMA": SPECS[:2]}, ("mortality",), seeds=1, rows=60)
    result = run.invoke(app, ["report", str(root), "--json"])
    assert result.exit_code == 0, result.output
    assert read_json(Path(json.loads(result.output)["json"]))["table"] == "table3"
    folders = [str(root / "llama" / spec / "mortality" / "seed-0") for spec in SPECS[:2]]
    result = run.invoke(app, ["report", *folders, "--out", str(tmp_path / "beside")])
    assert result.exit_code == 0, result.output
    assert "clinical-frozen/mortality/seed-0" in result.output
    assert isinstance(run.invoke(app, ["report", str(tmp_path / "nowhere")]).exception, InputError)


def test_real_patients_and_models_carry_no_caveat(tmp_path: Path) -> None:
    folder = write_measured(tmp_path, "mortality", "head", 150, base="/models/llama")
    write_json(folder / "run.json", read_json(folder / "run.json") | {"synthetic": False})
    paths = build_report(tmp_path, resamples=100)
    for path in (paths.html, paths.markdown, *(tmp_path / "tables").iterdir(), *(tmp_path / "figures").glob("*.svg")):
        assert "ynthetic" not in path.read_text()
        assert "/models" not in path.read_text()


def test_the_papers_tables_are_whole() -> None:
    assert [len(table) for table in (TABLE1, TABLE3, TABLE4)] == [5, 16, 9]
    assert all(len(row.figures) == 6 for row in (*TABLE3, *TABLE4))
    # The encoders fine-tuned whole stand in both.
    assert {row.figures for row in TABLE4 if row.spec == "full"} == {
        row.figures for row in TABLE3 if row.spec == "full"
    }
    assert [row.base for row in (*TABLE3, *TABLE4) if row.mean_is_a_slip] == ["LLaMA", "PMC-LLaMA", "BlueBERT", "LLaMA"]
    assert slips("table4") == [
        "BlueBERT lora: printed 71.56, the printed figures' mean is 71.38",
        "LLaMA clinical-trainable+lora: printed 72.81, the printed figures' mean is 72.73",
    ]
    assert not REVISED.mean_is_a_slip
    assert published_auroc("table3", "pmc llama", "lora", "mortality") == 78.03
    assert published_auroc("table3", "LLaMA", "lora", "mtsamples") is None
    assert published_auroc("table2", "LLaMA", "lora", "mortality") is None


def test_the_folder_of_a_table_2_study_shows_its_table(tmp_path: Path) -> None:
    cells = [{"name": name, "recipe": "demo/pretrain", "paper": "LLaMA"} for name in ("lora", "prefix", "prompt")]
    study = {"stage": "study", "run": "elsewhere", "table": "table2", "cells": cells}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    for name in ("lora", "prefix"):
        folder = write_pretrain(tmp_path / name, notes=60)
        for path in folder.iterdir():
            path.rename(tmp_path / name / path.name)
        run = tmp_path / name
        test = perplexity_metrics(run / "losses.parquet", 100, 0, "test")
        write_json(run / "metrics.json", {"test": test})
        (run / "recipe.yaml").write_text(yaml.safe_dump({"adapters": [{"name": "clinical", "method": name}]}))
        lines = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 2, "validation_loss": 3.5}]
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    report = read_json(tmp_path / "table2.json")
    assert [row["cell"] for row in report["rows"]] == ["lora", "prefix"]
    assert report["rows"][0]["paper"]["test_perplexity"] == 2.244
    assert "Not in the table: prompt, because it is not done." in report["sentences"]
    text = (tmp_path / "table2.html").read_text()
    assert "Table 2: perplexity after pretraining" in text
    assert "33.1" in text  # exp(3.5), the last validation
    check_latex((tmp_path / "tables" / "table2.tex").read_text())
    assert (tmp_path / "figures" / "learning-pretraining.png").is_file()
