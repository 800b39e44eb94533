"""Answers from a stack: prompts in batches of similar length, decoded with a cache of keys and values.

::

    row 1     . . . . p p p p | a a a </s>       rows are padded on the left, so that every answer begins in the same
    row 2     p p p p p p p p | a a a a a        column; positions count the real tokens only

Decoding itself is transformers' ``generate`` on the stack's network, in which every adapter of the stack is active.
What the base's own ``generation_config.json`` asks for (a repetition penalty, a temperature) is not used: only the
recipe decides, so that two bases differ by their weights alone.

An answer does not depend on the prompts beside it. Greedy answers and beams have nothing random; a drawn token is the
largest of the scaled scores with Gumbel noise added (Gumbel 1954; Maddison et al. 2014, "A* sampling"), which is
exactly a draw from their softmax, and the noise of a row comes from the seed and a hash of its prompt. What is left is
rounding: sums in another order may differ in the last bit, in less than float32 more often.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from clinstack.engine.guards import is_out_of_memory
from clinstack.engine.precision import forward_precision
from clinstack.engine.progress import console, progress_bar
from clinstack.errors import ClinstackError, InputError
from clinstack.model.methods.virtual_tokens import VirtualTokens
from clinstack.model.stack import Stack
from clinstack.recipe.generate import DecodingRecipe


@dataclass(frozen=True)
class Generated:
    """The answer to one prompt.

    Parameters
    ----------
    text : str
        Without special tokens, and without blanks at its ends.
    tokens : int
        New tokens, the end token included.
    cut : bool
        Whether it had no end when ``max_new_tokens`` were there.
    """

    text: str
    tokens: int
    cut: bool


def generate_answers(stack: Stack, prompts: Sequence[Sequence[int]], settings: DecodingRecipe, title: str) -> list[str]:
    """Return the answers of a stack, in the order of the prompts; see `generate`."""
    return [answer.text for answer in generate(stack, prompts, settings, title)]


def generate(
    stack: Stack,
    prompts: Sequence[Sequence[int]],
    settings: DecodingRecipe,
    title: str | None,
    *,
    ends: Sequence[int] | None = None,
    kept: Path | None = None,
) -> list[Generated]:
    """Answer prompts.

    Parameters
    ----------
    stack : Stack
        A causal language model, with all its adapters.
    prompts : sequence of sequence of int
        Tokens, as `clinstack.tokens.prompts.encode_prompts` makes them. Equal ones are answered once.
    settings : DecodingRecipe
    title : str or None
        Of the progress bar, which counts prompts and shows new tokens a second; None shows none.
    ends : sequence of int, optional
        Tokens that end an answer; by the stack's own prompt, or the tokenizer's end token, when not given.
    kept : Path, optional
        A file that answers are added to batch by batch, and that a killed start goes on from. Readable by its owner
        only: answers are as confidential as notes.

    Returns
    -------
    list of Generated
        In the order of the prompts.

    Raises
    ------
    InputError
        If the stack is a classifier, a prompt is empty, or prompt and answer together are longer than the base can
        read.
    ClinstackError
        If a single prompt does not fit into memory.
    """
    _refuse(stack, prompts, settings)
    keys = [prompt_key(prompt) for prompt in prompts]
    by_key = {key: list(prompt) for key, prompt in zip(keys, prompts, strict=True)}
    found = _generate(stack, by_key, settings, title, ends, kept)
    return [found[key] for key in keys]


def generate_several(
    stack: Stack, prompts: Sequence[Sequence[int]], draws: int, settings: DecodingRecipe, title: str | None
) -> list[list[Generated]]:
    """Draw several answers to each prompt, independent of each other; the first is what `generate` draws.

    Parameters
    ----------
    stack, prompts, settings, title
        As `generate` takes them.
    draws : int
        Of each prompt; the temperature must be above 0.

    Returns
    -------
    list of list of Generated
        Of each prompt, in their order, its draws.

    Raises
    ------
    InputError, ClinstackError
        As `generate` does.
    ValueError
        For a temperature of 0, at which all draws are one.
    """
    if settings.temperature == 0:
        raise ValueError("at temperature 0 all draws are one")
    _refuse(stack, prompts, settings)
    keys = [[_draw_key(prompt, number) for number in range(draws)] for prompt in prompts]
    by_key = {key: list(prompt) for prompt, of_prompt in zip(prompts, keys, strict=True) for key in of_prompt}
    found = _generate(stack, by_key, settings, title, None, None)
    return [[found[key] for key in of_prompt] for of_prompt in keys]


def _draw_key(prompt: Sequence[int], number: int) -> str:
    """Return what the noise of a prompt's draw goes by."""
    return prompt_key(prompt) if number == 0 else f"{prompt_key(prompt)}:{number}"


