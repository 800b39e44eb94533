"""Tokenizers without begin, end or padding token are repaired with tokens that they have, and it is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from clinstack.errors import InputError
from clinstack.model.base import find_base
from clinstack.model.reading import Reading
from clinstack.model.stack import Stack
from clinstack.model.tokenizer import load_tokenizer, tokenizer_repairs
from clinstack.recipe import AdapterRecipe
from clinstack.tokens.encode import encode_documents
from clinstack.tokens.texts import encode_texts

TEXT = "chest pain, no fever"


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, whose tokens 0, 1, 2 are <pad>, <s>, </s>."""
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


def set_tokens(folder: Path, **roles: Any) -> None:
    """Set special tokens in the tokenizer's settings; ``...`` takes the key out."""
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text())
    for role, token in roles.items():
        if token is ...:
            values.pop(role, None)
        else:
            values[role] = token
    file.write_text(json.dumps(values))


def set_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def make_base(folder: Path, special: list[str], config: dict[str, Any], settings: dict[str, Any]) -> Path:
    """A random Llama with a byte-level vocabulary behind the special tokens, which nothing but their name marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: id_ for id_, token in enumerate(special + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    (folder / "special_tokens_map.json").write_text("{}")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(special) + 256, **sizes, **config)).save_pretrained(folder)
    return folder


PMC_SETTINGS = {"bos_token": "", "eos_token": "", "unk_token": "", "tokenizer_class": "LLaMATokenizer"}


@pytest.fixture
def pmc(tmp_path: Path) -> Path:
    """As PMC-LLaMA is published: empty special tokens, and a configuration with wrong ids of begin and end."""
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    return make_base(tmp_path / "pmc", ["<unk>", "<s>", "</s>"], ids, PMC_SETTINGS)


def roles(folder: Path) -> tuple[str | None, str | None, str | None]:
    tokenizer = load_tokenizer(find_base(str(folder)))
    return tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token


def test_a_whole_tokenizer_stays_as_it_is(tiny_base: Path) -> None:
    assert tokenizer_repairs(find_base(str(tiny_base))) == []
    assert roles(tiny_base) == ("<s>", "</s>", "<pad>")


def test_transformers_cannot_open_what_pmc_llama_ships(pmc: Path) -> None:
    """If this fails, the workaround in `_open` may go."""
    with pytest.raises(RecursionError):
        AutoTokenizer.from_pretrained(pmc)


def test_the_tokenizer_of_pmc_llama_is_repaired_and_it_is_said(pmc: Path) -> None:
    assert roles(pmc) == ("<s>", "</s>", "<unk>")
    assert tokenizer_repairs(find_base(str(pmc))) == [
        "The tokenizer has no begin token; '<s>' serves.",
        "The tokenizer has no end token; '</s>' serves.",
        "The tokenizer has no unknown token; '<unk>' serves.",
        "The tokenizer has no padding token; '<unk>' serves.",
    ]
    tokenizer = load_tokenizer(find_base(str(pmc)))
    assert len(tokenizer) == 259, "no token is added"
    (document,) = encode_documents(tokenizer, [TEXT])
    assert (document[0], document[-1]) == (1, 2)
    assert tokenizer.decode(document[1:-1]) == TEXT
    assert tokenizer.pad_token_id not in document


def test_a_stack_is_built_on_a_repaired_tokenizer(pmc: Path) -> None:
    stack = Stack.build(str(pmc), [AdapterRecipe(name="clinical", rank=2)])
    assert stack.tokenizer.pad_token_id == 0
    assert stack.network.get_input_embeddings().weight.shape[0] == 259


@pytest.mark.parametrize("how", [..., None, ""])
@pytest.mark.parametrize(
    ("role", "token", "meaning"),
    [("bos_token", "<s>", "begin"), ("eos_token", "</s>", "end"), ("pad_token", "<pad>", "padding")],
)
def test_missing_null_and_empty_tokens_are_repaired(
    copy: Path, tiny_base: Path, role: str, token: str, meaning: str, how: Any
) -> None:
    set_tokens(copy, **{role: how})
    base = find_base(str(copy))
    assert roles(copy) == ("<s>", "</s>", "<pad>")
    assert tokenizer_repairs(base) == [f"The tokenizer has no {meaning} token; {token!r} serves."]
    whole, mended = load_tokenizer(find_base(str(tiny_base))), load_tokenizer(base)
    assert mended(["chest pain", "pain"], padding=True) == whole(["chest pain", "pain"], padding=True)


def test_a_token_may_also_be_written_as_an_object(copy: Path) -> None:
    set_tokens(copy, eos_token={"content": "", "special": True, "__type": "AddedToken"})
    assert roles(copy)[1] == "</s>"


def test_the_map_of_special_tokens_is_read_too(copy: Path) -> None:
    set_tokens(copy, eos_token=...)
    (copy / "special_tokens_map.json").write_text('{"eos_token": ""}')
    assert roles(copy)[1] == "</s>"


def test_all_three_at_once(copy: Path) -> None:
    set_tokens(copy, bos_token="", eos_token="", pad_token="", unk_token="")
    assert roles(copy) == ("<s>", "</s>", "<pad>")
    assert len(tokenizer_repairs(find_base(str(copy)))) == 3, "and no unknown token is invented"


def test_a_repaired_begin_is_put_before_a_text_where_the_file_asks_for_it(tmp_path: Path) -> None:
    settings = {"bos_token": "", "eos_token": "</s>", "add_bos_token": True}
    folder = make_base(tmp_path / "base", ["<unk>", "<s>", "</s>"], {}, settings)
    (row,) = encode_texts(load_tokenizer(find_base(str(folder))), Reading(max_tokens=100), [TEXT]).pieces
    assert row[0] == 1
    set_tokens(folder, add_bos_token=False)
    (row,) = encode_texts(load_tokenizer(find_base(str(folder))), Reading(max_tokens=100), [TEXT]).pieces
    assert row[0] != 1


def test_the_configuration_names_a_token_with_an_unusual_name(tmp_path: Path) -> None:
    ids = {"bos_token_id": 0, "eos_token_id": [1, 0], "pad_token_id": 2}
    folder = make_base(tmp_path / "base", ["[start]", "[stop]", "[nothing]"], ids, {})
    assert roles(folder) == ("[start]", "[stop]", "[nothing]")


def test_the_configuration_does_not_name_a_word(tmp_path: Path) -> None:
    """Old configurations say 0 for want of better; here that is a letter, which notes contain."""
    folder = make_base(tmp_path / "base", ["</s>"], {"pad_token_id": 5, "bos_token_id": 6}, {})
    assert roles(folder) == (None, "</s>", "</s>")


def test_where_there_is_one_special_token_it_ends_and_pads(tmp_path: Path) -> None:
    settings = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    folder = make_base(tmp_path / "gpt", ["<|endoftext|>"], {}, settings)
    assert roles(folder) == ("<|endoftext|>",) * 3
    (said,) = tokenizer_repairs(find_base(str(folder)))
    assert said == "The tokenizer has no padding token; '<|endoftext|>' serves, which masks hide."


def test_what_pads_is_not_read_where_the_base_has_a_token_to_spare(tmp_path: Path) -> None:
    qwen = make_base(tmp_path / "qwen", ["<|endoftext|>", "<|im_end|>"], {}, {"eos_token": "<|im_end|>"})
    assert roles(qwen) == (None, "<|im_end|>", "<|endoftext|>")
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"]
    llama = make_base(tmp_path / "llama-3", special, {"bos_token_id": 0, "eos_token_id": 1}, {})
    assert roles(llama) == tuple(special)


def test_a_base_that_reads_documents_without_a_begin_gets_none(tmp_path: Path) -> None:
    """Qwen's configuration calls its end token the begin too, but its tokenizer puts none."""
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    folder = make_base(tmp_path / "qwen", ["<|endoftext|>", "<|pad|>"], ids, {"eos_token": "<|endoftext|>"})
    assert roles(folder) == (None, "<|endoftext|>", "<|pad|>")
    assert len(tokenizer_repairs(find_base(str(folder)))) == 1


