"""A saved classifier on every row of a table: streamed, in parts that are never computed twice, on many devices.

::

    table ──▶ parts of fixed row ranges ──▶ thread: read, tokenise ──▶ logits ──▶ parts/00000.parquet ─┐
              process k of n takes                                                parts/00001.parquet ─┼▶ one table,
              part k, k + n, …                                                    …                   ─┘  metrics.json

A part is written in one step, so a run that was killed goes on with the parts that are missing. What a part holds
depends on its rows alone: neither on the number of processes nor on how often the run was started.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.engine.distributed import open_shared_run, world
from clinstack.engine.predicting import ahead, encoded_logits
from clinstack.engine.progress import progress_bar
from clinstack.engine.sharding import place
from clinstack.errors import ClinstackError, InputError
from clinstack.evaluate.calibration import Method, apply_calibration, calibration_intervals, chosen_method
from clinstack.files import read_json, replacing_file, write_json
from clinstack.model.lineage import read_stack_record, stack_folder
from clinstack.model.saving import CALIBRATION_FILE, read_calibration
from clinstack.model.stack import Stack
from clinstack.notes.read import input_hashes, is_synthetic
from clinstack.notes.text_tables import TextPart, TextTable
from clinstack.recipe import PredictRecipe
from clinstack.run import Run, is_finished
from clinstack.tokens.texts import EncodedTexts, NoteEncoder

T = TypeVar("T")
PARTS = "parts"
_PLAN = "plan.json"
_GROUP_BYTES = 64 << 20
"""Of the parts that become one group of rows; a part of a task with a thousand codes has that many by itself."""


@dataclass(frozen=True)
class _Work:
    """What the main process found before anything was computed.

    Parameters
    ----------
    inputs : dict of str to str
        Hashes of the table's files and of the stack's records.
    rows : int or None
        Of the table; None where the Run is done.
    method : {"none", "temperature", "isotonic"}
    """

    inputs: dict[str, str]
    rows: int | None
    method: Method


def predict(recipe: PredictRecipe, *, fresh: bool = False) -> Run:
    """Run the stage, or go on with it, and return its finished Run."""
    work = _main_alone(lambda: _look(recipe, fresh=fresh))
    facts = {"stage": "predict", "task": None, "synthetic": _is_synthetic(recipe)}
    with open_shared_run(recipe, work.inputs, fresh=fresh, **facts) as run:
        folder = run.folder / PARTS
        if run.is_done or work.rows is None:
            if run.writes:  # killed between its last two steps
                shutil.rmtree(folder, ignore_errors=True)
            return run
        if run.writes:
            write_json(folder / _PLAN, {"rows": work.rows, "inputs": work.inputs})
        with run.timed("prepare"):
            stack = Stack.load(Path(recipe.stack), recipe.base)
            summary = stack.summary()
            place(stack)
        with run.timed("predict"):
            numbers = range(-(-work.rows // recipe.rows_per_part))
            missing = world().send([number for number in numbers if not _file(folder, number).exists()])
            begin = time.monotonic()
            computed = _compute(stack, recipe, work.method, run, world().share(missing))
            rows_per_second = sum(world().gather(computed)) / max(1e-9, time.monotonic() - begin)
        if not run.writes:
            return run
        with run.timed("join"):
            metrics = _join(stack, run, [_file(folder, number) for number in numbers])
        metrics["rows_left_out"] = work.rows - metrics["rows"]
        metrics["calibration"] = work.method
        write_json(run.folder / "metrics.json", metrics)
        task = stack.task.name if stack.task else None
        if missing:
            run.record["rows_per_second"] = round(rows_per_second, 1)
        run.finish(label=stack.label, task=task, stack=summary)
        shutil.rmtree(folder, ignore_errors=True)
        return run


def check_predict(recipe: PredictRecipe) -> TextTable:
    """Check the stack and the columns of the table, without reading weights or rows.

    Raises
    ------
    InputError
        With the key and the remedy.
    """
    record = read_stack_record(stack_folder(Path(recipe.stack)))
    if record["task"] is None:
        raise InputError(
            f"stack: {recipe.stack} is a language model without a task and gives no scores; name a stack that was "
            "finetuned. Answers to questions are written by `clinstack generate`."
        )
    _method(recipe, read_calibration(stack_folder(Path(recipe.stack))))
    return TextTable.of(recipe)


def _look(recipe: PredictRecipe, *, fresh: bool) -> _Work:
    """Check all that can be wrong with the input, row by row, before a Run is made."""
    table = check_predict(recipe)
    stack = stack_folder(Path(recipe.stack))
    records = [file for file in (stack / "stack.json", stack / CALIBRATION_FILE) if file.is_file()]
    inputs = input_hashes([*table.files, *records])
    method = _method(recipe, read_calibration(stack))
    if not fresh:
        if is_finished(recipe, inputs):
            return _Work(inputs, None, method)
        plan = Path(recipe.run) / PARTS / _PLAN
        if plan.is_file() and read_json(plan)["inputs"] == inputs:
            return _Work(inputs, int(read_json(plan)["rows"]), method)
    return _Work(inputs, table.survey(), method)


def _method(recipe: PredictRecipe, calibration: dict[str, Any] | None) -> Method:
    method = chosen_method(calibration, recipe.calibration)
    if method is None:
        raise InputError(
            f"calibration: {recipe.stack} has no {recipe.calibration} fit; use calibration=none, or leave the key out."
        )
    return method


def _is_synthetic(recipe: PredictRecipe) -> bool:
    folder = recipe.examples or recipe.notes
    return folder is not None and is_synthetic(Path(folder))


def _main_alone(action: Callable[[], T]) -> T:
    """Return what the main process finds; where it refuses the input, the others end with its exit code, in silence."""
    here = world()
    if not here.is_main:
        sent: tuple[int, Any] = here.send((0, None))
        if sent[0]:
            raise SystemExit(sent[0])
        found: T = sent[1]
        return found
    try:
        value = action()
    except ClinstackError as error:
        here.send((error.exit_code, None))
        raise
    here.send((0, value))
    return value


# ---------------------------------------------------------------------- parts


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.parquet"


def _compute(stack: Stack, recipe: PredictRecipe, method: Method, run: Run, numbers: list[int]) -> int:
    """Compute this process's parts, and return how many rows they have."""
    table = TextTable.of(recipe)
    encoder = NoteEncoder(stack.tokenizer, stack.reading)
    wanted = set(numbers)
    here = world()
    # With sharded layers every process computes every part, and one writes it.
    writes = here.is_main or not here.shards

    def read() -> Iterator[tuple[TextPart, EncodedTexts]]:
        by_sections = stack.reading.keep == "sections"
        for part in table.parts(recipe.rows_per_part, wanted, sections=by_sections):
            yield part, encoder.encode(part.texts, part.sections)

    rows = 0
    with progress_bar(f"predict {Path(recipe.run).name}", len(wanted), unit="notes") as bar:
        for part, encoded in ahead(read()):
            logits = encoded_logits(stack, encoded, len(part.texts), recipe.batch_size)
            if writes:
                predictions = _predictions(stack, part, encoded, logits, method)
                with replacing_file(_file(run.folder / PARTS, part.number)) as temporary:
                    pq.write_table(predictions, temporary)
                run.log({"part": part.number, "rows": len(part.texts), "tokens": int(encoded.cut["read"])})
                rows += len(part.texts)
            bar.advance(len(part.texts))
    return rows


