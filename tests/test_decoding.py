"""Answers decoded together are those that each stack gives alone, whoever joins or leaves meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from clinstack.engine.generation import Generated, generate
from clinstack.errors import InputError
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe, DecodingRecipe
from clinstack.serve.decoding import Answer, Decoder, DecodingRequest
from clinstack.serve.decoding_cache import RowsCache, RowsLayer
from clinstack.serve.detokenization import AnswerText
from clinstack.serve.lanes import SharedLanes, StackLanes
from clinstack.serve.shared_base import SharedBase
from methods import NAMES, new
from tiny_chat import save_chat_stacks

GREEDY = DecodingRecipe(max_new_tokens=12)
DRAWN = DecodingRecipe(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=5)
_LENGTHS = (5, 40, 7, 20, 3, 12)
PROMPTS = [
    (1, *torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(place)).tolist())
    for place, length in enumerate(_LENGTHS)
]


def moved(base: Path, *adapters: AdapterRecipe, seed: int = 1) -> Stack:
    """Return a stack whose new adapters are not where they began."""
    stack = Stack.build(str(base), adapters)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in stack.trainable_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    stack.eval()
    return stack


def request(
    prompt: Sequence[int], wanted: DecodingRecipe = GREEDY, *, untouched: bool = False, stack: str = "stack"
) -> DecodingRequest:
    return DecodingRequest(stack, tuple(prompt), (2,), wanted, untouched)


def finish(decoder: Decoder, answers: Sequence[Answer]) -> list[str]:
    """Step until all answers have ended, and return their texts."""
    texts = [""] * len(answers)
    while not decoder.is_idle:
        decoder.step()
        for place, answer in enumerate(answers):
            texts[place] += answer.take()
    return texts


def same(answers: Sequence[Answer], texts: Sequence[str], wanted: Sequence[Generated]) -> None:
    assert list(texts) == [one.text for one in wanted]
    assert [answer.tokens for answer in answers] == [one.tokens for one in wanted]
    assert [answer.finish for answer in answers] == ["length" if one.cut else "stop" for one in wanted]


@pytest.mark.parametrize("spec", NAMES)
def test_the_same_as_generate_whatever_the_method(tiny_base: Path, spec: str) -> None:
    stack = moved(tiny_base, new(spec))
    wanted = generate(stack, PROMPTS, GREEDY, None, ends=[2])
    with stack.switched_off():
        of_base = generate(stack, PROMPTS, GREEDY, None, ends=[2])
    assert [one.text for one in wanted] != [one.text for one in of_base]
    decoder = Decoder(StackLanes(stack), max_rows=8)
    answers = [decoder.start(request(prompt)) for prompt in PROMPTS]
    untouched = [decoder.start(request(prompt, untouched=True)) for prompt in PROMPTS]
    texts = finish(decoder, [*answers, *untouched])
    same(answers, texts[:6], wanted)
    same(untouched, texts[6:], of_base)


@pytest.mark.parametrize("wanted", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_joining_and_leaving_changes_nobodys_answer(tiny_base: Path, wanted: DecodingRecipe) -> None:
    stack = moved(tiny_base, new("lora"))
    lengths = (3, 80, 9, 12, 1, 30)
    recipes = [wanted.model_copy(update={"max_new_tokens": length}) for length in lengths]
    alone = [
        generate(stack, [prompt], recipe, None, ends=[2])[0] for prompt, recipe in zip(PROMPTS, recipes, strict=True)
    ]
    decoder = Decoder(StackLanes(stack), max_rows=3, prompt_tokens=1)
    answers: list[Answer] = []
    texts = [""] * len(PROMPTS)
    for step in range(200):
        if step % 2 == 0 and len(answers) < len(PROMPTS):
            answers.append(decoder.start(request(PROMPTS[len(answers)], recipes[len(answers)])))
        assert decoder.rows <= 3
        decoder.step()
        for place, answer in enumerate(answers):
            texts[place] += answer.take()
    assert decoder.is_idle
    same(answers, texts, alone)


_COMMON: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 256,
}
_GROUPED = {**_COMMON, "intermediate_size": 64, "num_key_value_heads": 2, "initializer_range": 0.1}
FAMILIES: dict[str, PreTrainedConfig] = {
    "a window": MistralConfig(**_GROUPED, sliding_window=8),
    "layers with a window and without": Gemma3TextConfig(**_GROUPED, head_dim=8, sliding_window=8),
    "learned positions": GPT2Config(**_COMMON, initializer_range=0.3),
    "positions by the mask": OPTConfig(**_COMMON, ffn_dim=64, word_embed_proj_dim=32, init_std=0.3),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(tiny_base: Path, tmp_path: Path, name: str) -> None:
    for file in tiny_base.glob("*token*"):
        shutil.copy(file, tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(FAMILIES[name]).save_pretrained(tmp_path)
    stack = Stack.build(str(tmp_path))
    recipe = GREEDY.model_copy(update={"max_new_tokens": 30})
    wanted = [generate(stack, [prompt], recipe, None, ends=[2])[0] for prompt in PROMPTS]
    assert len({answer.text for answer in wanted}) >= 3
    decoder = Decoder(StackLanes(stack), max_rows=4, prompt_tokens=1)  # joined one by one
    answers = [decoder.start(request(prompt, recipe)) for prompt in PROMPTS]
    same(answers, finish(decoder, answers), wanted)


@pytest.fixture(scope="module")
def folders(tiny_base: Path, clinical: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_chat_stacks(tmp_path_factory.mktemp("stacks"), tiny_base, clinical)


@pytest.mark.parametrize("fold", ["auto", "never"])
def test_rows_of_several_stacks_and_of_the_base_together(folders: dict[str, Path], fold: str) -> None:
    shared = SharedBase.open(folders, fold=fold)
    assert set(shared.own_copies) == {"alone"}
    decoder = Decoder(SharedLanes(shared), max_rows=4)
    prompts = PROMPTS[:3]
    kinds = [
        (name, untouched, recipe)
        for name in ("plain", "clinical", "alone")
        for untouched, recipe in ((False, GREEDY), (True, GREEDY), (False, DRAWN))
    ]
    # One of each kind after another, so that every batch is mixed.
    answers = [
        decoder.start(request(prompt, recipe, untouched=untouched, stack=name))
        for prompt in prompts
        for name, untouched, recipe in kinds
    ]
    texts = finish(decoder, answers)
    stacks = {name: Stack.load(folders[name]) for name, *_ in kinds}
    for place, (name, untouched, recipe) in enumerate(kinds):
        stack = stacks[name]
        with stack.switched_off() if untouched else nullcontext():
            wanted = generate(stack, prompts, recipe, None, ends=[2])
        same(answers[place :: len(kinds)], texts[place :: len(kinds)], wanted)


def test_who_has_a_base_of_its_own_shares_the_untouched_one(folders: dict[str, Path]) -> None:
    lanes = SharedLanes(SharedBase.open(folders))
    common = lanes.lane("plain", untouched=False)
    assert lanes.lane("clinical", untouched=True) is common
    assert lanes.lane("alone", untouched=True) is common
    assert lanes.lane("alone", untouched=False) is not common
    # Alone, it is the only language model: its own base answers without its adapters.
    alone = SharedLanes(SharedBase.open({name: folders[name] for name in ("mortality", "alone")}))
    assert alone.lane("alone", untouched=True).network is alone.lane("alone", untouched=False).network


def test_a_stack_that_has_gone_ends_its_answers_alone(folders: dict[str, Path]) -> None:
    shared = SharedBase.open(folders)
    decoder = Decoder(SharedLanes(shared))
    gone, stays = (decoder.start(request(PROMPTS[0], stack=name)) for name in ("plain", "clinical"))
    decoder.step()
    shared.remove("plain")
    news = decoder.step()
    assert gone in news
    assert gone.finish == "failed"
    finish(decoder, [stays])
    assert stays.finish in ("stop", "length")
    for name in ("plain", "mortality"):
        with pytest.raises(InputError, match="no such stack answers"):
            decoder.start(request(PROMPTS[0], stack=name))


def test_drawn_answers_follow_the_seed(tiny_base: Path) -> None:
    stack = moved(tiny_base)
    decoder = Decoder(StackLanes(stack))
    seeds = [DRAWN.model_copy(update={"seed": seed}) for seed in (5, 6, 5)]
    answers = [decoder.start(request(PROMPTS[0], one)) for one in seeds]
    first, second, again = finish(decoder, answers)
    assert first == again != second
    assert first == generate(stack, PROMPTS[:1], DRAWN, None, ends=[2])[0].text


def test_a_cancelled_answer_frees_its_row(tiny_base: Path) -> None:
    stack = moved(tiny_base)
    decoder = Decoder(StackLanes(stack), max_rows=1)
    long = decoder.start(request(PROMPTS[1], GREEDY.model_copy(update={"max_new_tokens": 1000})))
    waits = decoder.start(request(PROMPTS[0]))
    never = decoder.start(request(PROMPTS[2]))
    decoder.step()
    decoder.step()
    assert (decoder.rows, waits.tokens) == (1, 0)
    decoder.cancel(long)
    decoder.cancel(never)
    texts = finish(decoder, [long, waits, never])
    assert long.finish == never.finish == "cancelled"
    assert texts[1] == generate(stack, PROMPTS[:1], GREEDY, None, ends=[2])[0].text
    assert texts[2] == ""


def test_prompts_are_read_within_a_budget(tiny_base: Path) -> None:
    decoder = Decoder(StackLanes(moved(tiny_base)), prompt_tokens=20)
    answers = [decoder.start(request(prompt)) for prompt in PROMPTS]
    began = []
    for _ in range(5):
        decoder.step()
        began.append(sum(answer.tokens > 0 for answer in answers))
    assert began == [1, 2, 3, 4, 6]  # of 6, 41, 8, 21, 4 and 13 tokens


def test_full_memory_ends_one_answer_and_not_the_others(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = moved(tiny_base)
    wanted = generate(stack, PROMPTS[:1], GREEDY, None, ends=[2])[0]
    lanes = StackLanes(stack)
    decoder = Decoder(lanes)
    lane = lanes.lane("stack", untouched=False)
    read = lane.read

    def full(prompt: Sequence[int], cache: RowsCache) -> torch.Tensor:
        if len(prompt) == 41:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return read(prompt, cache)

    monkeypatch.setattr(lane, "read", full)
    good, bad = decoder.start(request(PROMPTS[0])), decoder.start(request(PROMPTS[1]))
    texts = finish(decoder, [good, bad])
    assert (bad.finish, texts[1]) == ("failed", "")
    assert "memory" in str(bad.problem)
    same([good], texts[:1], [wanted])


def test_a_classifier_does_not_answer(tiny_base: Path, mortality: object) -> None:
    with pytest.raises(InputError, match="classifier for mortality"):
        StackLanes(Stack.build(str(tiny_base), [], mortality))  # type: ignore[arg-type]


def test_beams_and_empty_prompts_are_refused(tiny_base: Path) -> None:
    decoder = Decoder(StackLanes(moved(tiny_base)))
    for wrong in (request(PROMPTS[0], DecodingRecipe(num_beams=2)), request(())):
        with pytest.raises(InputError):
            decoder.start(wrong)
    assert decoder.is_idle


# ---------------------------------------------------------------------- the cache


def test_the_cache_holds_rows_in_the_order_of_their_joining() -> None:
    def row(length: int, value: float) -> RowsCache:
        cache = RowsCache()
        cache.update(torch.full((1, 2, length, 3), value), torch.full((1, 2, length, 3), -value), 0)
        cache.padding = [0]
        return cache

    cache = RowsCache()
    cache.join([row(4, 1.0), row(2, 2.0)])
    assert (cache.width, cache.padding) == (4, [0, 2])
    for _ in range(70):  # over the border of a block
        cache.update(torch.ones(2, 2, 1, 3), torch.ones(2, 2, 1, 3), 0)
    assert cache.width == 74
    cache.join([row(100, 3.0)])
    assert (cache.width, cache.padding) == (100, [26, 28, 0])
    assert cache.mask(torch.device("cpu")).sum(1).tolist() == [75, 73, 101]
    assert cache.positions(torch.device("cpu")).flatten().tolist() == [74, 72, 100]
    cache.keep([1])
    assert (cache.width, cache.padding) == (72, [0])
    keys = cast(RowsLayer, cache.layers[0]).keys
    assert keys is not None
    assert keys[0, 0, :, 0].tolist() == [2.0, 2.0, *[1.0] * 70]
    cache.keep([])
    assert cache.width == 0


# ---------------------------------------------------------------------- tokens to text


@pytest.fixture(scope="module")
def byte_level(tiny_base: Path) -> PreTrainedTokenizerBase:
    return Stack.build(str(tiny_base)).tokenizer


@pytest.fixture(scope="module")
def sentence_piece() -> PreTrainedTokenizerBase:
    """A tokenizer of Llama 2's kind: blanks belong to words, and unknown letters are bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "▁", "▁the", "▁patient", "s", "▁is", ",", "é"]
    vocabulary = {word: place for place, word in enumerate(words)}
    vocabulary |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
    text = AnswerText(tokenizer, stop)
    return [*(text.add(token) for token in tokens), text.end()]


