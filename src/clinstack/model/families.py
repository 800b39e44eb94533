"""The families of bases: where a classifier's head is, what lies below it, and what layers are called.

::

    decoder      last token ────────────────────────────────────────── score
    BERT         first token ── pooler (dense, tanh) ── dropout ────── classifier
    ModernBERT   first token or mean ── head (dense, norm) ── dropout ─ classifier
    DistilBERT   first token ── pre_classifier, ReLU ── dropout ────── classifier
    RoBERTa      first token ── classifier.dense, tanh ── dropout ──── classifier.out_proj
    ELECTRA      first token ── classifier.dense, GELU ── dropout ──── classifier.out_proj

What pretraining has left (BERT's pooler, ModernBERT's head block) belongs to the base; what has no weights yet (the
final layer, and in the last three families the layer before it) is the stack's head. Only decoders generate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

DECODER_HEAD = "score"
"""Name of the classifier in transformers' decoder models for sequence classification."""
HEAD_MODULES = (DECODER_HEAD, "classifier", "pre_classifier")
"""Parts of a network, of any family, that are a stack's head."""


def _called(query: str, key: str, value: str) -> dict[str, str]:
    return {"q_proj": query, "k_proj": key, "v_proj": value}


@dataclass(frozen=True)
class Encoder:
    """A family of encoders as transformers builds it for sequence classification.

    Parameters
    ----------
    head : str
        The final linear layer.
    between : function of network and Tensor [rows, hidden] to Tensor [rows, features]
        What lies between pooling and the final layer, without the dropout before that layer.
    dropout : str
        The dropout before the final layer.
    block : str
        The part of ``between`` that the base's pretraining has left; empty without one.
    names : mapping
        What Llama's query, key and value projections are called.
    offset_positions : bool
        Whether positions begin behind the padding token's id (RoBERTa).
    """

    head: str
    between: Callable[[Any, Tensor], Tensor]
    dropout: str
    block: str = ""
    names: Mapping[str, str] = field(default_factory=lambda: _called("query", "key", "value"))
    offset_positions: bool = False


def _pooler(network: Any, pooled: Tensor) -> Tensor:
    pooler = network.bert.pooler
    if pooler is None:  # an explicit pooling goes without it
        return pooled
    return cast(Tensor, pooler(pooled[:, None].to(pooler.dense.bias.dtype)))


def _head_block(network: Any, pooled: Tensor) -> Tensor:
    return cast(Tensor, network.head(pooled.to(network.head.norm.weight.dtype)))


def _pre_classifier(network: Any, pooled: Tensor) -> Tensor:
    return functional.relu(network.pre_classifier(pooled))


def _dense(network: Any, pooled: Tensor) -> Tensor:
    classifier = network.classifier
    dense = classifier.dense(classifier.dropout(pooled))
    return cast(Tensor, classifier.activation(dense)) if hasattr(classifier, "activation") else dense.tanh()


ENCODERS: dict[str, Encoder] = {
    "bert": Encoder("classifier", _pooler, "dropout", "bert.pooler"),
    "modernbert": Encoder("classifier", _head_block, "drop", "head", _called("Wqkv", "Wqkv", "Wqkv")),
    "distilbert": Encoder("classifier", _pre_classifier, "dropout", names=_called("q_lin", "k_lin", "v_lin")),
    "roberta": Encoder("classifier.out_proj", _dense, "classifier.dropout", offset_positions=True),
    "electra": Encoder("classifier.out_proj", _dense, "classifier.dropout"),
}
"""By ``model_type`` of config.json."""
_FUSED = {"phi3": _called("qkv_proj", "qkv_proj", "qkv_proj")}
"""Decoders that compute queries, keys and values by one layer."""


def encoder_of(config: PreTrainedConfig) -> Encoder | None:
    """Return the family of an encoder; None for a decoder."""
    return ENCODERS.get(config.model_type)


def projection_names(config: PreTrainedConfig) -> Mapping[str, str]:
    """Return what a base calls q_proj, k_proj and v_proj where it calls them otherwise; two may share one layer."""
    encoder = encoder_of(config)
    return encoder.names if encoder else _FUSED.get(config.model_type, {})


def backbone(network: PreTrainedModel) -> nn.Module:
    """Return the part of the network below its head."""
    below: nn.Module = network.base_model
    return below


def head_name(config: PreTrainedConfig) -> str:
    """Return the name of the final linear layer of a classifier."""
    encoder = encoder_of(config)
    return encoder.head if encoder else DECODER_HEAD


def head_of(network: PreTrainedModel) -> nn.Module | None:
    """Return a classifier's final layer, whatever it is; None where there is none of its name."""
    try:
        return network.get_submodule(head_name(network.config))
    except AttributeError:
        return None


def is_heads(parameter: str) -> bool:
    """Whether a classifier's parameter belongs to the head, by its name in the network or in a model's file."""
    return parameter.split(".", 1)[0] in HEAD_MODULES


def head_parameters(network: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return all tensors of a classifier's head by their names in the network."""
    return {name: parameter for name, parameter in network.named_parameters() if is_heads(name)}


def layers_of(network: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of a network's transformer layers.

    Raises
    ------
    LookupError
        If it keeps them in no list.
    """
    depth = int(network.config.get_text_config().num_hidden_layers)
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise LookupError(f"{type(network).__name__} has no list of its {depth} layers")