def _predictions(
    stack: Stack, part: TextPart, encoded: EncodedTexts, logits: np.ndarray[Any, Any], method: Method
) -> pa.Table:
    """Return the rows of a part as they stand in ``predictions.parquet``. No text."""
    assert stack.task is not None
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if broken.size:
        raise ClinstackError(
            f"stack: {broken.size} scores of part {part.number} are not finite: the stack's dtype is too narrow for "
            "these notes, or its training diverged. Train it again in float32 or bfloat16."
        )
    columns: dict[str, pa.Array] = {
        "example_id": pa.array(part.example_ids, pa.string()),
        "patient_id": pa.array(part.patient_ids, pa.string()),
        "score": _lists(logits),
        "probability": _lists(apply_calibration(stack.task, logits, stack.calibration, method)),
    }
    intervals = calibration_intervals(stack.task, logits, stack.calibration) if method == "isotonic" else None
    if intervals is not None:
        columns |= {"interval_low": _lists(intervals[..., 0]), "interval_high": _lists(intervals[..., 1])}
    lengths = [len(piece) for piece in encoded.pieces]
    tokens = np.bincount(encoded.owners, weights=lengths, minlength=len(part.texts)).astype(np.int32)
    columns |= {"tokens": pa.array(tokens), "cut_tokens": pa.array(encoded.cut_tokens, pa.int32())}
    return pa.table(columns)


def _lists(values: np.ndarray[Any, Any]) -> pa.Array:
    """Return a list of float32 for each row."""
    rows, classes = values.shape
    flat = pa.array(values.astype(np.float32).ravel())
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1) * classes, pa.int32()), flat)


# ---------------------------------------------------------------------- one table


def _join(stack: Stack, run: Run, files: list[Path]) -> dict[str, Any]:
    """Write ``predictions.parquet`` out of all parts, a few at a time, and return what they come to."""
    assert stack.task is not None
    rows = tokens = cut = rows_cut = 0
    totals = np.zeros(len(stack.task.classes))
    schema = None
    with replacing_file(run.folder / "predictions.parquet") as temporary:
        writer: pq.ParquetWriter | None = None
        try:
            for group in _groups(files):
                if writer is None:
                    writer, schema = pq.ParquetWriter(temporary, group.schema), group.schema
                writer.write_table(group)
                rows += len(group)
                tokens += sum(group["tokens"].to_pylist())
                cuts = np.asarray(group["cut_tokens"])
                cut += int(cuts.sum())
                rows_cut += int((cuts > 0).sum())
                flat = group["probability"].combine_chunks().flatten()
                totals += np.asarray(flat, dtype=np.float64).reshape(len(group), -1).sum(axis=0)
        finally:
            if writer is not None:
                writer.close()
    assert schema is not None
    return {
        "rows": rows,
        "tokens": {"read": tokens, "cut": cut, "rows_cut": rows_cut},
        "intervals": "interval_low" in schema.names,
        "mean_probability": {
            name: total / rows if rows else None
            for name, total in zip(stack.task.classes, totals.tolist(), strict=True)
        },
    }


def _groups(files: list[Path]) -> Iterator[pa.Table]:
    """Yield the parts, many small ones as one group of rows."""
    waiting: list[pa.Table] = []
    for file in files:
        try:
            waiting.append(pq.read_table(file))
        except FileNotFoundError:
            raise ClinstackError(
                f"{file} is missing: all processes have to see the Run's folder. Start again on a shared disk."
            ) from None
        if sum(part.nbytes for part in waiting) >= _GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
