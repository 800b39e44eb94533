"""The course's notebook: kept as it was run, nothing in it dead, its Korean texts beside it, and it runs."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import nbformat
import pytest
import typer
from pydantic import BaseModel

from clinstack.cli import app
from clinstack.recipe import PRESETS, STAGES

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "fine_tune_a_clinical_llm.ipynb"
KOREAN = NOTEBOOK.with_suffix(".ko.md")
COURSE = ROOT / "docs" / "course.md"
PLACE = "PLACE"
"""Stands for what a name holds when the notebook runs."""

sys.path.insert(0, str(ROOT / "scripts"))
builder = importlib.import_module("build_notebook")


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tree(notebook: Any) -> ast.Module:
    """Every code cell is plain Python: no shell lines, no magics."""
    return ast.parse("\n".join(cell.source for cell in code_cells(notebook)))


def text_of(node: ast.expr, names: dict[str, str]) -> str | None:
    """Return what a string or an f-string comes to, as far as the notebook's own text says it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.IfExp):
        return text_of(node.body, names)
    if isinstance(node, ast.JoinedStr):
        parts = []
        for part in node.values:
            value = part.value if isinstance(part, ast.FormattedValue) else part
            name = value.id if isinstance(value, ast.Name) else ""
            parts.append(names.get(name, PLACE) if isinstance(part, ast.FormattedValue) else str(part.value))  # type: ignore[attr-defined]
        return "".join(parts)
    return None


