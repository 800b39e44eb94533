"""The command line: quick to start, one sentence and an exit code for what is wrong, and every verb runs through."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from clinstack.files import read_json
from clinstack.recipe import PRESETS, AdapterRecipe

HEAVY = ("torch", "transformers", "peft", "duckdb", "sklearn", "matplotlib", "pyarrow", "pandas", "scipy")


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of an error."""
        assert self.out == ""
        assert "Traceback" not in self.err
        assert len(self.err.splitlines()) == 1, self.err
        return self.err


Clinstack = Callable[..., Said]


@pytest.fixture
def clinstack(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Clinstack:
    """Run the command line in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Said:
        from clinstack.cli import main

        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["clinstack", *map(str, arguments)])
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run


def in_a_process(*arguments: object) -> tuple[Said, set[str]]:
    """Run the command line in a new process; also return which heavy packages it imported."""
    code = (
        "import sys\n"
        "from clinstack.cli import main\n"
        "try:\n    main()\n"
        "finally:\n"
        f"    print('imported', *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )
    *said, imported = done.stderr.splitlines(keepends=True)
    assert imported.startswith("imported")
    return Said(done.returncode, done.stdout, "".join(said)), set(imported.split()[1:])


@pytest.fixture
def recipe(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> Path:
    """A recipe for a quick fine-tuning into ``tmp_path/run``."""
    path = tmp_path / "recipe.yaml"
    values = {
        "stage": "finetune",
        "run": str(tmp_path / "run"),
        "base": str(tiny_base),
        "examples": str(tiny_notes / "examples" / "mortality"),
        "max_tokens": 32,
        "evaluation": {"resamples": 100},
    }
    path.write_text(yaml.safe_dump(values))
    return path


# ---------------------------------------------------------------------- quick to start


def test_help_imports_nothing_heavy() -> None:
    said, imported = in_a_process("--help")
    assert said.code == 0
    for verb in ("prepare", "pretrain", "finetune", "evaluate", "report", "demo", "doctor", "validate", "presets"):
        assert verb in said.out
    assert imported == set()


def test_a_wrong_recipe_imports_nothing_heavy(recipe: Path) -> None:
    said, imported = in_a_process("finetune", recipe, "training.learning_rte=0.1")
    assert said.code == 2
    assert said.line.strip().endswith("unknown key training.learning_rte. Did you mean learning_rate?")
    assert imported == set()


def test_presets_and_version_import_nothing_heavy() -> None:
    said, imported = in_a_process("presets", "ls")
    assert (said.code, imported) == (0, set())


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "clinstack", "version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", done.stdout)


# ---------------------------------------------------------------------- what is wrong is said in one line


def test_a_typo_is_refused_with_the_right_name(clinstack: Clinstack, recipe: Path) -> None:
    said = clinstack("finetune", recipe, "training.learning_rte=0.1")
    assert said.code == 2
    assert "Did you mean learning_rate?" in said.line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "nothing.yaml"], "nothing.yaml: no such recipe. `clinstack presets ls` lists"),
        (["finetune"], "Name a recipe, or give its keys as key=value"),
        (["finetune", "RECIPE", "RECIPE"], "one recipe only; an override has the form key.sub=value"),
        (["pretrain", "RECIPE"], "this is a recipe for `clinstack finetune`, not for `clinstack pretrain`"),
        (["evaluate", "demo/pretrain"], "this is a recipe for `clinstack pretrain`, not for `clinstack evaluate`"),
        (["finetune", "RECIPE", "max_tokens=few"], "max_tokens: input should be a valid integer"),
        (["finetune", "RECIPE", "examples=HERE/none"], "train.parquet is missing; name a task's folder"),
        (["finetune", "RECIPE", "run=RECIPE"], "is a file; name a directory"),
        (["finetune", "RECIPE", "run=RECIPE/run"], "RECIPE/run cannot be written (Not a directory); name another"),
        (["finetune", "RECIPE", "run=HERE"], "is not empty and is not a Run"),
        (["finetune", "RECIPE", "base=HERE/none"], "none"),
        (["finetune", "RECIPE", "adapters=[{name: clinical, path: HERE/none}]"], "HERE/none does not exist"),
        (["pretrain", "run=HERE/run", "notes=HERE", "adapters=[{name: clinical}]"], "has no notes/*.parquet"),
        (["evaluate", "run=HERE/run", "stack=HERE/none", "notes=HERE"], "has no notes/*.parquet"),
        (["evaluate", "run=HERE/run", "stack=HERE/none"], "give either notes (for a language model) or examples"),
        (["validate", "RECIPE", "examples=HERE/none"], "train.parquet is missing"),
        (["validate", "RECIPE", "adapters=[{name: clinical, path: HERE/none}]"], "HERE/none does not exist"),
        (["doctor", "HERE/none"], "is neither a Run nor a Stack"),
        (["doctor", "HERE"], "is neither a Run nor a Stack"),
        (["report", "HERE/none"], "none is not a folder"),
        (["presets", "show", "demo/nothing"], "demo/nothing: no such preset"),
        (["presets", "show", "../recipe"], "no such preset"),
        (["presets", "cp", "demo/pretrain", "RECIPE"], "exists; name another file"),
        (["prepare", "mimic3", "--source", "HERE", "--out", "HERE/out", "--text", "half"], "use admission or full"),
        (["prepare", "cohort", "--out", "HERE"], "is not empty and not an earlier cohort"),
        (["prepare", "cohort", "--out", "HERE/cohort", "--patients", "0"], "patients is 0; use 1 to"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    clinstack: Clinstack, recipe: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    def fill(text: str) -> str:
        return text.replace("RECIPE", str(recipe)).replace("HERE", str(tmp_path))

    before = recipe.read_bytes()
    said = clinstack(*map(fill, arguments))
    assert said.code == 2
    assert said.line.startswith("Error: ")
    assert fill(message) in said.line
    assert recipe.read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_not_there_is_refused(clinstack: Clinstack, tmp_path: Path) -> None:
    said = clinstack("prepare", "mimic3", "--source", tmp_path / "none", "--out", tmp_path / "out")
    assert said.code == 2
    assert said.err.splitlines()[-1].endswith("a DuckDB or SQLite file, or postgresql://…")
    assert "Traceback" not in said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_line(clinstack: Clinstack, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    said = clinstack("finetune", recipe, f"run={tmp_path}/locked/run")
    assert said.code == 2
    assert "locked" in said.line


def test_a_failing_disk_is_one_line_and_exit_code_1(
    clinstack: Clinstack, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device", "/data/run/log.jsonl")

    monkeypatch.setattr("clinstack.run.Run.log", full)
    said = clinstack("finetune", recipe)
    assert said.code == 1
    assert "Traceback" not in said.err
    assert said.err.splitlines()[-1] == "Error: No space left on device: /data/run/log.jsonl"


def test_an_unknown_verb_and_an_unknown_option_are_refused(clinstack: Clinstack, recipe: Path) -> None:
    assert clinstack("fintune", recipe).code == 2
    assert clinstack("finetune", recipe, "--frsh").code == 2


def test_another_recipe_in_the_same_folder_is_refused(clinstack: Clinstack, recipe: Path) -> None:
    assert clinstack("finetune", recipe).code == 0
    said = clinstack("finetune", recipe, "max_tokens=20")
    assert said.code == 2
    assert "was begun with another recipe (max_tokens: 32 -> 20)" in said.line
    assert clinstack("finetune", recipe, "max_tokens=20", "--fresh").code == 0


# ---------------------------------------------------------------------- verbs


def test_finetune_evaluate_and_report_run_through(
    clinstack: Clinstack, recipe: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    said = clinstack("finetune", recipe)
    assert said.code == 0
    assert "Synthetic data: these figures say nothing about medicine." in said.out
    assert re.search(r"test auroc: \d\.\d{3}  \[\d\.\d{3}, \d\.\d{3}\]", said.out)
    assert re.search(r"\bnotes/s\b", said.err)
    examples = tiny_notes / "examples" / "mortality"
    said = clinstack(
        "evaluate",
        f"run={tmp_path}/evaluated",
        f"stack={tmp_path}/run",
        f"examples={examples}",
        f"against={tmp_path}/run",
        "evaluation.resamples=100",
    )
    assert said.code == 0
    assert "test difference, mortality_auroc: +0.000  [+0.000, +0.000]" in said.out
    said = clinstack("report", tmp_path, "--out", tmp_path / "report", "--json")
    assert said.code == 0
    paths = json.loads(said.out)
    assert all(Path(path).is_file() for path in paths.values())


def test_pretrain_runs_through_from_overrides_alone(
    clinstack: Clinstack, tiny_base: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    said = clinstack(
        "pretrain",
        f"run={tmp_path}/run",
        f"base={tiny_base}",
        f"notes={tiny_notes}",
        "context=64",
        "adapters=[{name: clinical, rank: 2}]",
        "training.max_steps=3",
        "evaluation.resamples=100",
    )
    assert said.code == 0
    assert "test perplexity, base: " in said.out
    assert "test perplexity, adapted: " in said.out
    assert re.search(r"\btokens/s\b", said.err)


def test_json_is_one_line_for_machines(clinstack: Clinstack, recipe: Path) -> None:
    for _ in range(2):  # also of a Run that was finished before
        said = clinstack("finetune", recipe, "--json")
        assert said.code == 0
        (line,) = said.out.splitlines()
        value = json.loads(line)
        assert value["status"] == "done"
        assert value["metrics"] == read_json(Path(value["run"]) / "metrics.json")


def test_unknown_figures_are_said_to_be_unknown() -> None:
    from clinstack.cli import run_figures

    nothing = {"value": None, "interval": None}
    few = {"value": 0.5, "interval": None}
    metrics = {
        "test": {
            "primary": "auroc",
            "auroc": nothing,
            "auprc": few,
            "differences": [{"metric": "auroc", **nothing}, {"metric": "auprc", "value": -0.25, "interval": [-1, 0]}],
        }
    }
    assert run_figures(metrics) == {
        "test auroc": "unknown",
        "test auprc": "0.500",
        "test difference, auroc": "unknown",
        "test difference, auprc": "-0.250  [-1.000, +0.000]",
    }


def test_validate_shows_what_would_train_and_reads_no_weight(
    clinstack: Clinstack, recipe: Path, tiny_base: Path, tmp_path: Path
) -> None:
    described = tmp_path / "described"
    shutil.copytree(tiny_base, described, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = json.loads((described / "tokenizer_config.json").read_text())
    (described / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    said = clinstack("validate", recipe, f"base={described}", "adapters=[{name: task, rank: 2}]")
    assert said.code == 0
    assert "LlamaForSequenceClassification" in said.out
    # Two layers: 2 x (32 + 32) for the query, 2 x (32 + 16) for the value projection; and 2 x 32 for the head.
    assert re.search(r"task +. trainable . lora: rank 2 on q_proj, v_proj +. +448 ", said.out)
    assert re.search(r"head +. trainable . 2 outputs +. +64 ", said.out)
    assert re.search(r"trainable +. +. +. +512 ", said.out)
    assert "note The tokenizer has no padding token" in said.out
    assert "The recipe is good: finetune into" in said.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("base=nowhere", "nowhere is neither a folder, nor a hub id"),
        ("max_tokens=300", "300 tokens are more than the 256 positions"),
        ("adapters=[{name: task, target_modules: [q_prj]}]", "has no 'q_prj'"),
        ("adapters=[{name: task, method: adaption_prompt}]", "use at most 2"),
    ],
)
def test_validate_says_what_the_base_does_not_support(
    clinstack: Clinstack, recipe: Path, change: str, message: str
) -> None:
    said = clinstack("validate", recipe, change)
    assert said.code == 2
    assert message in said.line


def test_doctor_says_what_was_repaired_in_the_tokenizer(clinstack: Clinstack, tiny_base: Path, tmp_path: Path) -> None:
    from clinstack.model.stack import Stack

    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": ""}))
    Stack.build(str(copy), [AdapterRecipe(name="clinical")]).save(tmp_path / "stack")
    assert "note The tokenizer has no end token; '</s>' serves." in clinstack("doctor", tmp_path / "stack").out


def test_presets_are_listed_shown_and_copied(clinstack: Clinstack, tmp_path: Path) -> None:
    listed = clinstack("presets", "ls").out
    for path in PRESETS.rglob("*.yaml"):
        assert str(path.relative_to(PRESETS).with_suffix("")) in listed
    text = (PRESETS / "demo" / "pretrain.yaml").read_text()
    assert clinstack("presets", "show", "demo/pretrain").out == text
    copy = tmp_path / "mine" / "recipe.yaml"
    assert clinstack("presets", "cp", "demo/pretrain", copy).code == 0
    assert copy.read_text() == text


def test_a_cohort_is_prepared(clinstack: Clinstack, tmp_path: Path) -> None:
    said = clinstack("prepare", "cohort", "--out", tmp_path / "cohort", "--patients", "60", "--seed", "3")
    assert said.code == 0
    assert "Synthetic: everyone in these tables is invented." in said.out
    assert "clinstack prepare mimic3 --source" in said.out
    said = clinstack(
        "prepare", "mimic3", "--source", tmp_path / "cohort", "--out", tmp_path / "data", "--minimum-count", "3"
    )
    assert said.code == 0
    assert "Attrition" in said.out
    assert "Synthetic" in said.out
    assert read_json(tmp_path / "data" / "prepare.json")["synthetic"] is True
    for task in ("mortality", "diagnoses", "length_of_stay", "procedures", "prolonged_ventilation"):
        assert task in said.out
        assert (tmp_path / "data" / "examples" / task / "train.parquet").is_file()


# ---------------------------------------------------------------------- doctor


@pytest.fixture
def saved(
    tiny_base: Path, table3: dict[str, list[AdapterRecipe]], mortality: Any, perturbed: Any, tmp_path: Path
) -> Path:
    from clinstack.model.stack import Stack

    folder = tmp_path / "stack"
    perturbed(Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality)).save(folder)
    return folder


def test_doctor_explains_a_stack(clinstack: Clinstack, saved: Path) -> None:
    said = clinstack("doctor", saved)
    assert said.code == 0
    record = read_json(saved / "stack.json")
    assert record["base"]["fingerprint"] in said.out
    for adapter in record["adapters"]:
        assert re.search(rf"{adapter['name']}\b.*{'trainable' if adapter['trainable'] else 'frozen'}", said.out)
        assert adapter["weights"][:19] in said.out
        assert adapter["parent"][:19] in said.out
    layers = [line for line in said.out.splitlines() if "_proj" in line]
    assert len(layers) == 4  # q_proj and v_proj of two layers
    assert all("clinical + task" in line for line in layers)
    assert said.out.count("ok ") == 4
    assert "mortality: binary, 2 classes" in said.out
    assert "_proj" not in clinstack("doctor", saved, "--no-layers").out


def test_doctor_says_that_an_adapter_was_never_trained(
    clinstack: Clinstack, tiny_base: Path, mortality: Any, tmp_path: Path
) -> None:
    from clinstack.model.stack import Stack

    Stack.build(str(tiny_base), [AdapterRecipe(name="task", rank=2)], mortality).save(tmp_path / "stack")
    assert "task: no effect on the output; it was never trained" in clinstack("doctor", tmp_path / "stack").out


def test_doctor_refuses_a_stack_that_was_tampered_with(clinstack: Clinstack, saved: Path, tiny_base: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(tiny_base, saved.parent / "base"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += 0.01
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    said = clinstack("doctor", saved, "--base", other)
    assert said.code != 0
    assert "is not the one that this stack was built on" in said.line

    path = saved / "clinical" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name] += 0.01
    save_file(tensors, path, metadata={"format": "pt"})
    said = clinstack("doctor", saved)
    assert said.code != 0
    assert "are not those that stack.json records" in said.line


def test_doctor_without_a_stack_shows_the_environment(clinstack: Clinstack) -> None:
    said = clinstack("doctor")
    assert said.code == 0
    for name in ("clinstack", "torch", "peft", "transformers", "cores", "threads", "accelerator"):
        assert name in said.out


# ---------------------------------------------------------------------- interrupted


def test_control_c_says_how_to_go_on(clinstack: Clinstack, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clinstack.engine.trainer.compute_gradients", interrupt)
        said = clinstack("finetune", recipe)
    assert said.code == 130
    assert "The same command goes on from the last checkpoint." in said.err
    assert "Traceback" not in said.err
    assert clinstack("finetune", recipe).code == 0


@pytest.mark.slow
def test_a_real_control_c(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clinstack", "finetune", str(recipe), "training.epochs=2000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    end = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size > 1000):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from the last checkpoint" in err
    assert "Traceback" not in err
