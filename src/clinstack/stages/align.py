"""Aligning a stack with preferences: DPO and its relatives (Rafailov et al. 2023) on pairs of answers.

The loss is TRL's; the loop, the checkpoints and the checks are those of every stage here. What the trained stack is
held to, the reference, is the stack as it was: see `clinstack.engine.preference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clinstack.engine.distributed import open_shared_run, world
from clinstack.engine.log_probabilities import PairScores, as_reference, pair_scores, token_divergence
from clinstack.engine.precision import forward_precision
from clinstack.engine.preference import PreferenceLoss
from clinstack.engine.privacy_record import record_privacy
from clinstack.engine.progress import progress_bar, say_notes
from clinstack.engine.sharding import place
from clinstack.engine.trainer import OnValidation, train
from clinstack.errors import InputError
from clinstack.evaluate.preferences import preference_metrics
from clinstack.files import replacing_file, write_json
from clinstack.model.cards import write_cards
from clinstack.model.data_lineage import training_data
from clinstack.model.lineage import find_adapter_folder, read_stack_record
from clinstack.model.saving import read_prompt
from clinstack.model.stack import Stack
from clinstack.model.support import check_support
from clinstack.notes.preferences import preference_files, read_preferences
from clinstack.notes.read import input_hashes, is_synthetic
from clinstack.notes.splits import SPLITS
from clinstack.recipe.align import AlignRecipe
from clinstack.recipe.prompt import PromptRecipe
from clinstack.run import Run, adapter_files
from clinstack.tokens.batches import shuffled_batches
from clinstack.tokens.preferences import EncodedPreferences, encode_preferences
from clinstack.tokens.prompt_fit import cut_prompts
from clinstack.tokens.prompts import Prompt

REFERENCE_FILE = "reference.safetensors"
"""In the Run's checkpoints: the reference's log probabilities, which a start after a kill must not make anew."""
PAIRS_FILE = "log_probabilities.parquet"


class AlignObjective:
    """A preference loss on the training patients' pairs; the validation patients' loss chooses."""

    unit = "tokens"

    def __init__(
        self,
        stack: Stack,
        recipe: AlignRecipe,
        encoded: dict[str, EncodedPreferences],
        reference: dict[str, PairScores],
        folder: Path,
    ) -> None:
        self._training = recipe.training
        self._pairs = encoded["train"].pairs
        self._validation = encoded["validation"].pairs
        self._loss, self._validation_loss = (
            PreferenceLoss(stack, recipe, encoded[split].pairs, reference[split], folder)
            for split in ("train", "validation")
        )

    def epoch_batches(self, epoch: int) -> Sequence[list[int]]:
        """Return the pairs of an epoch's batches, of similar length, by (seed, epoch)."""
        lengths = [pair.longest for pair in self._pairs]
        return shuffled_batches(lengths, self._training.batch_size, self._training.seed, epoch)

    def loss(self, batch: Sequence[int]) -> tuple[Tensor, float]:
        """Return the summed loss of pairs and how many they are."""
        loss, _ = self._loss(batch)
        return loss * len(batch), float(len(batch))

    def size(self, batch: Sequence[int]) -> int:
        """Return the tokens of the pairs' rows."""
        return sum(self._pairs[place].tokens for place in batch)

    def validate(self) -> dict[str, float]:
        """Return loss, reward accuracy and reward margin, means over the validation patients' pairs."""
        size, count = self._training.batch_size, len(self._validation)
        sums = dict.fromkeys(("loss", "reward_accuracy", "reward_margin"), 0.0)
        for at in range(0, count, size):
            batch = list(range(at, min(at + size, count)))
            loss, rewards = self._validation_loss(batch)
            for name, value in {"loss": float(loss), **rewards}.items():
                sums[name] += value * len(batch)
        figures = {name: value / count for name, value in sums.items()}
        return {**figures, "score": -figures["loss"]}


def align(recipe: AlignRecipe, *, fresh: bool = False, on_validation: OnValidation | None = None) -> Run:
    """Run the stage, or continue it, and return its finished Run; ``on_validation`` as `train` takes it."""
    if world().size > 1:
        raise InputError("align trains in one process; start it without accelerate launch or torchrun.")
    folder = Path(recipe.preferences)
    template = [recipe.prompt.file] if recipe.prompt is not None and recipe.prompt.file is not None else []
    inputs = input_hashes([*preference_files(folder), *template, *adapter_files(recipe.adapters)])
    label = "+".join(adapter.name for adapter in recipe.adapters)
    facts = {"stage": "align", "label": label, "task": None, "synthetic": is_synthetic(folder)}
    with open_shared_run(recipe, inputs, fresh=fresh, **facts) as run:
        if run.is_done:
            return run
        with run.timed("prepare"):
            say_notes(check_support(recipe, None).notes)
            splits = read_preferences(folder, required=("train", "validation"))
            stack = Stack.build(
                recipe.base,
                recipe.adapters,
                seed=recipe.training.seed,
                dtype=recipe.dtype,
                quantize=recipe.quantize,
            )
            stack.max_tokens = recipe.max_tokens
            stack.prompt = prompt = prompt_of(recipe, stack)
            encoded = {
                name: encode_preferences(stack.tokenizer, prompt, splits[name], recipe.max_tokens, recipe.answer_tokens)
                for name in SPLITS
            }
            _refuse_empty(encoded, recipe)
            say_notes(_cuts(encoded, recipe))
            place(stack)
            _without_dropout(stack.network)
            reference = _reference(stack, recipe, encoded, run.checkpoints / REFERENCE_FILE)
            objective = AlignObjective(stack, recipe, encoded, reference, run.checkpoints)
        with run.timed("train"):
            state = train(stack, run, recipe.training, objective, f"align {label}", on_validation)
        with run.timed("evaluate"):
            tables = {
                split: _score(stack, recipe, encoded[split], reference[split], split)
                for split in SPLITS[1:]
                if encoded[split].pairs
            }
            figures = {
                split: preference_metrics(table, recipe.beta, recipe.evaluation) for split, table in tables.items()
            }
            with replacing_file(run.folder / PAIRS_FILE) as temporary:
                pq.write_table(pa.concat_tables(tables.values()), temporary)
        stack.data = training_data(folder, "align", recipe.adapters, stack.base)
        record_privacy(stack, run, recipe, folder)
        stack.save(run.folder / "stack")
        write_json(
            run.folder / "metrics.json",
            {
                "best_epoch": state.best_epoch,
                "validation": state.history,
                "loss": recipe.loss,
                "beta": recipe.beta,
                "pairs": {name: found.report for name, found in encoded.items()},
                "validation_chosen": figures["validation"],
                **({"test": figures["test"]} if "test" in figures else {}),
            },
        )
        run.finish(stack=stack.summary())
        write_cards(run.folder / "stack")
        return run


