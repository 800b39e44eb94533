"""The report says what the Runs say, stands alone, and copes with what is missing."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from clinstack.errors import InputError
from clinstack.evaluate.auroc import auroc
from clinstack.report.build import ReportPaths, build_report
from clinstack.report.collect import STACKS
from clinstack.report.console import console_tables
from clinstack.report.rows import collect
from clinstack.report.summary import summarise
from clinstack.report.tables.cells import Cell, number
from clinstack.report.tables.listing import all_tables
from clinstack.report.tables.outcomes import auroc_table
from fake_runs import DECODER, TASKS, write_finetune, write_pretrain, write_run, write_runs

TWO = ("mortality", "diagnoses")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ReportPaths:
    return build_report(write_runs(tmp_path_factory.mktemp("runs"), TWO), resamples=200)


class Page(HTMLParser):
    """Collects tags with their attributes, and complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "hr", "img", "link", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_json_has_the_promised_form(whole: ReportPaths) -> None:
    report = json.loads(whole.json.read_text())
    assert report["synthetic"] is True
    assert [row["stack"] for row in report["perplexity"]] == ["base", "clinical"]
    assert {"stack", "value", "interval", "bits_per_character"} <= report["perplexity"][0].keys()
    cells = {(row["stack"], row["task"]) for row in report["auroc"]}
    assert cells == {(stack, task) for stack in STACKS for task in (*TWO, "macro")}
    for row in report["auroc"] + report["differences"] + report["perplexity"]:
        low, high = row["interval"]
        assert low <= row["value"] <= high
    pairs = {(row["a"], row["b"]) for row in report["differences"] if row["metric"] == "macro_auroc"}
    assert {(stack, "head") for stack in STACKS if stack != "head"} <= pairs
    assert {
        ("clinical-frozen+lora", "clinical-frozen"),
        ("clinical-trainable+lora", "clinical-trainable"),
        ("clinical-trainable", "clinical-frozen"),
        ("clinical-frozen+lora", "lora"),
    } <= pairs
    assert {row["metric"] for row in report["differences"]} == {"macro_auroc", "mortality_auroc", "diagnoses_auroc"}
    assert len(report["runs"]) == 13
    assert report["unfinished"] == []


def test_figures_are_those_of_the_predictions(whole: ReportPaths) -> None:
    table = pq.read_table(whole.json.parent / "finetune/mortality/lora/predictions.parquet")
    scores = [second - first for first, second in table["score"].to_pylist()]
    expected = auroc(table["label"].to_numpy(), scores)
    row = whole.summary.auroc("lora", "mortality")
    assert row is not None
    assert row["value"] == pytest.approx(expected, abs=1e-12)
    report = json.loads(whole.json.read_text())
    value = {(entry["stack"], entry["task"]): entry["value"] for entry in report["auroc"]}
    for entry in report["differences"]:
        assert entry["value"] == pytest.approx(value[entry["a"], entry["task"]] - value[entry["b"], entry["task"]])
    assert f"{expected:.3f}" in whole.html.read_text()
    assert f"{expected:.3f}" in whole.markdown.read_text()


def test_page_is_one_file_that_says_it_is_synthetic(whole: ReportPaths) -> None:
    text = whole.html.read_text()
    assert "Here the patients are invented and the base model is a toy." in text
    assert not re.search(r"https?://", text)
    assert "<script" not in text
    assert "@import" not in text
    page = Page(text)
    assert page.open == []
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert all(target.startswith("#") for target in re.findall(r"url\(\"?([^)]*)", text))


def test_page_is_accessible(whole: ReportPaths) -> None:
    page = Page(whole.html.read_text())
    by_tag: dict[str, list[dict[str, str | None]]] = {}
    for tag, attributes in page.tags:
        by_tag.setdefault(tag, []).append(attributes)
    assert by_tag["html"][0]["lang"] == "en"
    assert "width=device-width" in str(by_tag["meta"][1]["content"])
    # One perplexity figure, ROC and precision-recall for each task, a forest plot for each task and the mean.
    assert len(by_tag["svg"]) == len(by_tag["figure"]) == len(by_tag["figcaption"]) == 1 + 2 * 2 + 3
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in by_tag["svg"])
    assert len(by_tag["table"]) == len(by_tag["caption"])
    assert all(head.get("scope") in {"row", "col"} for head in by_tag["th"])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', whole.html.read_text())
    assert {a or b for a, b in used} <= set(ids)


