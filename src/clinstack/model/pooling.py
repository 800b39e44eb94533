"""What of a text's hidden states the head reads: by the mask, so right whatever the padding side or token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from clinstack.errors import InputError
from clinstack.model.families import encoder_of

KINDS = ("last", "first", "mean")


@dataclass(frozen=True)
class HeadInput:
    """What of a base the head reads.

    Parameters
    ----------
    pooling : {"auto", "last", "first", "mean"}
        ``auto`` is the convention of the base's family.
    layer : int or None
        The layer, from 1, whose output is read; None is the last.
    """

    pooling: str = "auto"
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.pooling not in ("auto", *KINDS):
            raise InputError(f"pooling: {self.pooling!r} is none of auto, {', '.join(KINDS)}.")
        if self.layer is not None and self.layer < 1:
            raise InputError(f"layer: {self.layer} is no layer; they are counted from 1.")

    def kind(self, config: PreTrainedConfig) -> str:
        """Return the pooling for a base: "last", "first" or "mean".

        Decoders have seen a text at its last token; BERT and its kin sum it up in the first (Devlin et al. 2019,
        section 4.1); ModernBERT's configuration says which of first and mean it is made for.
        """
        if self.pooling != "auto":
            return self.pooling
        if encoder_of(config) is None:
            return "last"
        return "mean" if getattr(config, "classifier_pooling", "cls") == "mean" else "first"

    def keep_layers(self, base: str, config: PreTrainedConfig) -> None:
        """Shorten a configuration to the layers that are read; what is above is then neither loaded nor computed.

        Raises
        ------
        InputError
            If the base has fewer.
        """
        if self.layer is None:
            return
        text = config.get_text_config()
        depth = int(text.num_hidden_layers)
        if self.layer > depth:
            raise InputError(f"layer: {self.layer} is above the {depth} layers of {base}; use {depth} or less.")
        for key, value in list(vars(text).items()):
            if "layer" in key and isinstance(value, list) and len(value) == depth:
                setattr(text, key, value[: self.layer])
        text.num_hidden_layers = self.layer

    def drop_unread(self, network: PreTrainedModel) -> None:
        """Take out what an explicit pooling passes by, and write the pooling where the configuration has a place.

        BERT's pooler was trained on the first token as the family reads it, so an explicit pooling goes without it;
        ModernBERT's head block is read through whatever is pooled.
        """
        if self.pooling == "auto":
            return
        if network.config.model_type == "bert":
            body: Any = network.base_model
            body.pooler = None
        if hasattr(network.config, "classifier_pooling") and self.pooling != "last":
            network.config.classifier_pooling = "cls" if self.pooling == "first" else self.pooling


BY_CONVENTION = HeadInput()
"""All layers, pooled as the base's family does it."""


def pool(hidden: Tensor, attention_mask: Tensor, kind: str) -> Tensor:
    """Pool each row's real tokens.

    Parameters
    ----------
    hidden : Tensor [rows, tokens, hidden]
    attention_mask : Tensor [rows, tokens]
        1 for real tokens, at least one in a row; padded on either side.
    kind : {"last", "first", "mean"}

    Returns
    -------
    float32 Tensor [rows, hidden]
    """
    if kind == "mean":
        weights = attention_mask[:, :, None].float()
        return (hidden.float() * weights).sum(1) / weights.sum(1)
    if kind == "first":
        place = attention_mask.argmax(1)
    else:
        place = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), place].float()


def pool_flat(hidden: Tensor, lengths: Tensor, kind: str) -> Tensor:
    """Pool texts that follow one another without padding.

    Parameters
    ----------
    hidden : Tensor [tokens, hidden]
    lengths : int64 Tensor [texts]
        Each at least 1; their sum is the number of tokens.
    kind : {"last", "first", "mean"}

    Returns
    -------
    float32 Tensor [texts, hidden]
    """
    lengths = lengths.to(hidden.device)
    if kind == "mean":
        owners = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths)
        sums = hidden.new_zeros(len(lengths), hidden.shape[1], dtype=torch.float32)
        return sums.index_add_(0, owners, hidden.float()) / lengths[:, None]
    ends = lengths.cumsum(0)
    return hidden[ends - lengths if kind == "first" else ends - 1].float()
