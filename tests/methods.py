"""The methods that the tests go through, at the size of `tiny_base`."""

from __future__ import annotations

from typing import Any

from clinstack.recipe import AdapterRecipe

SPECS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 4, "alpha": 8},
    "lora-everywhere": {
        "method": "lora",
        "rank": 3,
        "target_modules": ("embed_tokens", "q_proj", "down_proj"),
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 5},
    },
    "dora": {"method": "dora", "rank": 4, "alpha": 8},
    "rslora": {"method": "rslora", "rank": 4, "alpha": 8},
    "adalora": {"method": "adalora", "rank": 2, "initial_rank": 4, "alpha": 8},
    "adaption_prompt": {"method": "adaption_prompt", "adapter_length": 4, "adapter_layers": 1},
    "prefix": {"method": "prefix", "virtual_tokens": 5},
    "prefix-projected": {"method": "prefix", "virtual_tokens": 5, "projection": True, "encoder_hidden": 12},
    "prompt": {"method": "prompt", "virtual_tokens": 6, "initial_text": "chest pain"},
    "p_tuning": {"method": "p_tuning", "virtual_tokens": 5, "encoder_hidden": 12},
    "p_tuning-lstm": {"method": "p_tuning", "virtual_tokens": 5, "encoder": "lstm", "encoder_hidden": 8},
    "full": {"method": "full"},
}
NAMES = tuple(SPECS)
VIRTUAL = tuple(name for name in NAMES if name.startswith(("prefix", "prompt", "p_tuning")))
WITH_ENCODER = ("prefix-projected", "p_tuning", "p_tuning-lstm")


def new(spec: str, name: str = "clinical", **changes: Any) -> AdapterRecipe:
    """Return the recipe of a new adapter."""
    return AdapterRecipe(name=name, **(SPECS[spec] | changes))
