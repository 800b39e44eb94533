"""Adapter methods: from a recipe's entry to a part of the network that a stack can train, save and switch off.

``configs`` turns a recipe's entry into PEFT's configuration, ``place`` puts it into a network; each method has a room.
"""

from clinstack.model.methods.configs import adapter_config, linear_names, method_of

__all__ = ["adapter_config", "linear_names", "method_of"]
