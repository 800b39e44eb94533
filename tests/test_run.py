"""The Run directory: created, continued, refused, never taken for done when it is not; and the atomic writes below."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import clinstack.run
from clinstack import files
from clinstack.errors import ClinstackError, InputError
from clinstack.files import (
    read_json,
    recover_directory,
    replacing_directory,
    replacing_file,
    sha256_file,
    write_json,
    write_text,
)
from clinstack.recipe import FinetuneRecipe, StageRecipe, dump_recipe, load_recipe, parse_recipe
from clinstack.run import Run, environment, open_run

INPUTS = {"examples/train.parquet": "sha256:1", "base": "sha256:2"}
SECRET = "Mr. Somebody was admitted"


@pytest.fixture
def recipe(tmp_path: Path) -> FinetuneRecipe:
    return FinetuneRecipe(run=str(tmp_path / "runs" / "one"), examples="data/examples/mortality")


def other(recipe: StageRecipe, **changes: Any) -> StageRecipe:
    return parse_recipe(recipe.model_dump(mode="json") | changes, "my.yaml")


def record_of(recipe: StageRecipe) -> dict[str, Any]:
    record: dict[str, Any] = read_json(Path(recipe.run) / "run.json")
    return record


def finish(recipe: StageRecipe, **facts: Any) -> None:
    with open_run(recipe, INPUTS) as run:
        (run.folder / "metrics.json").write_text("{}")
        run.finish(**facts)


# ---------------------------------------------------------------------- beginning, continuing, finishing


def test_a_run_is_created_with_what_it_needs_to_be_replayed(recipe: FinetuneRecipe) -> None:
    with open_run(recipe, INPUTS, stage="finetune", label="lora") as run:
        assert not run.is_done
        assert record_of(recipe)["status"] == "running"
    record = record_of(recipe)
    assert record["format_version"] == 1
    assert record["stage"] == "finetune"
    assert record["label"] == "lora"
    assert record["inputs"] == INPUTS
    assert record["seeds"] == {"training": 0, "evaluation": 0}
    assert record["starts"] == 1
    assert {"clinstack", "python", "torch", "peft"} <= set(record["versions"])
    assert record["hardware"]["cores"] == os.cpu_count()
    assert load_recipe(Path(recipe.run) / "recipe.yaml") == recipe


def test_a_run_is_reopened_until_it_is_done(recipe: FinetuneRecipe) -> None:
    with open_run(recipe, INPUTS) as run, run.timed("training"):
        run.log({"step": 1})
    with open_run(recipe, INPUTS) as run:
        assert run.record["starts"] == 2
        before = run.record["seconds"].get("training", 0.0)
        run.add_seconds("training", 1.5)
        assert run.record["seconds"]["training"] == pytest.approx(before + 1.5)
        run.log({"step": 2})
        run.finish(task="mortality")
        assert run.is_done
    record = record_of(recipe)
    assert record["status"] == "done"
    assert record["task"] == "mortality"
    assert record["seconds"]["total"] >= 0
    assert "finished" in record
    lines = (Path(recipe.run) / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1}, {"step": 2}]


def test_a_done_run_says_so_and_is_left_alone(recipe: FinetuneRecipe) -> None:
    finish(recipe)
    before = (Path(recipe.run) / "run.json").read_bytes()
    with open_run(recipe, INPUTS) as run:
        assert run.is_done
    assert (Path(recipe.run) / "run.json").read_bytes() == before


def test_the_directory_may_be_written_another_way(
    recipe: FinetuneRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(recipe)
    monkeypatch.chdir(tmp_path)
    with open_run(other(recipe, run="./runs/one"), INPUTS) as run:
        assert run.is_done


# ---------------------------------------------------------------------- refusing


def test_another_recipe_is_refused_with_what_differs(recipe: FinetuneRecipe) -> None:
    with open_run(recipe, INPUTS):
        pass
    changed = other(recipe, training={"learning_rate": 0.5}, max_tokens=64)
    with (
        pytest.raises(
            InputError, match=r"another recipe \(max_tokens: 512 -> 64; training\.learning_rate: 0\.0003 -> 0\.5\)"
        ) as caught,
        open_run(changed, INPUTS),
    ):
        pytest.fail("it was opened")
    assert "--fresh" in str(caught.value)
    assert load_recipe(Path(recipe.run) / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("inputs", "name"),
    [
        (INPUTS | {"base": "sha256:3"}, "base"),
        ({"base": "sha256:2"}, "examples/train.parquet"),
        (INPUTS | {"more": "sha256:4"}, "more"),
    ],
)
def test_a_changed_input_is_refused(recipe: FinetuneRecipe, inputs: dict[str, str], name: str) -> None:
    finish(recipe)
    with pytest.raises(InputError, match=f"the input {name} has changed"), open_run(recipe, inputs):
        pytest.fail("it was opened")


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_something_else_is_refused_and_left_alone(recipe: FinetuneRecipe, fresh: bool) -> None:
    folder = Path(recipe.run)
    write_text(folder / "thesis.txt", "years of work")
    with pytest.raises(InputError, match=r"not empty and is not a Run \(it has thesis\.txt\)"):  # noqa: SIM117
        with open_run(recipe, INPUTS, fresh=fresh):
            pytest.fail("it was opened")
    assert [item.name for item in folder.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_way_is_refused(recipe: FinetuneRecipe) -> None:
    write_text(Path(recipe.run), "a file")
    with pytest.raises(InputError, match="is a file"), open_run(recipe, INPUTS):
        pytest.fail("it was opened")


def test_what_a_start_killed_at_once_left_is_no_obstacle(recipe: FinetuneRecipe) -> None:
    folder = Path(recipe.run)
    for name in (".lock", ".run.json.partial"):
        write_text(folder / name, "")
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    with open_run(recipe, INPUTS) as run:
        assert run.record["starts"] == 1
    assert load_recipe(folder / "recipe.yaml") == recipe


def test_a_recipe_of_yours_in_the_folder_is_not_overwritten(recipe: FinetuneRecipe) -> None:
    path = Path(recipe.run) / "recipe.yaml"
    write_text(path, f"# my notes on this\nstage: finetune\nrun: {recipe.run}\nexamples: {recipe.examples}\n")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"is not a Run \(it has recipe\.yaml\)"), open_run(recipe, INPUTS):
        pytest.fail("it was opened")
    assert path.read_bytes() == before


@pytest.mark.parametrize(("file", "text"), [("run.json", '{"format'), ("recipe.yaml", "a: [")])
def test_a_damaged_run_is_refused_but_may_begin_anew(recipe: FinetuneRecipe, file: str, text: str) -> None:
    finish(recipe)
    (Path(recipe.run) / file).write_text(text)
    with pytest.raises(InputError, match="damaged"), open_run(recipe, INPUTS):
        pytest.fail("it was opened")
    with open_run(recipe, INPUTS, fresh=True) as run:
        assert not run.is_done


def test_another_format_version_is_refused(recipe: FinetuneRecipe) -> None:
    finish(recipe)
    write_json(Path(recipe.run) / "run.json", record_of(recipe) | {"format_version": 99})
    with pytest.raises(InputError, match="format version 99; this clinstack reads 1"), open_run(recipe, INPUTS):
        pytest.fail("it was opened")


def test_a_second_process_is_refused_and_the_lock_ends_with_its_holder(recipe: FinetuneRecipe) -> None:
    code = """
