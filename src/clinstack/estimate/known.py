"""Known architectures: what their ``config.json`` says, as far as it decides sizes.

Each has its source, and the parameters that its publishers' files hold, against which a test counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Known:
    """A known architecture.

    Parameters
    ----------
    values : dict
        As in transformers' ``config.json``.
    source : str
        Where the values are from.
    parameters : int
        Of the published weights: of a decoder with its output layer, of an encoder without a head.
    """

    values: dict[str, Any]
    source: str
    parameters: int


def _decoder(
    kind: str,
    hidden: int,
    layers: int,
    heads: tuple[int, int],
    inner: int,
    vocabulary: int,
    positions: int,
    **more: Any,
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": False,
        **more,
    }


def _llama2(hidden: int, layers: int, heads: tuple[int, int], inner: int) -> dict[str, Any]:
    return _decoder("llama", hidden, layers, heads, inner, 32000, 4096, rms_norm_eps=1e-5)


def _llama3(hidden: int, layers: int, heads: tuple[int, int], inner: int, **more: Any) -> dict[str, Any]:
    positions = more.pop("positions", 131072)
    return _decoder(
        "llama", hidden, layers, heads, inner, 128256, positions, rms_norm_eps=1e-5, rope_theta=500000.0, **more
    )


def _qwen2(
    hidden: int, layers: int, heads: tuple[int, int], inner: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return _decoder("qwen2", hidden, layers, heads, inner, vocabulary, 32768, **more)


def _qwen3(hidden: int, layers: int, heads: tuple[int, int], inner: int, **more: Any) -> dict[str, Any]:
    return _decoder("qwen3", hidden, layers, heads, inner, 151936, 32768, head_dim=128, **more)


def _gemma2(hidden: int, layers: int, heads: tuple[int, int], inner: int, head_dim: int) -> dict[str, Any]:
    tied = {"tie_word_embeddings": True, "head_dim": head_dim, "query_pre_attn_scalar": head_dim}
    return _decoder("gemma2", hidden, layers, heads, inner, 256000, 8192, **tied)


_LLAMA_7B = _decoder("llama", 4096, 32, (32, 32), 11008, 32000, 2048)
_LLAMA_13B = _decoder("llama", 5120, 40, (40, 40), 13824, 32000, 2048)
_LLAMA3_8B = _llama3(4096, 32, (32, 8), 14336)
_LLAMA3_70B = _llama3(8192, 80, (64, 8), 28672)
_LLAMA32_1B = _llama3(2048, 16, (32, 8), 8192, tie_word_embeddings=True, head_dim=64)
_LLAMA32_3B = _llama3(3072, 28, (24, 8), 8192, tie_word_embeddings=True, head_dim=128)
_MISTRAL = {"rms_norm_eps": 1e-5}
_PHI2 = _decoder(
    "phi",
    2560,
    32,
    (32, 32),
    10240,
    51200,
    2048,
    partial_rotary_factor=0.4,
    hidden_act="gelu_new",
    attention_dropout=0.0,
)
_PHI3 = _decoder("phi3", 3072, 32, (32, 32), 8192, 32064, 4096, pad_token_id=32000, sliding_window=2047)
_BERT = {
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
_BERT_CASED, _BERT_UNCASED = {**_BERT, "vocab_size": 28996}, {**_BERT, "vocab_size": 30522}


def _modernbert(hidden: int, layers: int, heads: int, inner: int) -> dict[str, Any]:
    return {
        "model_type": "modernbert",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": 50368,
        "max_position_embeddings": 8192,
        "classifier_pooling": "mean",
    }


def _hub(name: str) -> str:
    return f"https://huggingface.co/{name}/blob/main/config.json"


_LLAMA_PAPER = "Touvron et al. 2023, LLaMA, table 2"
_LLAMA2_PAPER = "Touvron et al. 2023, Llama 2, table 1"
_TABLE: list[tuple[tuple[str, ...], dict[str, Any], str, int]] = [
    (("huggyllama/llama-7b", "aryopg/llama-7b"), _LLAMA_7B, _LLAMA_PAPER, 6_738_415_616),
    (("huggyllama/llama-13b",), _LLAMA_13B, _LLAMA_PAPER, 13_015_864_320),
    (("chaoyi-wu/PMC_LLAMA_7B",), _LLAMA_7B, "Wu et al. 2023, PMC-LLaMA: LLaMA-7B trained on", 6_738_415_616),
    (
        ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf", "starmpcc/Asclepius-Llama2-7B"),
        _llama2(4096, 32, (32, 32), 11008),
        _LLAMA2_PAPER,
        6_738_415_616,
    ),
    (
        ("meta-llama/Llama-2-13b-hf", "meta-llama/Llama-2-13b-chat-hf", "starmpcc/Asclepius-Llama2-13B"),
        _llama2(5120, 40, (40, 40), 13824),
        _LLAMA2_PAPER,
        13_015_864_320,
    ),
    (
        ("meta-llama/Llama-2-70b-hf", "meta-llama/Llama-2-70b-chat-hf"),
        _llama2(8192, 80, (64, 8), 28672),
        _LLAMA2_PAPER,
        68_976_648_192,
    ),
    (
        ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct", "starmpcc/Asclepius-Llama3-8B"),
        _llama3(4096, 32, (32, 8), 14336, positions=8192),
        _hub("meta-llama/Meta-Llama-3-8B"),
        8_030_261_248,
    ),
    (
        ("meta-llama/Meta-Llama-3-70B", "meta-llama/Meta-Llama-3-70B-Instruct"),
        _llama3(8192, 80, (64, 8), 28672, positions=8192),
        _hub("meta-llama/Meta-Llama-3-70B"),
        70_553_706_496,
    ),
    (
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
        _LLAMA3_8B,
        _hub("meta-llama/Llama-3.1-8B"),
        8_030_261_248,
    ),
    (
        ("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.3-70B-Instruct"),
        _LLAMA3_70B,
        _hub("meta-llama/Llama-3.1-70B"),
        70_553_706_496,
    ),
    (
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"),
        _LLAMA32_1B,
        _hub("meta-llama/Llama-3.2-1B"),
        1_235_814_400,
    ),
    (
        ("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"),
        _LLAMA32_3B,
        _hub("meta-llama/Llama-3.2-3B"),
        3_212_749_824,
    ),
    (("microsoft/phi-2",), _PHI2, _hub("microsoft/phi-2"), 2_779_683_840),
    (("microsoft/Phi-3-mini-4k-instruct",), _PHI3, _hub("microsoft/Phi-3-mini-4k-instruct"), 3_821_079_552),
    (
        ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1"),
        _decoder("mistral", 4096, 32, (32, 8), 14336, 32000, 32768, sliding_window=4096, **_MISTRAL),
        "Jiang et al. 2023, Mistral 7B, table 1",
        7_241_732_096,
    ),
    (
        ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"),
        _decoder("mistral", 4096, 32, (32, 8), 14336, 32768, 32768, sliding_window=None, **_MISTRAL),
        _hub("mistralai/Mistral-7B-v0.3"),
        7_248_023_552,
    ),
    (
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct"),
        _qwen2(896, 24, (14, 2), 4864, 151936, tie_word_embeddings=True),
        _hub("Qwen/Qwen2.5-0.5B"),
        494_032_768,
    ),
    (
        ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct"),
        _qwen2(1536, 28, (12, 2), 8960, 151936, tie_word_embeddings=True),
        _hub("Qwen/Qwen2.5-1.5B"),
        1_543_714_304,
    ),
    (
        ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B-Instruct"),
        _qwen2(2048, 36, (16, 2), 11008, 151936, tie_word_embeddings=True),
        _hub("Qwen/Qwen2.5-3B"),
        3_085_938_688,
    ),
    (
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"),
        _qwen2(3584, 28, (28, 4), 18944, 152064),
        _hub("Qwen/Qwen2.5-7B"),
        7_615_616_512,
    ),
    (
        ("Qwen/Qwen2.5-14B", "Qwen/Qwen2.5-14B-Instruct"),
        _qwen2(5120, 48, (40, 8), 13824, 152064),
        _hub("Qwen/Qwen2.5-14B"),
        14_770_033_664,
    ),
    (
        ("Qwen/Qwen2.5-32B", "Qwen/Qwen2.5-32B-Instruct"),
        _qwen2(5120, 64, (40, 8), 27648, 152064),
        _hub("Qwen/Qwen2.5-32B"),
        32_763_876_352,
    ),
    (
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B-Base"),
        _qwen3(1024, 28, (16, 8), 3072, tie_word_embeddings=True),
        _hub("Qwen/Qwen3-0.6B"),
        596_049_920,
    ),
    (
        ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B-Base"),
        _qwen3(2048, 28, (16, 8), 6144, tie_word_embeddings=True),
        _hub("Qwen/Qwen3-1.7B"),
        1_720_574_976,
    ),
    (
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B-Base"),
        _qwen3(2560, 36, (32, 8), 9728, tie_word_embeddings=True),
        _hub("Qwen/Qwen3-4B"),
        4_022_468_096,
    ),
    (("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base"), _qwen3(4096, 36, (32, 8), 12288), _hub("Qwen/Qwen3-8B"), 8_190_735_360),
    (
        ("Qwen/Qwen3-14B", "Qwen/Qwen3-14B-Base"),
        _qwen3(5120, 40, (40, 8), 17408),
        _hub("Qwen/Qwen3-14B"),
        14_768_307_200,
    ),
    (
        ("google/gemma-2-2b", "google/gemma-2-2b-it"),
        _gemma2(2304, 26, (8, 4), 9216, 256),
        "Gemma Team 2024, Gemma 2, table 1",
        2_614_341_888,
    ),
    (
        ("google/gemma-2-9b", "google/gemma-2-9b-it"),
        _gemma2(3584, 42, (16, 8), 14336, 256),
        "Gemma Team 2024, Gemma 2, table 1",
        9_241_705_984,
    ),
    (
        ("google/gemma-2-27b", "google/gemma-2-27b-it"),
        _gemma2(4608, 46, (32, 16), 36864, 128),
        "Gemma Team 2024, Gemma 2, table 1",
        27_227_128_320,
    ),
    (
        ("bert-base-uncased", "google-bert/bert-base-uncased", "bionlp/bluebert_pubmed_mimic_uncased_L-12_H-768_A-12"),
        _BERT_UNCASED,
        "Devlin et al. 2019, BERT, section 3",
        109_482_240,
    ),
    (
        (
            "bert-base-cased",
            "google-bert/bert-base-cased",
            "emilyalsentzer/Bio_ClinicalBERT",
            "bvanaken/CORe-clinical-outcome-biobert-v1",
        ),
        _BERT_CASED,
        "Devlin et al. 2019, BERT, section 3; Alsentzer et al. 2019 and van Aken et al. 2021 trained it on",
        108_310_272,
    ),
    (
        ("answerdotai/ModernBERT-base",),
        _modernbert(768, 22, 12, 1152),
        "Warner et al. 2024, ModernBERT, table 4",
        149_014_272,
    ),
    (
        ("answerdotai/ModernBERT-large",),
        _modernbert(1024, 28, 16, 2624),
        "Warner et al. 2024, ModernBERT, table 4",
        394_781_696,
    ),
]
KNOWN: dict[str, Known] = {
    name.lower(): Known(values, source, parameters) for names, values, source, parameters in _TABLE for name in names
}
"""By hub id in small letters."""