def _generate(
    stack: Stack,
    by_key: dict[str, list[int]],
    settings: DecodingRecipe,
    title: str | None,
    ends: Sequence[int] | None,
    kept: Path | None,
) -> dict[str, Generated]:
    """Answer prompts by their keys, which decide the order and the noise."""
    ends = _end_tokens(stack) if ends is None else list(ends)
    done = {} if kept is None else _read_kept(kept)
    found = {key: done[key] for key in by_key if key in done}
    # By length and then by key: the batches are the same after a kill, so a start that goes on pads as one that did
    # not stop. The longest first: what does not fit shows at once.
    order = sorted(by_key, key=lambda key: (-len(by_key[key]), key))
    size = settings.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    stack.eval()
    with (
        torch.inference_mode(),
        _own_settings(stack, settings, ends) as config,
        progress_bar(title, len(order), done=len(found), unit="new tokens") as bar,
    ):
        most = size
        for batch in batches:
            waiting = [key for key in batch if key not in found]
            while waiting:
                chosen = waiting[:most]
                try:
                    answers = _answer(stack, [by_key[key] for key in chosen], chosen, settings, config)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    most = _fewer(len(chosen))
                    torch.cuda.empty_cache()
                    continue
                new = dict(zip(chosen, answers, strict=True))
                if kept is not None:
                    _keep(kept, new)
                found |= new
                waiting = waiting[len(chosen) :]
                bar.advance(sum(answer.tokens for answer in answers), steps=len(chosen))
    return found


def readable_tokens(stack: Stack) -> int | None:
    """Return how many tokens the base reads at most, its virtual ones left out; None where it does not say."""
    most = getattr(stack.network.config.get_text_config(), "max_position_embeddings", None)
    virtual = _virtual_tokens(stack)
    return None if most is None else int(most) - (virtual.count if virtual is not None else 0)


def _refuse(stack: Stack, prompts: Sequence[Sequence[int]], settings: DecodingRecipe) -> None:
    if stack.task is not None:
        raise InputError(f"stack: it is a classifier for {stack.task.name} and writes no text; name a language model.")
    if not all(prompts):
        raise InputError("generate: a prompt has no token.")
    most = readable_tokens(stack)
    longest = max((len(prompt) for prompt in prompts), default=0) + settings.max_new_tokens
    if most is not None and longest > most:
        raise InputError(
            f"decoding.max_new_tokens: the longest prompt and its answer are {longest:,} tokens, and the base reads "
            f"{most:,}; lower max_tokens or decoding.max_new_tokens."
        )


def _end_tokens(stack: Stack) -> list[int]:
    prompt = getattr(stack, "prompt", None)
    if prompt is not None:
        return cast(list[int], prompt.end_tokens(stack.tokenizer))
    if stack.tokenizer.eos_token_id is None:
        raise InputError("base: its tokenizer has no end token, so an answer would never end; take another base.")
    return [int(stack.tokenizer.eos_token_id)]


def _fewer(size: int) -> int:
    """Return half of a batch that did not fit into memory."""
    if size == 1:
        raise ClinstackError(
            "generate: memory is full with a single prompt; lower max_tokens or decoding.max_new_tokens, or quantize "
            "the base."
        ) from None
    console.print(f"[yellow]note[/] memory was full with {size} prompts at once; going on with {size // 2}.")
    return size // 2


# ---------------------------------------------------------------------- one batch


@contextmanager
def _own_settings(stack: Stack, settings: DecodingRecipe, ends: Sequence[int]) -> Iterator[GenerationConfig]:
    """Yield what ``generate`` is told, and keep the base's own settings out of it for a while."""
    padding = stack.tokenizer.pad_token_id
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        num_beams=settings.num_beams,
        eos_token_id=list(ends),
        pad_token_id=int(ends[0] if padding is None else padding),
        use_cache=True,
    )
    network: Any = stack.network
    before = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield config
    finally:
        network.generation_config = before