import sys
from clinstack.recipe import FinetuneRecipe
from clinstack.run import open_run
recipe = FinetuneRecipe(run=sys.argv[1], examples="data/examples/mortality")
with open_run(recipe, {"examples/train.parquet": "sha256:1", "base": "sha256:2"}):
    print("open", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, recipe.run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        for fresh in (False, True):
            with pytest.raises(ClinstackError, match="another process is working on this Run"):  # noqa: SIM117
                with open_run(recipe, INPUTS, fresh=fresh):
                    pytest.fail("it was opened")
        assert record_of(recipe)["status"] == "running"
        holder.kill()
    with open_run(recipe, INPUTS) as run:
        assert run.record["starts"] == 2


def test_two_runs_in_one_process_do_not_share_a_lock(recipe: FinetuneRecipe) -> None:
    with open_run(recipe, INPUTS), open_run(other(recipe, run=recipe.run + "-two"), INPUTS) as second:
        assert second.record["starts"] == 1


# ---------------------------------------------------------------------- beginning anew


def test_fresh_deletes_what_was_there(recipe: FinetuneRecipe) -> None:
    finish(recipe)
    write_text(Path(recipe.run) / "stack" / "stack.json", "{}")
    changed = other(recipe, max_tokens=64)
    with open_run(changed, {}, fresh=True) as run:
        assert not run.is_done
        assert run.record["starts"] == 1
        assert sorted(item.name for item in run.folder.iterdir()) == [".lock", "recipe.yaml", "run.json"]
    assert load_recipe(Path(recipe.run) / "recipe.yaml") == changed


def test_fresh_killed_midway_leaves_no_run_that_seems_done(
    recipe: FinetuneRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(recipe)
    write_text(Path(recipe.run) / "stack" / "stack.json", "{}")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clinstack.run.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt), open_run(recipe, INPUTS, fresh=True):
            pytest.fail("it was opened")
    with open_run(recipe, INPUTS) as run:
        assert not run.is_done


# ---------------------------------------------------------------------- failing


def _work_and_stop(run: Run) -> None:
    run.log({"step": 1})
    raise InputError("the base is gone.")


def test_what_is_refused_before_any_work_leaves_no_run(recipe: FinetuneRecipe) -> None:
    """So that the corrected recipe is not refused for being another one."""
    with pytest.raises(InputError), open_run(recipe, INPUTS):
        raise InputError("privacy.patients_per_step: lower it.")
    assert [item.name for item in Path(recipe.run).iterdir()] == [".lock"]
    corrected = recipe.model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(InputError), open_run(corrected, INPUTS) as run:
        _work_and_stop(run)
    assert record_of(corrected)["status"] == "failed"  # there is work


def test_an_error_marks_the_run_failed_without_its_message(recipe: FinetuneRecipe) -> None:
    with pytest.raises(ValueError, match="Somebody"), open_run(recipe, INPUTS):
        raise ValueError(SECRET)
    record = record_of(recipe)
    assert record["status"] == "failed"
    assert record["error"] == "ValueError"
    for file in Path(recipe.run).rglob("*"):
        if file.is_file():
            assert "Somebody" not in file.read_text(), file
    with open_run(recipe, INPUTS) as run:
        assert run.record["status"] == "running"
        assert "error" not in run.record
        assert run.record["starts"] == 2


def test_an_interrupted_run_is_unfinished(recipe: FinetuneRecipe) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(recipe, INPUTS):
        raise KeyboardInterrupt
    assert record_of(recipe)["status"] == "running"
    with open_run(recipe, INPUTS) as run:  # the lock was given back
        assert not run.is_done


def test_an_error_after_the_end_does_not_undo_a_done_run(recipe: FinetuneRecipe) -> None:
    def late() -> None:
        with open_run(recipe, INPUTS) as run:
            run.finish()
            raise ValueError("too late")

    with pytest.raises(ValueError, match="too late"):
        late()
    assert record_of(recipe)["status"] == "done"


# ---------------------------------------------------------------------- log


def test_the_log_goes_back_to_a_checkpoint(recipe: FinetuneRecipe) -> None:
    with open_run(recipe, INPUTS) as run:
        assert run.log_size() == 0
        run.rewind_log(0)  # there is no log yet
        run.log({"step": 1})
        size = run.log_size()
        run.log({"step": 2})
        run.log({"step": 3})
        run.rewind_log(size)
        assert run.log_size() == size
        run.log({"step": 2, "again": True})
        run.rewind_log(10**9)  # nothing to drop
        lines = (run.folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1}, {"step": 2, "again": True}]