def test_a_padding_token_without_embedding_is_replaced(tmp_path: Path) -> None:
    """LLaMA with `<pad>` added behind the vocabulary: the first padded batch would read past the embedding."""
    folder = make_base(tmp_path / "base", ["<unk>", "<s>", "</s>"], {}, {"unk_token": "<unk>", "eos_token": "</s>"})
    tokenizer = AutoTokenizer.from_pretrained(folder, bos_token="<s>")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    assert tokenizer.pad_token_id == 259
    assert roles(folder) == ("<s>", "</s>", "<unk>")
    assert tokenizer_repairs(find_base(str(folder))) == [
        "The tokenizer has no embedding for its padding token '<pad>'; '<unk>' serves.",
        "The base has no embedding for <pad>; a note that spells one out cannot be read.",
    ]


def test_words_without_embedding_are_refused(copy: Path) -> None:
    set_config(copy, vocab_size=290)
    with pytest.raises(InputError, match=r"ids up to 299, its embedding has 290 rows"):
        load_tokenizer(find_base(str(copy)))


def test_a_tokenizer_with_nothing_that_could_pad_is_refused(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", [], {"pad_token_id": 3}, {})
    with pytest.raises(InputError, match=r"no padding, unknown or end token; name one .* as pad_token"):
        load_tokenizer(find_base(str(folder)))


def test_a_base_without_a_tokenizer_is_refused(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="tokenizer"):
        load_tokenizer(find_base(str(copy)))


def test_a_damaged_file_is_named(copy: Path) -> None:
    (copy / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is damaged"):
        load_tokenizer(find_base(str(copy)))


def test_sentencepiece_is_named_where_only_that_could_open_it(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    (copy / "tokenizer.model").write_bytes(b"a vocabulary in sentencepiece's format")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install sentencepiece"):
        load_tokenizer(find_base(str(copy)))
