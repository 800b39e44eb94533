"""What a study costs before it starts: tokens times parameters times epochs times trials, over this machine's speed.

The speed is that of two layers of a Llama as wide as the base, measured for a second on the device that the study
uses. Tokens are counted as a quarter of a note's characters, cut to what a recipe reads. Both are estimates: good
enough to tell an hour from a day.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from clinstack.notes.read import SPLITS, notes_files
from clinstack.recipe import FinetuneRecipe, PretrainRecipe, TrainingStageRecipe
from clinstack.study.grid import GridCell

if TYPE_CHECKING:
    from clinstack.model.support import Support

_CHARACTERS_A_TOKEN = 4
_SAMPLE = 256
"""Notes whose lengths stand for all."""
_SECONDS_A_RUN = 2.0
"""Opening the base, checks, intervals and files, whatever the sizes."""
_TRAIN_SHARE, _TEST_SHARE = 0.7, 0.2
_WIDEST = 2048
"""Of the layers that are measured: wider ones compute no faster a parameter."""
_PROBE = (8, 64)
"""Notes and tokens of a batch that is measured."""


@dataclass(frozen=True)
class Speed:
    """Parameters times tokens in a second.

    Parameters
    ----------
    forward : float
        Reading without gradients.
    training : float
        Forward and backward through frozen weights, as a LoRA trains.
    """

    forward: float
    training: float


@dataclass(frozen=True)
class Cost:
    """What a cell costs.

    Parameters
    ----------
    tokens : int
        Read in training, over all epochs and trials.
    seconds : float
    """

    tokens: int
    seconds: float


def cell_costs(
    cells: Sequence[GridCell], supports: dict[str, Support], speed_of: Callable[[int], Speed]
) -> dict[str, Cost]:
    """Return the estimated cost of each cell.

    Parameters
    ----------
    cells : sequence of GridCell
    supports : dict of cell name to Support
        Of pretrainings and final Runs, from `check_grid`.
    speed_of : callable
        The machine's `Speed` for layers of a width.
    """
    result: dict[str, Cost] = {}
    finals = {one.cell.best_of.run: one for one in cells if one.role == "final" and one.cell.best_of is not None}
    for one in cells:
        stands_for = finals[one.cell.recipe.run] if one.role == "search" else one
        trials = one.trials if one.role == "search" else 1
        recipe = stands_for.cell.recipe
        assert isinstance(recipe, TrainingStageRecipe)
        support = supports[stands_for.cell.name]
        parameters, width = _computed_parameters(support, recipe)
        speed = speed_of(width)
        if isinstance(recipe, PretrainRecipe):
            cost = _pretraining(recipe, parameters, speed)
        else:
            assert isinstance(recipe, FinetuneRecipe)
            # A final Run with the seed of its search is one of the trials already, and is copied.
            copied = one.role == "final" and one.cell.best_of is not None and one.seed == _seed_of(one)
            cost = Cost(0, 0.1) if copied else _finetuning(recipe, parameters, speed, trials, one.shares)
        result[one.cell.name] = cost
    return result


def _seed_of(one: GridCell) -> int:
    assert one.cell.best_of is not None
    overrides = one.cell.best_of.overrides
    return int(overrides["training.seed"]) if isinstance(overrides, dict) else 0


def _pretraining(recipe: PretrainRecipe, parameters: int, speed: Speed) -> Cost:
    training = recipe.training
    notes, length = note_lengths(Path(recipe.notes), recipe.note_types)
    row = min(length, recipe.context) if recipe.layout != "packed" else recipe.context
    whole = training.epochs * notes * length * _TRAIN_SHARE
    steps = training.max_steps
    read = whole if steps is None else min(whole, steps * training.batch_size * training.accumulate * row)
    measured = min(recipe.evaluation.max_notes or notes, notes * _TEST_SHARE) * length
    # Test and train notes, before and after training, and the validation patients once an epoch.
    seconds = read * parameters / speed.training + (4 * measured + measured) * parameters / speed.forward
    return Cost(round(read), seconds + _SECONDS_A_RUN)


def _finetuning(recipe: FinetuneRecipe, parameters: int, speed: Speed, trials: int, shares: bool) -> Cost:
    training = recipe.training
    pieces = recipe.max_chunks if recipe.keep == "chunks" else 1
    counts = {}
    for split in SPLITS:
        rows, length = text_lengths(Path(recipe.examples) / f"{split}.parquet", pieces * recipe.max_tokens)
        counts[split] = rows * length
    frozen = not any(adapter.is_trainable for adapter in recipe.adapters)
    if frozen:
        passes = 0.0 if shares else sum(counts.values())
        read = round(passes)
        seconds = passes * parameters / speed.forward
    else:
        read = round(training.epochs * counts["train"])
        if training.max_steps is not None:
            rows = training.max_steps * training.batch_size * training.accumulate
            rows_there, length = text_lengths(Path(recipe.examples) / "train.parquet", pieces * recipe.max_tokens)
            read = round(min(read, rows * length)) if rows_there else read
        backward = 1.5 if any(adapter.method == "full" and adapter.path is None for adapter in recipe.adapters) else 1.0
        measured = (training.epochs + 1) * counts["validation"] + counts["test"]
        seconds = trials * (read * backward / speed.training + measured / speed.forward) * parameters
        read *= trials
    return Cost(read, seconds + trials * _SECONDS_A_RUN)


def _computed_parameters(support: Support, recipe: TrainingStageRecipe) -> tuple[int, int]:
    """Return the parameters that each token is multiplied with, and the base's width."""
    from clinstack.model.config import load_config

    config: Any = load_config(support.base).get_text_config()
    # The input embeddings are looked up; a language model multiplies with as many at its output.
    looked_up = 0 if isinstance(recipe, PretrainRecipe) else int(config.vocab_size) * int(config.hidden_size)
    return max(support.parameters - looked_up, 1), int(config.hidden_size)