def whole(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()


@settings(max_examples=150, deadline=None)
@given(tokens=st.lists(st.integers(0, 299), max_size=30))
def test_any_tokens_come_to_the_same_text(byte_level: PreTrainedTokenizerBase, tokens: list[int]) -> None:
    assert "".join(pieces(byte_level, tokens)) == whole(byte_level, tokens)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=" thepatinsé,ä猫🩺\n", max_size=40))
def test_text_comes_back_whole(
    byte_level: PreTrainedTokenizerBase, sentence_piece: PreTrainedTokenizerBase, text: str
) -> None:
    for tokenizer in (byte_level, sentence_piece):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found = pieces(tokenizer, [*ids, 2])
        assert "".join(found) == whole(tokenizer, ids)
        assert "\ufffd" not in "".join(found)
        # What was shown stands: no piece but the first begins, and none ends, with a blank that has no neighbour.
        assert "".join(found) == "".join(found).strip()


def test_blanks_before_words_stay(sentence_piece: PreTrainedTokenizerBase) -> None:
    assert pieces(sentence_piece, [4, 5, 6, 8, 7]) == ["the", " patient", "s", ",", " is", ""]
    # The two bytes of a letter, and a lone first byte at the end.
    assert pieces(sentence_piece, [4, 10 + 0xC3, 10 + 0xA9, 10 + 0xC3]) == ["the", "", "é", "", "\ufffd"]