def commands(notebook: Any) -> list[list[str]]:
    """Return the words of each clinstack command in the notebook."""
    names: dict[str, str] = {}
    for node in ast.walk(tree(notebook)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = text_of(node.value, names)
            if isinstance(node.value, ast.JoinedStr | ast.Constant | ast.IfExp) and text is not None:
                names[node.targets[0].id] = text
    found = []
    for node in ast.walk(tree(notebook)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "clinstack":
            text = text_of(node.args[0], names)
            assert text is not None, ast.unparse(node)
            found.append(shlex.split(text))
    return found


def documented_commands() -> list[list[str]]:
    """Return the words of each clinstack command on the course's page."""
    blocks = re.findall(r"^```bash\n(.*?)^```", COURSE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("clinstack ")]


def refuse_unknown(words: list[str]) -> None:
    """Assert that a command, its options and the keys of its overrides exist."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands"):
        assert rest, words
        assert rest[0] in command.commands, f"no command {' '.join(words)}"
        command = command.commands[rest.pop(0)]
    options = {option for parameter in command.params for option in parameter.opts}
    for word in rest:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"{word} of {' '.join(words)}"
    verb = words[0]
    recipes = [word for word in rest if (PRESETS / f"{word}.yaml").is_file()]
    stage = verb if verb in STAGES else None
    for word in rest if stage else ():
        if "=" in word and not word.startswith("-"):
            assert has_key(STAGES[str(stage)], word.partition("=")[0].split(".")), f"{word} of {' '.join(words)}"
    if verb in STAGES:
        assert recipes or PLACE in rest or any(word.startswith("run=") for word in rest), f"no recipe: {words}"


def has_key(model: type[BaseModel], key: list[str]) -> bool:
    if key[0] not in model.model_fields:
        return False
    if len(key) == 1:
        return True
    kinds = [model.model_fields[key[0]].annotation]
    kinds += [inner for kind in list(kinds) for inner in get_args(kind)]
    below = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    rest = key[1:] if not key[1].isdecimal() else key[2:]
    return not below or not rest or has_key(below[0], rest)


def test_it_is_built_from_its_source(notebook: Any) -> None:
    """After a change of the source: python scripts/build_notebook.py."""
    fresh = builder.build(builder.read_source(builder.SOURCE))
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in fresh.cells
    ]


def test_it_is_kept_as_it_was_run(notebook: Any) -> None:
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = Counter(output.output_type for cell in cells for output in cell.outputs)
    assert kinds["error"] == 0
    assert kinds["stream"] >= 10
    assert kinds["display_data"] >= 3  # two figures and the mask at least
    assert not [output.text for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    shown = builder.outputs(notebook)
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|usr|var|opt|mnt|work)/", shown)
    assert "�" not in shown
    assert NOTEBOOK.stat().st_size < 500_000


def test_every_command_exists(notebook: Any) -> None:
    found = commands(notebook)
    verbs = {words[0] for words in found}
    assert {"doctor", "prepare", "presets", "estimate", "instruct", "generate"} <= verbs
    for words in found:
        refuse_unknown(words)


def test_every_command_of_the_page_exists() -> None:
    found = documented_commands()
    assert {"prepare", "pretrain", "instruct", "generate", "estimate", "report"} <= {words[0] for words in found}
    for words in found:
        refuse_unknown(words)


def test_a_dead_command_is_noticed() -> None:
    for words in (["train"], ["prepare", "oracle", "--where"], ["instruct", "demo/instruct", "training.step=1"]):
        with pytest.raises(AssertionError):
            refuse_unknown(words)


def test_no_import_is_dead(notebook: Any) -> None:
    """Each import can be done today, and what it imports is used."""
    used = {node.id for node in ast.walk(tree(notebook)) if isinstance(node, ast.Name)}
    for name, module, attribute in imports(tree(notebook)):
        assert name in used, f"{name} is imported and not used"
        loaded = importlib.import_module(module)
        assert attribute is None or hasattr(loaded, attribute), f"{module} has no {attribute}"


def imports(module: ast.Module) -> Iterator[tuple[str, str, str | None]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for item in node.names:
                yield (item.asname or item.name).split(".")[0], item.name, None
        elif isinstance(node, ast.ImportFrom):
            for item in node.names:
                yield item.asname or item.name, str(node.module), item.name


def test_the_korean_texts_are_those_of_the_notebook(notebook: Any) -> None:
    """The same sections, boxes, tables and names of things, in Korean."""
    english = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    korean = builder.read_texts(KOREAN)
    assert len(korean) == len(english)
    for ours, theirs in zip(korean, english, strict=True):
        assert re.search(r"[가-힣]{2}", ours)
        for pattern in (r"^(#+) ", r"^(> \*\*)", r"^(\|)"):
            assert re.findall(pattern, ours, re.MULTILINE) == re.findall(pattern, theirs, re.MULTILINE), ours[:80]
        assert Counter(re.findall(r"`[^`\n]+`", ours)) == Counter(re.findall(r"`[^`\n]+`", theirs)), ours[:80]
    built = builder.build(builder.read_source(builder.SOURCE), korean)
    assert [cell.source for cell in code_cells(built)] == [cell.source for cell in code_cells(notebook)]


def test_boxes_are_called_alike_everywhere() -> None:
    for path, words in ((builder.SOURCE, {"Trap", "Think"}), (KOREAN, {"함정", "생각해 보기"})):
        found = set(re.findall(r"^> \*\*(.+?)\.?\*\*", path.read_text("utf-8"), re.MULTILINE))
        assert found == words


def run(folder: Path, base: str, **environment: str) -> Any:
    """Run the lesson in small with one of its bases, from an empty folder, and return it."""
    cells = builder.read_source(builder.SOURCE)
    kind, switch = cells[1]
    assert 'BASE = "embedded"' in switch
    cells[1] = (kind, switch.replace('BASE = "embedded"', f'BASE = "{base}"'))
    environment |= {"CLINSTACK_COURSE_SMALL": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = builder.run(builder.build(cells), folder, environment)
    assert not [output for cell in code_cells(done) for output in cell.outputs if output.get("name") == "stderr"]
    for name in ("before", "after", "instruct"):
        record = json.loads((folder / "runs" / "course" / base / name / "run.json").read_text("utf-8"))
        assert record["status"] == "done"
    return done


@pytest.mark.slow
def test_it_runs_with_the_embedded_base(tmp_path: Path) -> None:
    run(tmp_path, "embedded")


@pytest.mark.slow
def test_it_runs_with_phi2(tmp_path: Path) -> None:
    """With a tiny random phi in place of phi-2, in 4 bits on a CPU: the switch alone makes the difference."""
    pytest.importorskip("bitsandbytes")
    snapshot = tmp_path / "hub" / "models--microsoft--phi-2" / "snapshots" / "tiny"
    write_tiny_phi(snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("tiny", encoding="utf-8")
    done = run(tmp_path, "phi-2", HF_HUB_CACHE=str(tmp_path / "hub"))
    shown = builder.outputs(done)
    assert "PhiForCausalLM" in shown
    assert "the base has no 'Wqkv'; it has dense, fc1, fc2, k_proj, q_proj, v_proj" in shown
    assert "held in 4 bits" in shown


def write_tiny_phi(folder: Path) -> None:
    """Write a random phi of two layers, whose tokenizer reads any text byte by byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PhiConfig, PreTrainedTokenizerFast

    special = "<|endoftext|>"  # one token for the beginning, the end and padding, as phi-2 has it
    vocabulary = {token: index for index, token in enumerate([special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special, eos_token=special).save_pretrained(folder)
    config = PhiConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