@lru_cache(maxsize=256)
def text_lengths(path: Path, most: int) -> tuple[int, float]:
    """Return the rows of a split's examples, and their mean length in tokens, each cut to ``most``."""
    file = pq.ParquetFile(path)
    batch = next(file.iter_batches(_SAMPLE, columns=["text"]), None)
    texts = [] if batch is None else batch["text"].to_pylist()
    lengths = [min(most, len(text or "") // _CHARACTERS_A_TOKEN + 2) for text in texts]
    return file.metadata.num_rows, sum(lengths) / len(lengths) if lengths else 0.0


@lru_cache(maxsize=32)
def note_lengths(folder: Path, note_types: tuple[str, ...] | None) -> tuple[int, float]:
    """Return how many notes of some types there are, and their mean length in tokens; from a sample of each table."""
    count, characters, seen = 0.0, 0, 0
    for path in notes_files(folder):
        file = pq.ParquetFile(path)
        if "text" not in file.schema_arrow.names:
            continue
        batch = next(file.iter_batches(8 * _SAMPLE, columns=["note_type", "text"]), None)
        if batch is None:
            continue
        rows = zip(batch["note_type"].to_pylist(), batch["text"].to_pylist(), strict=True)
        texts = [text or "" for kind, text in rows if note_types is None or str(kind) in note_types]
        count += file.metadata.num_rows * len(texts) / batch.num_rows
        characters += sum(map(len, texts))
        seen += len(texts)
    return round(count), characters / seen / _CHARACTERS_A_TOKEN if seen else 0.0


def machine_speed(width: int, threads: int) -> Speed:
    """Measure this machine for about a second: on its first GPU, or else with so many threads.

    Parameters
    ----------
    width : int
        Hidden size of the layers.
    threads : int
        Of PyTorch, as the workers will have them.
    """
    import torch
    from transformers import LlamaConfig, LlamaModel

    width = max(64, min(width, _WIDEST) // 64 * 64)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=2,
        num_attention_heads=max(1, width // 64),
        vocab_size=256,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            network: Any = LlamaModel(config)
        network.to(device).requires_grad_(False)
        hidden = torch.zeros(*_PROBE, width, device=device)
        parameters = sum(tensor.numel() for tensor in network.layers.parameters())

        def forward() -> None:
            with torch.no_grad():
                network(inputs_embeds=hidden)

        def training() -> None:
            network(inputs_embeds=hidden.requires_grad_()).last_hidden_state.sum().backward()

        return Speed(*(parameters * hidden.shape[0] * hidden.shape[1] / _seconds(step) for step in (forward, training)))
    finally:
        torch.set_num_threads(before)


def _seconds(step: Callable[[], None]) -> float:
    """Return the time of a step: the mean of as many as fit into half a second, the first not counted."""
    import torch

    def once() -> float:
        begin = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    once()
    spent, count = 0.0, 0
    while spent < 0.5:
        spent += once()
        count += 1
    return spent / count