def test_the_environment_names_versions_and_hardware() -> None:
    found = environment()
    assert found["versions"]["clinstack"]
    assert "not installed" not in found["versions"].values()
    assert {"machine", "system", "cores"} <= set(found["hardware"])


# ---------------------------------------------------------------------- atomic writes


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write_json(path, {"a": "ä"})
    before = sha256_file(path)

    def crash() -> None:
        with replacing_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    assert sha256_file(path) == before
    assert read_json(path) == {"a": "ä"}
    assert names(tmp_path) == ["table.json"]


def test_a_failed_directory_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "stack"
    with replacing_directory(path) as temporary:
        (temporary / "a").write_text("old")
        assert not path.exists()

    def crash() -> None:
        with replacing_directory(path) as temporary:
            (temporary / "a").write_text("half")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["stack"]


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "stack"
    for name in ("old", "new"):
        with replacing_directory(path) as temporary:
            assert names(temporary) == []
            (temporary / name).mkdir()
            (temporary / name / "file").write_text(name)
    assert names(path) == ["new"]
    assert names(tmp_path) == ["stack"]


@pytest.mark.parametrize("moment", ["first", "second"])
def test_a_crash_between_the_two_renames_is_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = tmp_path / "stack"
    write_text(path / "a", "old")
    replace = os.replace
    calls: list[object] = []

    def dying(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == (1 if moment == "first" else 2):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        patch.setattr(files, "_exchange", lambda one, other: False)
        with pytest.raises(KeyboardInterrupt), replacing_directory(path) as temporary:
            (temporary / "a").write_text("new")
    assert path.exists() == (moment == "first")
    recover_directory(path)
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["stack"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux exchanges directories in one step")
def test_a_directory_is_never_absent_where_the_system_can_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stack"
    write_text(path / "a", "old")
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("renamed in two steps"))
    with replacing_directory(path) as temporary:
        (temporary / "a").write_text("new")
    assert (path / "a").read_text() == "new"
    assert names(tmp_path) == ["stack"]


def test_parents_made_for_a_directory_go_when_it_fails(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "mine", "stays")
    with pytest.raises(KeyboardInterrupt), replacing_directory(tmp_path / "a" / "b" / "c" / "d"):
        raise KeyboardInterrupt
    assert names(tmp_path / "a") == ["mine"]


def test_recovering_keeps_the_new_directory_where_it_is_in_place(tmp_path: Path) -> None:
    write_text(tmp_path / "stack" / "a", "new")
    write_text(tmp_path / ".stack.old" / "a", "old")
    recover_directory(tmp_path / "stack")
    assert (tmp_path / "stack" / "a").read_text() == "new"
    assert names(tmp_path) == ["stack"]
    recover_directory(tmp_path / "nothing")
    assert names(tmp_path) == ["stack"]


def test_reopening_a_run_recovers_its_stack(recipe: FinetuneRecipe) -> None:
    with open_run(recipe, INPUTS):
        pass
    write_text(Path(recipe.run) / ".stack.old" / "stack.json", "{}")
    with open_run(recipe, INPUTS) as run:
        assert (run.folder / "stack" / "stack.json").is_file()


def test_a_process_killed_inside_leaves_the_old_directory(tmp_path: Path) -> None:
    write_text(tmp_path / "stack" / "a", "old")
    code = """
import os, pathlib, sys
from clinstack import files
from clinstack.files import replacing_directory
with replacing_directory(pathlib.Path(sys.argv[1])) as temporary:
    (temporary / "a").write_text("half")
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "stack")], check=False)
    assert done.returncode == -9
    assert (tmp_path / "stack" / "a").read_text() == "old"
    with replacing_directory(tmp_path / "stack") as temporary:  # what was left over does not get in
        assert names(temporary) == []
        (temporary / "b").write_text("new")
    assert names(tmp_path) == ["stack"]
    assert names(tmp_path / "stack") == ["b"]