def prompt_of(recipe: AlignRecipe, stack: Stack) -> Prompt:
    """Return the prompt that the topmost adapter with one was trained with, else the recipe's.

    Raises
    ------
    InputError
        If the recipe gives another one beside it.
    """
    for index, adapter in reversed(list(enumerate(recipe.adapters))):
        if adapter.path is None:
            continue
        folder = find_adapter_folder(Path(adapter.path), f"adapters.{index} ({adapter.name})").parent
        recorded = read_prompt(folder, read_stack_record(folder)) if (folder / "stack.json").is_file() else None
        if recorded is None:
            continue
        if recipe.prompt is not None:
            raise InputError(
                f"prompt: the adapter {adapter.name!r} was trained with a prompt of its own, which {folder} records; "
                "leave it out."
            )
        return recorded
    return Prompt.of(recipe.prompt or PromptRecipe(), stack.tokenizer)


def _refuse_empty(encoded: dict[str, EncodedPreferences], recipe: AlignRecipe) -> None:
    for split in SPLITS[:2]:
        if not encoded[split].pairs:
            raise InputError(
                f"max_tokens: {recipe.max_tokens} leaves no room for any of the {encoded[split].report['too_long']} "
                f"pairs of {split} patients; raise it."
            )


def _cuts(encoded: dict[str, EncodedPreferences], recipe: AlignRecipe) -> list[str]:
    """Return what a person should know of pairs that do not fit."""
    notes = []
    for split, found in encoded.items():
        notes += cut_prompts(found.report.get("prompts", {"texts_cut": 0}), split, recipe.max_tokens)
        if found.report["too_long"]:
            notes.append(
                f"{split}: {found.report['too_long']:,} pairs are longer than max_tokens {recipe.max_tokens} even "
                "without their notes, and are left out."
            )
    return notes


def _without_dropout(network: nn.Module) -> None:
    """Take dropout out of training: the reference is computed without it, as TRL does by default too."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _reference(
    stack: Stack, recipe: AlignRecipe, encoded: dict[str, EncodedPreferences], path: Path
) -> dict[str, PairScores]:
    """Return what the reference gives to all pairs: computed once, before the first step, and kept in the Run."""
    if not path.is_file():
        total = sum(len(found.pairs) for found in encoded.values())
        tensors: dict[str, Tensor] = {}
        stack.eval()
        with (
            as_reference(stack, recipe.adapters),
            forward_precision(stack),
            progress_bar("align: the reference", total) as bar,
        ):
            for split, found in encoded.items():
                scores = pair_scores(stack, found.pairs, recipe.training.batch_size, bar.advance)
                tensors |= {f"{split}/chosen": scores.chosen, f"{split}/rejected": scores.rejected}
        with replacing_file(path) as temporary:
            save_file(tensors, temporary)
    kept = load_file(path)
    return {split: PairScores(kept[f"{split}/chosen"], kept[f"{split}/rejected"]) for split in encoded}


def _score(
    stack: Stack, recipe: AlignRecipe, encoded: EncodedPreferences, reference: PairScores, split: str
) -> pa.Table:
    """Return what stack and reference give to each pair of a split; identifiers and numbers only."""
    size, pairs = recipe.training.batch_size, encoded.pairs
    stack.eval()
    with forward_precision(stack), progress_bar(f"align: {split}", 2 * len(pairs)) as bar:
        scores = pair_scores(stack, pairs, size, bar.advance)
        divergence = token_divergence(stack, recipe.adapters, pairs, size, bar.advance)
    return pa.table(
        {
            "example_id": pa.array(encoded.kept.example_ids, pa.string()),
            "patient_id": pa.array(encoded.kept.patient_ids, pa.string()),
            "split": pa.array([split] * len(pairs), pa.string()),
            "chosen_tokens": pa.array([len(pair.chosen) for pair in pairs], pa.int64()),
            "rejected_tokens": pa.array([len(pair.rejected) for pair in pairs], pa.int64()),
            "reference_chosen": pa.array(reference.chosen.tolist(), pa.float64()),
            "reference_rejected": pa.array(reference.rejected.tolist(), pa.float64()),
            "chosen": pa.array(scores.chosen.tolist(), pa.float64()),
            "rejected": pa.array(scores.rejected.tolist(), pa.float64()),
            "divergence": pa.array([None] * len(pairs) if divergence is None else divergence.tolist(), pa.float64()),
        }
    )
