"""The cells of `memory.py`: a stack takes two training steps, and what it holds at most is measured.

    python benchmarks/memory_arms.py WORK cpu|cuda

Reads `cells.json` in WORK, makes the random bases that they name, and prints one JSON line for each cell. On a CPU each
cell has processes of its own, and its bytes are those of PyTorch's allocator, which its profiler reports at every
allocation: exact, without noise. Beside them stands how far the resident set grew (VmHWM). On a GPU they are those of
`torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pretraining_arms import forget_peak, resident
from torch import Tensor

from clinstack.engine import next_token
from clinstack.engine.checkpoint import TrainingState
from clinstack.engine.losses import causal_loss
from clinstack.engine.optimizer import build_optimizer
from clinstack.engine.precision import first_scale
from clinstack.engine.step import compute_gradients
from clinstack.errors import ClinstackError
from clinstack.model.stack import Stack
from clinstack.recipe import PretrainRecipe
from clinstack.tokens.pack import PackedBatch

STEPS = 2


class RandomTokens:
    """An objective over rows of random tokens, laid out as `clinstack pretrain` lays out notes."""

    unit = "tokens"

    def __init__(self, stack: Stack, recipe: PretrainRecipe) -> None:
        self._stack = stack
        self._context = recipe.context
        self._packed = recipe.layout == "packed" and stack.can_pack

    def epoch_batches(self, epoch: int) -> Sequence[Sequence[int]]:
        """Not asked for here."""
        raise NotImplementedError

    def loss(self, batch: Sequence[int]) -> tuple[Tensor, float]:
        """Return the summed loss of so many rows."""
        rows, tokens = len(batch), self._context
        generator = torch.Generator().manual_seed(0)
        input_ids = torch.randint(4, 300, (rows, tokens), generator=generator)
        positions = torch.arange(tokens).expand(rows, -1)
        lengths = (tokens,) * rows
        if self._packed:
            # Two documents in each row.
            half = tokens // 2
            positions = torch.cat([torch.arange(half), torch.arange(tokens - half)]).expand(rows, -1)
            lengths = (half, tokens - half) * rows
        mask = None if self._packed else torch.ones_like(input_ids)
        packed = PackedBatch(input_ids, positions.contiguous(), input_ids, input_ids * 0, rows * tokens, lengths, mask)
        return causal_loss(self._stack, packed.to(self._stack.device)), float(rows * tokens)

    def size(self, batch: Sequence[int]) -> int:
        """Return the tokens of a batch."""
        return len(batch) * self._context

    def validate(self) -> dict[str, float]:
        """Not asked for here."""
        raise NotImplementedError


def train(stack: Stack, recipe: PretrainRecipe) -> None:
    """Take some optimizer steps as `clinstack.engine.trainer` takes them."""
    settings = recipe.training
    if settings.gradient_checkpointing:
        stack.use_gradient_checkpointing()
    stack.begin_training(1000)
    stack.train()
    optimizer = build_optimizer(stack, settings)
    parameters = stack.trainable_parameters()
    objective = RandomTokens(stack, recipe)
    state = TrainingState(without_gradient=sorted(parameters), loss_scale=first_scale(stack))
    batches = [range(settings.batch_size)] * settings.accumulate
    for _ in range(STEPS):
        compute_gradients(stack, state, settings, objective, batches, parameters)
        optimizer.step()
        state.step += 1
        stack.after_step(state.step)
        optimizer.zero_grad(set_to_none=True)


def allocated_on_cpu(stack: Stack, recipe: PretrainRecipe) -> float:
    """Return the most bytes that PyTorch's allocator had given out above what it had before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train(stack, recipe)
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def resident_on_cpu(stack: Stack, recipe: PretrainRecipe) -> float:
    """Return the bytes that the resident set grew by at the most."""
    for tensor in stack.network.state_dict().values():
        tensor.float().sum()  # weights lie in a file until they are read
    before = resident()
    forget_peak()
    train(stack, recipe)
    return (resident("VmHWM") - before) * 2**20


def on_cuda(stack: Stack, recipe: PretrainRecipe, empty: int) -> dict[str, float]:
    """Return the same of the device, with the bytes of the weights and of what the process holds beside tensors."""
    stack.to("cuda")
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train(stack, recipe)
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return {
        "peak": torch.cuda.max_memory_allocated() - before,
        "weights": before - empty,
        "reserved": torch.cuda.max_memory_reserved(),
        # The context and the kernels; nobody else uses the device.
        "outside": total - free - torch.cuda.memory_reserved(),
    }


def warm_up_cuda() -> None:
    """Let cuBLAS take its workspaces, one in this thread and one in autograd's, before anything is measured."""
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn(64, 64, device="cuda", dtype=dtype, requires_grad=True)
        (weight @ weight).sum().backward()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()


def make_base(folder: Path, shape: dict[str, int], dtype: str, device: str) -> None:
    """Write a random Llama with a vocabulary of 32,000 words, one token each."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "<pad>", *(f"w{index}" for index in range(31_996))]
    inner = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=False,
        **shape,
    )
    torch.manual_seed(0)
    with torch.device(device):
        LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)


def measure(values: dict[str, Any], device: str, answer: Path) -> dict[str, float]:
    """Measure one cell."""
    recipe = PretrainRecipe.model_validate(values)
    # The logits' memory stays for the next step, and here for the next cell, which would then not make its own.
    next_token._kept.clear()
    empty = torch.cuda.memory_allocated() if device == "cuda" else 0
    stack = Stack.build(recipe.base, recipe.adapters, dtype=recipe.dtype, quantize=recipe.quantize)
    gc.collect()
    if device == "cuda":
        return on_cuda(stack, recipe, empty)
    return {
        "peak": apart(lambda: allocated_on_cpu(stack, recipe), answer),
        "resident": apart(lambda: resident_on_cpu(stack, recipe), answer),
    }


def apart(work: Callable[[], float], answer: Path) -> float:
    """Return what a function returns in a process of its own, which ends with it and leaves nothing."""
    next_token._kept.clear()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            answer.write_text(json.dumps(work()), encoding="utf-8")
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"a measuring process ended with {status}")
    return float(json.loads(answer.read_text(encoding="utf-8")))


def main() -> None:
    work, device = Path(sys.argv[1]), sys.argv[2]
    plan = json.loads((work / "cells.json").read_text(encoding="utf-8"))
    for name, (shape, dtype) in plan["bases"].items():
        make_base(work / name, shape, dtype, device)
    if device == "cuda":
        warm_up_cuda()
    for values in plan["cells"]:
        try:
            measured: dict[str, Any] = {**measure(values, device, work / "measured.json")}
        except (ClinstackError, RuntimeError) as error:
            # A GPU is lent for minutes: the other cells are still worth measuring.
            measured = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
        print(json.dumps(measured), flush=True)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