@pytest.mark.parametrize(
    ("stop", "wanted"),
    [
        (["pain"], "the chest"),
        (["zebra", " and"], "the chest pain"),
        (["t p", "pain"], "the ches"),
        (["pained"], "the chest pain and"),
        (["the"], ""),
    ],
)
def test_ends_before_a_stop(byte_level: PreTrainedTokenizerBase, stop: list[str], wanted: str) -> None:
    letters = [byte_level(letter, add_special_tokens=False)["input_ids"][0] for letter in "the chest pain and"]
    for tokens in (letters, byte_level("the chest pain and", add_special_tokens=False)["input_ids"]):
        assert "".join(pieces(byte_level, tokens, stop)) == wanted


def test_a_stop_ends_the_decoding(tiny_base: Path) -> None:
    stack = moved(tiny_base, new("lora"))
    wanted = generate(stack, PROMPTS[:1], GREEDY, None, ends=[2])[0]
    stop = wanted.text[3:6]
    decoder = Decoder(StackLanes(stack))
    answer = decoder.start(DecodingRequest("stack", PROMPTS[0], (2,), GREEDY, stop=(stop,)))
    (text,) = finish(decoder, [answer])
    assert text == wanted.text[: wanted.text.index(stop)].rstrip()
    assert answer.finish == "stop"
    assert answer.tokens < wanted.tokens
