"""Measuring a saved stack on Notes: the same figures as at the end of training, on any split or other Notes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from clinstack.engine.answers import MEASURES, answer_questions, choose_questions
from clinstack.engine.classification import EncodedExamples, predictions_table
from clinstack.engine.distributed import open_shared_run, world
from clinstack.engine.features import FOLDER, FeatureFolders, read_frozen
from clinstack.engine.language_modelling import losses_table, open_notes
from clinstack.engine.sharding import place
from clinstack.errors import InputError
from clinstack.evaluate.classification import SplitScores, measure_split
from clinstack.evaluate.compare import compare
from clinstack.evaluate.perplexity import perplexity_metrics
from clinstack.evaluate.text_compare import compare_answers
from clinstack.files import replacing_file, sha256_file, write_json
from clinstack.model.lineage import stack_folder
from clinstack.model.stack import Stack
from clinstack.notes.groups import admissions_files, read_groups
from clinstack.notes.instructions import instruction_files, read_instructions
from clinstack.notes.read import (
    examples_files,
    input_hashes,
    is_synthetic,
    notes_files,
    read_examples,
    survey_notes,
)
from clinstack.recipe import DecodingRecipe, EvaluateRecipe
from clinstack.run import Run


def evaluate(recipe: EvaluateRecipe, *, fresh: bool = False) -> Run:
    """Run the stage and return its finished Run."""
    source = Path(recipe.examples or recipe.instructions or recipe.notes or "")
    find_files = examples_files if recipe.examples else instruction_files if recipe.instructions else notes_files
    files = find_files(source)
    if recipe.instructions and world().size > 1:
        raise InputError("evaluate: answers are written by one process; start it without accelerate launch.")
    record = stack_folder(Path(recipe.stack)) / "stack.json"
    if not record.is_file():
        raise InputError(f"stack: {record} is missing.")
    beside = admissions_files(source) if recipe.examples else []
    inputs = {**input_hashes([*files, *beside]), str(record): sha256_file(record)}
    facts = {"stage": "evaluate", "task": None, "synthetic": is_synthetic(source)}
    with open_shared_run(recipe, inputs, fresh=fresh, **facts) as run:
        if run.is_done:
            return run
        stack = Stack.load(Path(recipe.stack), recipe.base)
        summary = stack.summary()
        place(stack)
        with run.timed("evaluate"):
            measure = _classify if recipe.examples else _answer if recipe.instructions else _read
            metrics = measure(stack, recipe, run)
        if not run.writes:
            return run
        write_json(run.folder / "metrics.json", {recipe.split: metrics})
        shutil.rmtree(run.folder / FOLDER, ignore_errors=True)
        run.finish(label=stack.label, task=stack.task.name if stack.task else None, stack=summary)
        return run


def _read(stack: Stack, recipe: EvaluateRecipe, run: Run) -> dict[str, Any]:
    """Measure a language model by perplexity."""
    if stack.task is not None:
        raise InputError(f"notes: {recipe.stack} is a classifier for {stack.task.name}; give it examples.")
    folder = Path(str(recipe.notes))
    inputs = {str(file): run.record["inputs"][str(file)] for file in notes_files(folder)}
    notes = open_notes(stack, survey_notes(folder), recipe.split, inputs, recipe.tokens)
    notes = notes.sample(recipe.evaluation.max_notes, recipe.evaluation.seed)
    losses = losses_table(stack, notes, recipe.split, stack.max_tokens, recipe.batch_size)
    if not run.writes:
        return {}
    with replacing_file(run.folder / "losses.parquet") as temporary:
        pq.write_table(losses, temporary)
    return perplexity_metrics(losses, recipe.evaluation.resamples, recipe.evaluation.seed, recipe.split)


def _answer(stack: Stack, recipe: EvaluateRecipe, run: Run) -> dict[str, Any]:
    """Measure the answers of a stack that was trained on instructions, and against another Run's when asked."""
    if stack.prompt is None:
        raise InputError(
            f"instructions: {recipe.stack} was not trained on instructions and has no prompt of its own; "
            "`clinstack generate` takes it with one."
        )
    split, settings = recipe.split, recipe.evaluation
    instructions = read_instructions(Path(str(recipe.instructions)), required=[split])
    questions = choose_questions(instructions, [split], None, recipe.max_examples, settings.seed)
    decoding = recipe.decoding or DecodingRecipe()
    metrics: dict[str, Any] = answer_questions(stack, stack.prompt, questions, None, decoding, settings, run)[split]
    if recipe.against is not None:
        both = {"this": run.folder / MEASURES, "against": Path(recipe.against) / MEASURES}
        order = [("this", "against")]
        metrics["differences"] = compare_answers(both, order, settings.resamples, settings.seed, split)
    return metrics


def _classify(stack: Stack, recipe: EvaluateRecipe, run: Run) -> dict[str, Any]:
    """Measure a classifier, with the thresholds and calibration kept with it, and against another Run when asked."""
    task, splits = read_examples(Path(str(recipe.examples)))
    if stack.task is None:
        raise InputError(f"examples: {recipe.stack} is a language model without a head; give it notes.")
    if (task.kind, task.classes) != (stack.task.kind, stack.task.classes):
        raise InputError(f"examples: their classes are not those of the stack's task {stack.task.name}.")
    examples = splits[recipe.split]
    encoded = EncodedExamples(stack, task, examples)
    if stack.backbone_is_frozen:
        folders = FeatureFolders.of(Path(str(recipe.examples)), run.folder)
        read_frozen(stack, {recipe.split: encoded}, folders, f"{task.name} {recipe.split}: features")
    logits = encoded.all_logits(recipe.batch_size, f"{task.name} {recipe.split}")
    if not run.writes:
        return {}
    table = predictions_table(task, {recipe.split: examples}, {recipe.split: logits})
    with replacing_file(run.folder / "predictions.parquet") as temporary:
        pq.write_table(table, temporary)
    settings = recipe.evaluation
    groups = read_groups(Path(str(recipe.examples)), examples)
    scores = SplitScores(examples.labels, logits, examples.patient_ids, groups)
    metrics = measure_split(task, scores, settings, stack.calibration)
    if recipe.against is not None:
        other = Path(recipe.against) / "predictions.parquet"
        if not other.is_file():
            raise InputError(f"against: {other} is missing; name a finished Run of the same task.")
        pairs = {"this": run.folder / "predictions.parquet", "against": other}
        order = [("this", "against")]
        result = compare({task.name: pairs}, {task.name: task}, order, settings.resamples, settings.seed, recipe.split)
        metrics["differences"] = result.differences
    return metrics
