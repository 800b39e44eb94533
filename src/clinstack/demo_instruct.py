"""The demo of instruction tuning: an invented hospital, questions by the rule-based oracle, answers before and after.

    cohort ──▶ Notes ──▶ oracle ──▶ instructions ─┬─▶ instruct ──▶ generate, tuned ─┬─▶ report
                                                  └─▶ generate, base ───────────────┘

Each step is an ordinary Run of an ordinary recipe; what is done is not done again.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from clinstack.engine.progress import console, named_bars
from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.recipe import PRESETS, GenerateRecipe, InstructRecipe, apply_overrides, parse_recipe, read_yaml

PAIRS = 6000
LONGEST = 260
"""Characters of a note: nursing notes and radiology reports. A discharge summary fills the toy's context by itself."""
QUESTIONS = 200
"""Of the test patients, for each model."""
ANSWER_TOKENS = 64
SHOWN = 8
"""Questions with both answers in the report."""
TRAINING = ("training.epochs=3", "training.batch_size=2", "training.schedule=linear", "training.checkpoint_every=100")
"""On top of the preset. The toy has to find out that answers are copied from notes: its base, trained on novels, does
not copy, and below about ten thousand examples, seen anew or again, it only learns what answers look like."""


def instruct_recipe(root: Path) -> InstructRecipe:
    """Return the training: the preset on the demo's instructions."""
    values = read_yaml(PRESETS / "demo" / "instruct.yaml")
    values.update(run=str(root / "instruct"), instructions=str(root / "instructions"), answer_tokens=ANSWER_TOKENS)
    recipe = parse_recipe(apply_overrides(values, TRAINING), "demo/instruct")
    assert isinstance(recipe, InstructRecipe)
    return recipe


def generate_recipes(root: Path) -> list[GenerateRecipe]:
    """Return who answers the test patients' questions: the untouched base with the same prompt, and the tuned stack."""
    instruct = instruct_recipe(root)
    common: dict[str, Any] = {
        "stage": "generate",
        "instructions": instruct.instructions,
        "max_examples": QUESTIONS,
        "max_tokens": instruct.max_tokens,
        "decoding": {"max_new_tokens": ANSWER_TOKENS},
    }
    own: list[dict[str, Any]] = [
        {"run": str(root / "generate" / "base"), "base": instruct.base, "prompt": instruct.prompt.model_dump()},
        {"run": str(root / "generate" / "tuned"), "stack": instruct.run},
    ]
    recipes = [parse_recipe({**common, **values}, "demo instruct") for values in own]
    assert all(isinstance(recipe, GenerateRecipe) for recipe in recipes)
    return recipes  # type: ignore[return-value]  # asserted


def run_demo_instruct(root: Path, patients: int, seed: int, pairs: int = PAIRS) -> Any:
    """Run the demo, or what is left of it, and return the paths and figures of its report.

    Parameters
    ----------
    root : Path
        Folder of everything the demo writes.
    patients, seed : int
        Of the synthetic cohort; the seed is also the oracle's.
    pairs : int
        Questions with answers, of all patients.

    Raises
    ------
    InputError
        If ``root`` holds a demo of other patients, seed or pairs.
    """
    begin = time.monotonic()
    console.print(
        "[bold]clinstack demo instruct[/]: everything here is synthetic; invented patients, a toy base model."
    )
    _prepare(root, patients, seed, pairs)

    import torch

    from clinstack.report.build import build_report
    from clinstack.stages.generate import generate
    from clinstack.stages.instruct import instruct

    # Steps this small are hardly shared out, and threads that wait for each other on busy cores cost many times more.
    torch.set_num_threads(1)
    base, tuned = generate_recipes(root)
    console.print("The untouched base answers the test patients' questions ...")
    generate(base)
    console.print("Training on the questions and answers of the training patients ...")
    instruct(instruct_recipe(root))
    console.print("The tuned stack answers the same questions ...")
    generate(tuned)
    console.print("Writing the report: bootstrap over patients ...")
    paths = build_report(root, examples=SHOWN)
    console.print(f"Done in {time.monotonic() - begin:.0f} s.")
    return paths


def _prepare(root: Path, patients: int, seed: int, pairs: int) -> None:
    """Write the cohort, its Notes and the instructions, each unless it is there."""
    from clinstack.notes.cohort import write_cohort
    from clinstack.notes.mimic3.prepare import prepare_mimic3
    from clinstack.notes.oracle.prepare import OracleOptions, prepare_oracle

    cohort, notes, instructions = root / "cohort", root / "data", root / "instructions"
    if (cohort / "cohort.json").is_file():
        before = read_json(cohort / "cohort.json")
        _refuse_other(root, (before["patients"], before["seed"]), (patients, seed), "patients and seed")
    if (instructions / "prepare.json").is_file():
        asked = read_json(instructions / "prepare.json")["pairs"]
        _refuse_other(root, asked, pairs, "pairs")
        console.print(f"Cohort, Notes and instructions are done already: {root}")
        return
    with named_bars() as bar:
        if not (cohort / "cohort.json").is_file():
            write_cohort(cohort, patients, seed, bar)
        if not (notes / "prepare.json").is_file():
            prepare_mimic3(cohort, notes, seed=seed, tasks=["mortality"], progress=bar)
        prepare_oracle(notes, instructions, OracleOptions(seed=seed, pairs=pairs, longest=LONGEST), bar)


def _refuse_other(root: Path, found: object, asked: object, what: str) -> None:
    if found != asked:
        raise InputError(
            f"{root} holds the demo with {what} {found}, not {asked}; name another folder with --out, or delete it."
        )