def test_markdown_has_the_same_tables(whole: ReportPaths) -> None:
    text = whole.markdown.read_text()
    assert "Here the patients are invented and the base model is a toy." in text
    for table in all_tables(whole.summary):
        assert f"## {table.title}\n" in text
    for line in (line for line in text.splitlines() if line.startswith("|")):
        assert line.endswith("|")
    for name in STACKS.values():
        assert f"| {name} |" in text


def test_bold_means_that_the_difference_to_head_excludes_zero(whole: ReportPaths) -> None:
    table = auroc_table(whole.summary)
    columns = [*TWO, "macro"]
    for stack, (_, cells) in zip(STACKS, table.rows, strict=True):
        for task, cell in zip(columns, cells, strict=True):
            row = whole.summary.difference(stack, "head", task)
            assert cell.strong == (row is not None and row["interval"][0] > 0)
    assert any(cell.strong for _, cells in table.rows for cell in cells)
    assert not any(cell.strong for cell in table.rows[0][1])


def test_the_second_adapter_gets_its_sentence(whole: ReportPaths) -> None:
    row = whole.summary.difference("clinical-frozen+lora", "clinical-frozen", "macro")
    assert row is not None
    for text in (whole.html.read_text(), whole.markdown.read_text()):
        assert "the same computation" in text
        assert f"{number(row['value'], signed=True)} in mean AUROC" in text


def test_classes_left_out_are_named(whole: ReportPaths) -> None:
    tests = {test["task"]: test for test in json.loads(whole.json.read_text())["tests"]}
    assert tests["diagnoses"]["classes_left_out"] == ["001"]
    assert tests["diagnoses"]["classes_scored"] == 19
    assert "19 of 20" in whole.html.read_text()


def test_the_same_runs_give_the_same_bytes(whole: ReportPaths, tmp_path: Path) -> None:
    again = build_report(whole.json.parent, out=tmp_path / "elsewhere", resamples=200)
    for first, second in ((whole.html, again.html), (whole.markdown, again.markdown), (whole.json, again.json)):
        assert first.read_bytes() == second.read_bytes()
        assert second.parent == tmp_path / "elsewhere"


def test_no_path_of_this_machine_is_in_the_report(whole: ReportPaths) -> None:
    for path in (whole.html, whole.markdown, whole.json):
        assert str(path.parent.parent) not in path.read_text()


def test_console_tables_show_every_stack(whole: ReportPaths) -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in console_tables(whole.summary):
        console.print(table)
    text = console.export_text()
    assert text.count("synthetic patients") == 3
    assert all(stack in text for stack in STACKS)


def test_missing_stacks_and_tasks_are_dashes(tmp_path: Path) -> None:
    write_pretrain(tmp_path)
    write_finetune(tmp_path, "mortality", "head")
    write_finetune(tmp_path, "mortality", "lora")
    write_finetune(tmp_path, "length_of_stay", "head")
    write_finetune(tmp_path, "length_of_stay", "clinical-frozen", status="running")
    paths = build_report(tmp_path, resamples=50)
    table = auroc_table(paths.summary)
    assert list(table.columns) == ["Stack", "MOR", "LOS", "Mean"]
    assert [name for name, _ in table.rows] == ["Base + head", "+ LoRA"]
    assert table.rows[1][1][1:] == [Cell("–"), Cell("–")]
    assert "finetune/length_of_stay/clinical-frozen" in paths.html.read_text()
    assert json.loads(paths.json.read_text())["unfinished"] == ["finetune/length_of_stay/clinical-frozen"]


def test_only_pretraining_or_only_one_stack(tmp_path: Path) -> None:
    write_pretrain(tmp_path / "a")
    text = build_report(tmp_path / "a", resamples=50).html.read_text()
    assert "Perplexity by note type" in text
    assert 'id="auroc"' not in text
    write_finetune(tmp_path / "b", "diagnoses", "my $stack|name")
    paths = build_report(tmp_path / "b", resamples=50)
    assert "my $stack\\|name" in paths.markdown.read_text()
    assert 'id="differences"' not in paths.html.read_text()


