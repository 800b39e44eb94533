"""Memory of a recipe by part: weights, adapters, gradients, optimizer, activations, logits.

::

    peak = weights + scales of quantised weights + adapters and head      there all the time
         + optimizer state                                                from the first step on
         + the highest of: forward pass, loss, backward pass, step        gradients, activations, logits, temporary

Layers are alike, so a stack of a few of them is traced (`clinstack.estimate.activations`), and another of a few more;
the difference is what each layer adds.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.estimate.activations import Trace, Workload, logits_at_once, trace
from clinstack.estimate.architectures import Architecture
from clinstack.estimate.attention import AttentionSetting
from clinstack.estimate.autocast import autocast_dtype
from clinstack.estimate.parameters import DryStack, build_dry_stack
from clinstack.estimate.quantized import quantized_bytes, quantized_names
from clinstack.recipe import FinetuneRecipe, TrainingStageRecipe
from clinstack.tasks import Task

LENGTH_KEYS = {"pretrain": "context", "finetune": "max_tokens", "instruct": "max_tokens"}
"""What each stage calls the tokens of a row."""
_PUBLISHED_CLASSES = {"length_of_stay": 4, "diagnoses": 1266, "procedures": 711}
"""Outputs of the head for tasks whose folder is not there, after van Aken et al. 2021; others have two."""
_LONGEST_PERIOD = 6
_MOST_ROWS = 1 << 20


@dataclass(frozen=True)
class Weights:
    """What is there before training, in bytes.

    Parameters
    ----------
    base : int
        The frozen base, or the trained one of full fine-tuning.
    scales : int
        What says how to read quantised numbers.
    adapters : int
        All adapters and the head, trained or not.
    """

    base: int
    scales: int
    adapters: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.scales + self.adapters


@dataclass(frozen=True)
class Memory:
    """What a recipe needs, in bytes.

    Parameters
    ----------
    weights : Weights
    trace : Trace
        What training adds.
    """

    weights: Weights
    trace: Trace

    @property
    def peak(self) -> int:
        """The most at any moment, without what a CUDA process takes for itself."""
        return self.weights.total + self.trace.peak


def rule_of_thumb(parameters: int) -> tuple[float, float]:
    """Return the course's bounds for training a whole model, in GB of 1e9 bytes: 6 to 16 bytes a parameter.

    The lower one is a model's weights in mixed precision, a float16 copy (2) beside the float32 one (4); the upper one
    AdamW's training state as Rajbhandari et al. 2020 (ZeRO, section 3.1) count it: float16 weights and gradients
    (2 + 2), float32 weights and two moments (12). Neither has activations.
    """
    return 6 * parameters / 1e9, 16 * parameters / 1e9


def classes_of(recipe: TrainingStageRecipe) -> int | None:
    """Return the outputs of a recipe's head: of its task's folder, or where that is not there as published."""
    if not isinstance(recipe, FinetuneRecipe):
        return None
    folder = Path(recipe.examples)
    if (folder / "task.yaml").is_file():
        return len(Task.load(folder).classes)
    return _PUBLISHED_CLASSES.get(folder.name, 2)


def length_of(recipe: TrainingStageRecipe) -> int:
    """Return the tokens of a row at most.

    Raises
    ------
    InputError
        For a stage whose rows have no such length.
    """
    key = LENGTH_KEYS.get(recipe.stage)
    if key is None or not hasattr(recipe, key):
        raise InputError(f"estimate: knows {', '.join(LENGTH_KEYS)}; this is a recipe for {recipe.stage}.")
    return int(getattr(recipe, key))


def weights_of(stack: DryStack, quantize: str) -> Weights:
    """Return what a stack's tensors take with the base's linear layers in so many bits."""
    quantized = set() if quantize == "none" else {f"{name}.weight" for name in quantized_names(stack.network)}
    base = scales = adapters = 0
    whole = {adapter.name for adapter in stack.adapters if adapter.method == "full"}
    for name, parameter in stack.network.named_parameters():
        size = parameter.numel() * parameter.element_size()
        if name in quantized:
            numbers, extra = quantized_bytes(parameter.shape, quantize)
            base, scales = base + numbers, scales + extra
        elif stack.is_base(name) or any(stack.placed(adapter).owns(name) for adapter in whole):
            base += size
        else:
            adapters += size
    base += sum(buffer.numel() * buffer.element_size() for buffer in stack.network.buffers())
    return Weights(base, scales, adapters)


class Estimator:
    """Answers what a recipe would take on a device, for any number of rows.

    Parameters
    ----------
    recipe : TrainingStageRecipe
    architecture : Architecture
        Of its base.
    device : {"cpu", "cuda"}
    has_flash : bool
        Whether the GPU has FlashAttention 2.
    stack : DryStack, optional
        Of a recipe that differs in checkpointing or in the bits of the base only, to build it once.
    """

    def __init__(
        self,
        recipe: TrainingStageRecipe,
        architecture: Architecture,
        device: str = "cuda",
        *,
        has_flash: bool = True,
        stack: DryStack | None = None,
    ) -> None:
        self.recipe = recipe
        self.classes = classes_of(recipe)
        self._architecture = architecture
        self._device = device
        self._has_flash = has_flash
        self.stack = build_dry_stack(recipe, architecture, self.classes) if stack is None else stack
        self.weights = weights_of(self.stack, recipe.quantize)
        self.rows = _rows_of(recipe)
        self.tokens = length_of(recipe)
        self._traced: Callable[[int, bool], Trace] = lru_cache(maxsize=None)(self._trace)

    @property
    def needs_flash(self) -> bool:
        """Whether a card without FlashAttention 2 computes attention in a way that takes other memory."""
        config = self.stack.network.config.get_text_config()
        shared = getattr(config, "num_key_value_heads", None) not in (None, config.num_attention_heads)
        return shared and not (self.stack.can_pack and _is_packed(self.recipe, self._device))

    def memory(self, rows: int | None = None, *, full_logits: bool = False) -> Memory:
        """Return the memory of a batch of so many rows; of the recipe's without a number.

        Between the sizes that are traced, and beyond them, on straight lines.
        """
        rows = rows or self.rows
        known = self._traced_sizes()
        if rows in known:
            return Memory(self.weights, self._traced(rows, full_logits))
        place = min(bisect(known, rows), len(known) - 1)
        low, high = known[place - 1], known[place]
        share = (rows - low) / (high - low)
        return Memory(self.weights, self._traced(low, full_logits).towards(self._traced(high, full_logits), share))

    def _traced_sizes(self) -> list[int]:
        """Return the numbers of rows between which memory lies on straight lines.

        It bends where a batch has as many tokens as the loss makes logits of at once, and where it has twice as many:
        two parts overlap for a moment.
        """
        sizes = {1, self.rows, 2 * self.rows}
        if self.classes is None:
            network: Any = self.stack.network
            vocabulary = len(network.get_output_embeddings().weight)
            bend = ceil(logits_at_once(self._device) / vocabulary / self.tokens)
            if bend > self.rows:
                sizes = {1, self.rows, bend, 2 * bend}
            elif bend > 1:
                sizes |= {bend, 2 * bend}
        return sorted(sizes)

    def largest_batch(self, room: int) -> int:
        """Return the most rows whose memory is at most ``room`` bytes; 0 where one is too many."""
        low, high = self.rows, 2 * self.rows
        if self.memory().peak > room:
            low, high = 1, self.rows
            if self.memory(1).peak > room:
                return 0
        while self.memory(high).peak <= room and high < _MOST_ROWS:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.memory(middle).peak <= room else (low, middle)
        return low

    def _trace(self, rows: int, full_logits: bool) -> Trace:
        config = self.stack.network.config.get_text_config()
        depth = int(config.num_hidden_layers)
        few = _few_layers(self.recipe, depth, list(getattr(config, "layer_types", None) or ()))
        if few is None:
            return self._trace_layers(depth, rows, full_logits)
        first, second = (self._trace_layers(layers, rows, full_logits) for layers in few)
        return first.towards(second, (depth - few[0]) / (few[1] - few[0]))

    def _trace_layers(self, layers: int, rows: int, full_logits: bool) -> Trace:
        left_out = int(self.stack.network.config.get_text_config().num_hidden_layers) - layers
        adapters = tuple(
            adapter.model_copy(update={"adapter_layers": adapter.adapter_layers - left_out})
            if adapter.method == "adaption_prompt" and adapter.path is None
            else adapter
            for adapter in self.recipe.adapters
        )
        recipe = self.recipe.model_copy(update={"adapters": adapters, "layer": None})
        stack = build_dry_stack(recipe, self._architecture, self.classes, depth=layers)
        packs = stack.can_pack and not stack.is_encoder and _is_packed(self.recipe, self._device)
        work = Workload(
            rows,
            self.tokens,
            self.recipe.training,
            AttentionSetting(self._device, packs, self._has_flash, autocast_dtype(stack)),
            full_logits=full_logits,
        )
        return trace(stack, work)


def with_settings(
    recipe: TrainingStageRecipe, *, checkpointing: bool | None = None, quantize: str = ""
) -> TrainingStageRecipe:
    """Return a recipe that computes layers again, or not, and holds its base in other bits."""
    changes: dict[str, object] = {"quantize": quantize} if quantize else {}
    if checkpointing is not None:
        changes["training"] = recipe.training.model_copy(update={"gradient_checkpointing": checkpointing})
    return recipe.model_copy(update=changes)


def _rows_of(recipe: TrainingStageRecipe) -> int:
    """Return the rows of a batch when all of them are as long as they may be."""
    rows = recipe.training.batch_size
    if isinstance(recipe, FinetuneRecipe):
        if recipe.training.batch_tokens is not None:
            rows = max(1, recipe.training.batch_tokens // recipe.max_tokens)
        elif recipe.keep == "chunks":
            rows *= recipe.max_chunks
    return rows


def _is_packed(recipe: TrainingStageRecipe, device: str) -> bool:
    """Whether several documents stand in a row, which a mask or the kernel keeps apart."""
    if isinstance(recipe, FinetuneRecipe):
        # Flat rows (`clinstack.engine.pieces`); elsewhere notes are padded, and a full batch has no mask.
        return device == "cpu" and recipe.dtype == "float32"
    return getattr(recipe, "layout", "packed") == "packed"


def _few_layers(recipe: TrainingStageRecipe, depth: int, kinds: list[str]) -> tuple[int, int] | None:
    """Return two depths, of which the second has what layers are alike in once more; None where all must be traced."""
    if any(adapter.rank_pattern for adapter in recipe.adapters):
        return None
    period = next(
        (p for p in range(1, _LONGEST_PERIOD + 1) if all(a == b for a, b in zip(kinds, kinds[p:], strict=False))), None
    )
    if period is None:
        return None
    bare = max(
        (depth - adapter.adapter_layers for adapter in recipe.adapters if adapter.method == "adaption_prompt"),
        default=0,
    )
    first = -(-(bare + 2) // period) * period
    return (first, first + period) if first + period < depth else None


def resized(recipe: TrainingStageRecipe, rows: int | None, tokens: int | None) -> TrainingStageRecipe:
    """Return a recipe with another batch size and length of rows."""
    changes: dict[str, object] = {}
    if tokens is not None:
        changes[LENGTH_KEYS[recipe.stage]] = tokens
    if rows is not None:
        changes["training"] = recipe.training.model_copy(update={"batch_size": rows, "batch_tokens": None})
    return recipe.model_copy(update=changes)
