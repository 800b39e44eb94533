"""A base's ``config.json``: what is known of a model before any of its weights is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import AutoConfig, PreTrainedConfig

from clinstack.errors import InputError

if TYPE_CHECKING:
    from clinstack.model.base import Base


def load_config(base: Base) -> PreTrainedConfig:
    """Read a base's configuration.

    Raises
    ------
    InputError
        If transformers does not know the architecture, or the file is damaged.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            base.folder, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"base: {base.name} needs program code that it brings itself; clinstack runs none. "
                "Take a base whose architecture transformers has."
            ) from None
        raise InputError(f"base: {base.name}: {str(error).strip().splitlines()[0]}") from None
    return config


def vocabulary_size(config: PreTrainedConfig) -> int:
    """Return how many rows the base's embedding has: every token's id must be below."""
    return int(config.get_text_config().vocab_size)


def is_quantised(config: PreTrainedConfig) -> bool:
    """Whether the base's files hold quantised weights."""
    return getattr(config, "quantization_config", None) is not None
