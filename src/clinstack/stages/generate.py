"""Answers to the questions of instructions: of a stack that was trained on them, or of an untouched base with a prompt.

The untouched base, without solved examples or with some, is the first rung of the ladder that a tuned stack is held
against. Prompts are made by the function that makes them in training, so a tuned stack reads what it was trained to
read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from clinstack.engine.answers import answer_questions, choose_questions, context_of_base
from clinstack.engine.distributed import world
from clinstack.engine.sharding import place
from clinstack.errors import InputError
from clinstack.files import write_json
from clinstack.model.lineage import stack_folder
from clinstack.model.stack import Stack
from clinstack.notes.instructions import Instructions, instruction_files, read_instructions
from clinstack.notes.read import input_hashes, is_synthetic
from clinstack.recipe import GenerateRecipe, PromptRecipe
from clinstack.run import Run, open_run
from clinstack.tokens.prompts import Prompt, draw_shots


def generate(recipe: GenerateRecipe, *, fresh: bool = False) -> Run:
    """Run the stage, or continue it, and return its finished Run."""
    if world().size > 1:
        raise InputError("generate: it runs in one process; start it without accelerate launch.")
    folder = Path(recipe.instructions)
    files = instruction_files(folder)
    if recipe.stack is not None:
        record = stack_folder(Path(recipe.stack)) / "stack.json"
        if not record.is_file():
            raise InputError(f"stack: {record} is missing.")
        files = [*files, record]
    if recipe.prompt is not None and recipe.prompt.file is not None and recipe.prompt.file.is_file():
        files = [*files, recipe.prompt.file]  # where it is none, the prompt says so
    inputs = input_hashes(files)
    facts = {"stage": "generate", "task": None, "synthetic": is_synthetic(folder)}
    with open_run(recipe, inputs, fresh=fresh, **facts) as run:
        if run.is_done:
            return run
        with run.timed("prepare"):
            needed = (*recipe.splits, "train") if recipe.prompt and recipe.prompt.shots else recipe.splits
            instructions = read_instructions(folder, required=needed)
            most, seed = recipe.max_examples, recipe.evaluation.seed
            questions = choose_questions(instructions, recipe.splits, recipe.tasks, most, seed)
            stack = open_model(recipe)
            prompt = prompt_of(recipe, stack, instructions)
            place(stack)
        with run.timed("generate"):
            metrics = answer_questions(
                stack, prompt, questions, recipe.max_tokens, recipe.decoding, recipe.evaluation, run
            )
        write_json(run.folder / "metrics.json", metrics)
        run.finish(label=stack.label, shots=len(prompt.shots), stack=stack.summary())
        return run


def open_model(recipe: GenerateRecipe) -> Stack:
    """Return the saved stack of a recipe, or its untouched base."""
    if recipe.stack is not None:
        return Stack.load(Path(recipe.stack), recipe.base, dtype=recipe.dtype, quantize=recipe.quantize or "")
    stack = Stack.build(recipe.base or "embedded", dtype=recipe.dtype or "float32", quantize=recipe.quantize or "none")
    stack.max_tokens = context_of_base(stack)
    return stack


def prompt_of(recipe: GenerateRecipe, stack: Stack, instructions: Mapping[str, Instructions]) -> Prompt:
    """Return the prompt that a stack was trained with, or that of the recipe for one that was not.

    Raises
    ------
    InputError
        If both have one, or the shots are more than the training examples.
    """
    if stack.prompt is not None:
        if recipe.prompt is not None:
            raise InputError(
                f"prompt: {recipe.stack} was trained with a prompt of its own and reads no other; leave it out."
            )
        return stack.prompt
    wanted = recipe.prompt or PromptRecipe()
    shots = draw_shots(instructions["train"], wanted.shots, recipe.prompt_seed) if wanted.shots else ()
    return Prompt.of(wanted, stack.tokenizer, shots)