def test_a_root_that_is_itself_a_run(tmp_path: Path) -> None:
    folder = write_finetune(tmp_path, "mortality", "lora")
    assert json.loads(build_report(folder, resamples=50).json.read_text())["runs"][0]["run"] == "lora"


@pytest.mark.parametrize("task", TASKS)
def test_a_single_row_has_no_figures_and_no_crash(tmp_path: Path, task: str) -> None:
    write_pretrain(tmp_path, notes=1)
    for stack in ("head", "lora"):
        write_finetune(tmp_path, task, stack, rows=1)
    paths = build_report(tmp_path, resamples=20)
    report = json.loads(paths.json.read_text())
    assert {row["value"] for row in report["auroc"]} == {None}
    assert "NaN" not in paths.json.read_text()
    assert auroc_table(paths.summary).rows[0][1][0] == Cell("–")


def test_real_patients_carry_no_synthetic_banner(tmp_path: Path) -> None:
    facts = {"base": "/models/private/llama", "fingerprint": "sha256:0", "trainable_parameters": 2, "parameters": 9}
    for stack in DECODER:
        write_finetune(tmp_path, "mortality", stack, synthetic=False, stack=facts)
    paths = build_report(tmp_path, resamples=50)
    assert json.loads(paths.json.read_text())["synthetic"] is False
    assert "ynthetic" not in paths.html.read_text()
    assert "ynthetic" not in paths.markdown.read_text()
    assert "toy" not in paths.html.read_text()
    assert "llama (sha256:0)" in paths.html.read_text()
    for path in (paths.html, paths.markdown, paths.json):
        assert "/models" not in path.read_text()


def test_real_patients_on_the_embedded_base_are_told_apart(tmp_path: Path) -> None:
    write_finetune(tmp_path, "mortality", "lora", synthetic=False)
    text = build_report(tmp_path, resamples=50).html.read_text()
    assert "Here the base model is a toy." in text
    assert "invented" not in text


def test_numbers_show_on_which_side_of_zero_they_lie() -> None:
    assert [number(value, signed=True) for value in (0.0, 0.0001, -0.0001, 0.25)] == [
        "0.000",
        "+0.000",
        "−0.000",
        "+0.250",
    ]
    assert number(-1.5, 1) == "−1.5"


def test_names_are_escaped(tmp_path: Path) -> None:
    write_finetune(tmp_path, "mortality", "lora", label="<b>x</b>")
    assert "<b>x" not in build_report(tmp_path, resamples=50).html.read_text()


def test_nothing_to_report_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        collect(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no finished run"):
        collect(tmp_path)
    write_run(tmp_path / "one", "pretrain", "clinical", None, 1, status="running")
    with pytest.raises(InputError, match="1 unfinished, the first is one"):
        collect(tmp_path)


def test_two_runs_of_one_stack_are_refused(tmp_path: Path) -> None:
    folder = write_finetune(tmp_path, "mortality", "lora")
    shutil.copytree(folder, tmp_path / "again")
    with pytest.raises(InputError, match=r"again and finetune/mortality/lora|finetune/mortality/lora and again"):
        collect(tmp_path)


def test_missing_predictions_and_foreign_examples_are_refused(tmp_path: Path) -> None:
    write_finetune(tmp_path, "mortality", "head")
    lora = write_finetune(tmp_path, "mortality", "lora", rows=230)
    with pytest.raises(InputError, match="do not cover the same test examples"):
        summarise(collect(tmp_path), 20)
    (lora / "predictions.parquet").unlink()
    with pytest.raises(InputError, match=r"predictions.parquet is missing"):
        summarise(collect(tmp_path), 20)
    (lora / "stack" / "stack.json").unlink()
    (tmp_path / "finetune/mortality/head/stack/stack.json").unlink()
    with pytest.raises(InputError, match="describes the task"):
        collect(tmp_path)


def test_a_failed_build_leaves_the_old_report(tmp_path: Path) -> None:
    folder = write_finetune(tmp_path, "mortality", "lora")
    old = build_report(tmp_path, resamples=20).html.read_bytes()
    (folder / "predictions.parquet").write_bytes(b"half a file")
    with pytest.raises(InputError, match="not a Parquet file"):
        build_report(tmp_path, resamples=20)
    assert (tmp_path / "report.html").read_bytes() == old
    assert not list(tmp_path.glob(".report*"))