def _answer(
    stack: Stack,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    settings: DecodingRecipe,
    config: GenerationConfig,
) -> list[Generated]:
    """Answer one batch."""
    width = max(map(len, prompts))
    filler = cast(int, config.pad_token_id)
    ids = torch.tensor([[filler] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=stack.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=stack.device)
    inputs, before = _with_virtual_tokens(stack, ids, mask, settings.num_beams)
    processors = LogitsProcessorList()
    if settings.temperature > 0:
        processors.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_p < 1:
            processors.append(TopPLogitsWarper(settings.top_p))
        processors.append(GumbelNoise(settings.seed, keys))
    network: Any = stack.network
    with forward_precision(stack):
        output = network.generate(**inputs, generation_config=config, logits_processor=processors)
    ends = set(cast(list[int], config.eos_token_id))
    answers = []
    for row in output[:, before:].tolist():
        length = next((place + 1 for place, token in enumerate(row) if token in ends), None)
        tokens = row if length is None else row[:length]
        text = stack.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        answers.append(Generated(str(text).strip(), len(tokens), length is None))
    return answers


def _virtual_tokens(stack: Stack) -> VirtualTokens | None:
    virtual = stack.virtual_tokens
    return None if virtual is None or virtual.is_off else virtual


def _with_virtual_tokens(stack: Stack, ids: Tensor, mask: Tensor, beams: int) -> tuple[dict[str, Any], int]:
    """Return what ``generate`` reads, and how many tokens of its output are not new.

    Virtual tokens of a prompt or of P-tuning stand between the padding and the text. A prefix is a cache that is full
    already: ``generate`` goes on behind it, and takes the filler in its place as read.
    """
    virtual = _virtual_tokens(stack)
    if virtual is None:
        return {"input_ids": ids, "attention_mask": mask}, ids.shape[1]
    rows, width = ids.shape
    if virtual.method == "prefix":
        filler = ids.new_zeros(rows, virtual.count)
        cache = virtual.cache(rows * beams)
        inputs = {
            "input_ids": torch.cat([filler, ids], 1),
            "attention_mask": torch.cat([mask.new_ones(rows, virtual.count), mask], 1),
            "past_key_values": cache,
        }
        return inputs, width + virtual.count
    embedded: Tensor = cast(Any, stack.network).get_input_embeddings()(ids)
    tokens = virtual.tensors()["prompt_embeddings"].to(embedded.dtype)
    padding = width - mask.sum(1)
    whole = embedded.new_zeros(rows, virtual.count + width, embedded.shape[2])
    for row, start in enumerate(padding.tolist()):
        whole[row, start : start + virtual.count] = tokens
        whole[row, start + virtual.count :] = embedded[row, start:]
    seen = torch.arange(virtual.count + width, device=ids.device)[None] >= padding[:, None]
    # Of embeddings alone ``generate`` returns the new tokens only.
    return {"inputs_embeds": whole, "attention_mask": seen.to(mask.dtype)}, 0


class GumbelNoise(LogitsProcessor):
    """Adds to each row's scores noise of its own, so that their largest is a draw from their softmax.

    Parameters
    ----------
    seed : int
    keys : sequence of str
        A hash of each row's prompt.
    """

    def __init__(self, seed: int, keys: Sequence[str]) -> None:
        digests = (hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys)
        self._generators = [np.random.default_rng(int.from_bytes(digest[:16], "big")) for digest in digests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the noisy scores of the next token, shape [rows, vocabulary]."""
        noise = np.stack([generator.gumbel(size=scores.shape[1]) for generator in self._generators])
        return scores.float() + torch.from_numpy(noise).to(scores.device, torch.float32)


# ---------------------------------------------------------------------- what a killed start leaves


def prompt_key(prompt: Sequence[int]) -> str:
    """Return a hash of a prompt's tokens: what a draw's noise and a kept answer go by."""
    return hashlib.sha256(" ".join(map(str, prompt)).encode()).hexdigest()


def _keep(path: Path, answers: dict[str, Generated]) -> None:
    """Add answers to a file, a line each, and see them to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        for key, answer in answers.items():
            file.write(json.dumps([key, answer.text, answer.tokens, answer.cut]) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read_kept(path: Path) -> dict[str, Generated]:
    """Return the answers of a file; a last line that a kill broke off is dropped from it."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    lines = (json.loads(line) for line in whole.decode("utf-8").splitlines())
    return {key: Generated(text, tokens, cut) for key, text, tokens, cut in lines}
