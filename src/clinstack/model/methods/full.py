"""Full fine-tuning: the base's own weights train, in float32, and are saved as a model in transformers' format."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from clinstack.errors import InputError
from clinstack.model.base import Base, load_network
from clinstack.model.families import is_heads
from clinstack.model.methods.names import adapted_attentions, is_adapters, plain_name
from clinstack.model.methods.placed import Placed
from clinstack.model.pooling import HeadInput

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")


class Full(Placed):
    """The base's weights as an adapter: the first of its stack.

    Attributes
    ----------
    base : Base
        Whose weights they were; read again when the adapter is switched off.
    """

    def __init__(
        self,
        name: str,
        trainable: bool,
        network: PreTrainedModel,
        base: Base,
        classes: int | None,
        reads: HeadInput,
    ) -> None:
        super().__init__(name, "full", trainable, network)
        self.base = base
        self._classes = classes
        self._reads = reads

    def owns(self, parameter: str) -> bool:
        """Whether the network's parameter of that name is this adapter's."""
        is_head = self._classes is not None and is_heads(parameter)
        return not is_head and not is_adapters(parameter)

    def config(self) -> None:
        """PEFT has no such method."""

    def load(self, weights: dict[str, Tensor]) -> None:
        """Put a model's weights in; an output layer may lack, or be there, where the model was a classifier."""
        own = self._own()
        output = self._output_key()
        for key in sorted(own.keys() - weights.keys() - {output}):
            raise InputError(f"adapter {self.name}: its files do not fit the base (they lack {key}).")
        for key in sorted(weights.keys() - own.keys() - {"lm_head.weight", output}):
            raise InputError(f"adapter {self.name}: its files do not fit the base (at {key}).")
        with torch.no_grad():
            for key, tensor in own.items():
                if key not in weights:
                    continue
                if tensor.shape != weights[key].shape:
                    raise InputError(
                        f"adapter {self.name}: its files do not fit the base (size mismatch at {key}: "
                        f"{tuple(weights[key].shape)}, the base has {tuple(tensor.shape)})."
                    )
                tensor.copy_(weights[key])

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights under the names that transformers gives them in files; tied ones once."""
        return {key: tensor.detach() for key, tensor in self._own().items()}

    def complaint(self) -> str | None:
        """The base's weights are in every forward pass."""
        return None

    def places(self) -> list[str]:
        """Return the names of the network's large parts."""
        return [name for name, module in self.network.named_children() if any(True for _ in module.parameters())]

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Compute with the base's weights as they were, read again from its folder, for a while."""
        original = load_network(self.base, classes=self._classes, dtype="float32", seed=0, reads=self._reads)
        before = original.state_dict()
        own = self._own()
        kept = {key: tensor.data for key, tensor in own.items()}
        try:
            for key, tensor in own.items():
                tensor.data = before[key].to(tensor.device)
            yield
        finally:
            for key, tensor in own.items():
                tensor.data = kept[key]

    def save(self, folder: Path, tensors: dict[str, Tensor], head: Mapping[str, Tensor], padding: int | None) -> None:
        """Write the model as transformers opens it, with the base's tokenizer; with ``head``, as a classifier."""
        contents = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
        config: Any = copy.deepcopy(self.network.config)
        config.use_cache = True
        config.architectures = [type(self.network).__name__]
        config.dtype = "float32"
        if head:
            contents |= {name: tensor.detach().cpu().contiguous() for name, tensor in head.items()}
            config.pad_token_id = padding
        save_torch_state_dict(contents, folder, metadata={"format": "pt"}, safe_serialization=True)
        config.save_pretrained(folder)
        for pattern in (*_TOKENIZER_FILES, "generation_config.json"):
            for file in sorted(self.base.folder.glob(pattern)):
                shutil.copyfile(file, folder / file.name)

    def _own(self) -> dict[str, Tensor]:
        """Return the network's own tensors by their plain names, those that share memory once."""
        own: dict[str, Tensor] = {}
        seen = set()
        attentions = adapted_attentions(self.network)
        for name, tensor in self.network.state_dict(keep_vars=True).items():
            if self.owns(name) and id(tensor) not in seen:
                seen.add(id(tensor))
                own[plain_name(name, attentions)] = tensor
        return own

    def _output_key(self) -> str | None:
        output = self.network.get_output_embeddings()
        for name, module in self.network.named_modules():
            if output is not None and module is output:
                return f"{name}.weight"
        return None
