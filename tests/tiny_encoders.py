"""Tiny random encoders as masked pretraining leaves them, with a WordPiece tokenizer of letters."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

LAYERS = 3
POSITIONS = 64
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*string.ascii_lowercase, *string.digits, *".,-"]
WORDS = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "chest", "pain", "##ful", "no"]
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
_ENDS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "bert": (BertForPreTraining, BertConfig(**SIZES)),
    # A window shorter than the texts, and every other layer without one.
    "modernbert": (
        ModernBertForMaskedLM,
        ModernBertConfig(**SIZES, **_ENDS, global_attn_every_n_layers=2, local_attention=8),
    ),
    "modernbert-mean": (ModernBertForMaskedLM, ModernBertConfig(**SIZES, **_ENDS, classifier_pooling="mean")),
    "roberta": (RobertaForMaskedLM, RobertaConfig(**SIZES)),
    "electra": (ElectraForPreTraining, ElectraConfig(**SIZES, embedding_size=16)),
    "distilbert": (
        DistilBertForMaskedLM,
        DistilBertConfig(
            vocab_size=len(WORDS),
            dim=32,
            hidden_dim=64,
            n_layers=LAYERS,
            n_heads=4,
            max_position_embeddings=POSITIONS,
            initializer_range=0.1,
            pad_token_id=0,
        ),
    ),
}


def write_encoder(family: str, folder: Path) -> Path:
    """Write a checkpoint of a family, as pretraining leaves it: no weights for a classifier."""
    torch.set_num_threads(1)
    kind, config = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = kind(config)
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder)
    if family == "roberta":
        tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
        ).save_pretrained(folder)
    else:
        vocabulary = folder / "vocab.txt"
        vocabulary.write_text("\n".join(WORDS) + "\n")
        BertTokenizer(str(vocabulary)).save_pretrained(folder)
    return folder
