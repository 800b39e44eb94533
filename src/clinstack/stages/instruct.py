"""Instruction tuning: a stack learns to answer questions about notes (Kweon et al. 2024, section 3: Asclepius).

Differences from the published code, which padded to 2,048 tokens, cut what was longer at its right end (so that long
notes lost their answer), hid the begin token from the attention and trained on the prompt's last token: an example is
never cut in its question or answer, only answers are trained, end token included, and prompts of generation are those
of training, for one function makes both.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from clinstack.engine.canary_planting import plant_in_answers
from clinstack.engine.checkpoint import BEST
from clinstack.engine.distributed import open_shared_run, world
from clinstack.engine.instruction_tuning import InstructionObjective, answer_losses, answer_metrics
from clinstack.engine.privacy_record import record_privacy
from clinstack.engine.progress import say_notes
from clinstack.engine.sharding import place, whole_stack
from clinstack.engine.trainer import OnValidation, train
from clinstack.errors import InputError
from clinstack.files import replacing_file, write_json
from clinstack.model.cards import write_cards
from clinstack.model.data_lineage import training_data
from clinstack.model.stack import Stack
from clinstack.model.support import check_support
from clinstack.notes.instructions import Instructions, instruction_files, read_instructions
from clinstack.notes.read import SPLITS, input_hashes, is_synthetic
from clinstack.privacy.canaries import write_canaries
from clinstack.recipe import InstructRecipe, suggest
from clinstack.run import Run, adapter_files
from clinstack.tokens.prompt_fit import cut_prompts
from clinstack.tokens.prompts import EncodedPairs, Prompt, encode_pairs


def instruct(recipe: InstructRecipe, *, fresh: bool = False, on_validation: OnValidation | None = None) -> Run:
    """Run the stage, or continue it, and return its finished Run; ``on_validation`` as `train` takes it."""
    folder = Path(recipe.instructions)
    template = [] if recipe.prompt.file is None else [recipe.prompt.file]
    instructions = chosen_instructions(recipe)
    inputs = input_hashes([*instruction_files(folder), *template, *adapter_files(recipe.adapters)])
    label = "+".join(adapter.name for adapter in recipe.adapters)
    facts: dict[str, Any] = {"stage": "instruct", "label": label, "task": None, "synthetic": is_synthetic(folder)}
    if recipe.canaries is not None:
        facts["canaries"] = recipe.canaries.summary
    with open_shared_run(recipe, inputs, fresh=fresh, **facts) as run:
        if run.is_done:
            return run

        def build() -> Stack:
            built = Stack.build(
                recipe.base,
                recipe.adapters,
                seed=recipe.training.seed,
                dtype=recipe.dtype,
                quantize=recipe.quantize,
            )
            built.max_tokens = recipe.max_tokens
            built.prompt = Prompt.of(recipe.prompt, built.tokenizer)
            return built

        with run.timed("prepare"):
            say_notes(check_support(recipe, None).notes)
            stack = build()
            prompt = Prompt.of(recipe.prompt, stack.tokenizer)
            read = dict(instructions)
            if recipe.canaries is not None:
                # What is measured afterwards has no canaries.
                read["train"], planted = plant_in_answers(stack, prompt, recipe, instructions["train"])
                if run.writes:
                    write_canaries(run.folder, planted)
            pairs = {split: encode(stack.tokenizer, prompt, recipe, part) for split, part in read.items()}
            say_notes(cut_prompts(pairs["train"].prompts.report, "train", recipe.max_tokens))
            place(stack)
            patient_ids = None if recipe.privacy is None else read["train"].patient_ids
            objective = InstructionObjective(
                stack, recipe.training, recipe.layout, recipe.max_tokens, pairs, patient_ids
            )
        began = time.monotonic()
        with run.timed("train"):
            name, privacy = f"instruct {label}", recipe.privacy
            state = train(stack, run, recipe.training, objective, name, on_validation, privacy=privacy)
        seconds = time.monotonic() - began - objective.seconds_validating
        speed = world().sum_numbers([objective.tokens_read])[0] / seconds
        with run.timed("evaluate"):
            losses = _measure(stack, prompt, recipe, instructions)
            if not run.writes:
                return run
            with replacing_file(run.folder / "losses.parquet") as temporary:
                pq.write_table(losses, temporary)
            settings = recipe.evaluation
            measured = {
                split: answer_metrics(losses, settings.resamples, settings.seed, split)
                for split in reversed(SPLITS)
                if split != "train" or recipe.privacy is None
            }
        stack = whole_stack(stack, build, run.checkpoints / BEST)
        stack.data = training_data(folder, "instruct", recipe.adapters, stack.base)
        record_privacy(stack, run, recipe, folder)
        stack.save(run.folder / "stack")
        write_json(
            run.folder / "metrics.json",
            {
                "best_epoch": state.best_epoch,
                "validation": state.history,
                "layout": objective.layout,
                "tokens": objective.counts(),
                "test": measured["test"],
                "validation_chosen": measured["validation"],
                **({"train": measured["train"]} if "train" in measured else {}),
            },
        )
        # Of this start: speed is not in metrics.json, which is the same whether a run was killed or not.
        says_speed = objective.tokens_read and recipe.privacy is None
        run.finish(stack=stack.summary(), tokens_per_second=round(speed, 1) if says_speed else None)
        write_cards(run.folder / "stack")
        return run


def chosen_instructions(recipe: InstructRecipe) -> dict[str, Instructions]:
    """Read the instructions of each split, of the recipe's tasks, and of the training ones as many as it wants.

    Raises
    ------
    InputError
        As `read_instructions` does, and for a task that does not occur.
    """
    result = read_instructions(Path(recipe.instructions))
    if recipe.tasks is not None:
        occurring = sorted({task for part in result.values() for task in part.tasks})
        for task in recipe.tasks:
            if task not in occurring:
                hint = suggest(task, occurring) or f" There are {', '.join(occurring)}."
                raise InputError(f"tasks: {task!r} does not occur in {recipe.instructions}.{hint}")
        for split, part in result.items():
            places = [place for place, task in enumerate(part.tasks) if task in recipe.tasks]
            if not places:
                raise InputError(f"tasks: no {split} patient has an example of them; name more tasks.")
            result[split] = part.chosen(places)
    result["train"] = result["train"].sample(recipe.max_examples, recipe.training.seed)
    return result


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, recipe: InstructRecipe, instructions: Instructions
) -> EncodedPairs:
    """Return the tokens of prompts and answers as the recipe has them."""
    return encode_pairs(tokenizer, prompt, instructions, recipe.max_tokens, recipe.answer_tokens)


def _measure(stack: Stack, prompt: Prompt, recipe: InstructRecipe, instructions: dict[str, Instructions]) -> pa.Table:
    """Return the losses of answers of each split; of training patients as many as of test patients, in private none."""
    most, seed = recipe.evaluation.max_notes, recipe.evaluation.seed
    tables = []
    test = instructions["test"].sample(most, seed)
    validation = instructions["validation"].sample(most, seed)
    parts = {"test": test, "validation": validation}
    if recipe.privacy is None:  # losses of training patients would have no noise
        parts["train"] = instructions["train"].sample(len(test), seed)
    for split, part in parts.items():
        pairs = encode(stack.tokenizer, prompt, recipe, part)
        batch_size = recipe.training.batch_size
        tables.append(answer_losses(stack, part, pairs, split, recipe.max_tokens, batch_size))
    return pa.concat_tables(tables)
