"""Bases in 8 or 4 bits (bitsandbytes): linear layers are quantised as they are read; the head and embeddings are not.

4 bits are NF4 with quantised constants (Dettmers et al. 2023, QLoRA, sections 3 and 4), 8 bits are LLM.int8()
(Dettmers et al. 2022). Both work on a CPU and on CUDA.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from clinstack.errors import InputError
from clinstack.model.config import is_quantised

if TYPE_CHECKING:
    from clinstack.model.base import Base

QUANTIZED_EXTRA = "clinstack[quantized]"


def refuse_quantizing(base: Base, config: PreTrainedConfig, quantize: str) -> None:
    """Say why a base cannot be quantised.

    Raises
    ------
    InputError
        If bitsandbytes is not installed, or the base's files are quantised already.
    """
    if quantize == "none":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"quantize: {quantize} needs bitsandbytes; pip install '{QUANTIZED_EXTRA}'.")
    if is_quantised(config):
        raise InputError(f"quantize: the files of {base.name} are quantised already; use quantize: none.")


def quantization_config(quantize: str, dtype: str, kept: list[str] | None = None) -> BitsAndBytesConfig | None:
    """Return what transformers needs to quantise a base while it reads it; None for ``none``.

    Parameters
    ----------
    quantize : {"none", "8bit", "4bit"}
    dtype : str
        Of the recipe: the 4-bit layers compute in it. The 8-bit products are int8, and their result has it.
    kept : list of str, optional
        Parts that are not quantised; without it transformers' own choice, the last one.
    """
    if quantize == "none":
        return None
    # bitsandbytes says at every product of bfloat16 or float32 that it casts to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=kept,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def compute_alike_in_training_and_evaluation(network: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit layers on a CPU with AVX-512 BF16.

    It would do so at the first forward pass in evaluation mode, in place, for a faster product in bfloat16 whatever the
    recipe's dtype: a stack would validate with other outputs than it trains with.
    """
    module: Any
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
