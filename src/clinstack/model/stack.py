"""The Stack: a base, adapters in order (each frozen or trainable), and a head. The heart of clinstack.

::

    logits ── head (float32) ── pooled last real token
                                        │
    layer:   W x  +  clinical: B1 A1 x  +  task: B2 A2 x      every adapter is active in every forward pass
             ▲            ▲                     ▲
           frozen   frozen or trainable      trainable

The libraries break such a stack in many silent ways (an adapter that is loaded but not active, a frozen one that comes
back trainable). `clinstack.model.checks` asserts after building that none of them happened.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from clinstack import __version__
from clinstack.errors import InputError
from clinstack.files import replacing_directory, write_json, write_text
from clinstack.model.base import EMBEDDED, HEAD_MODULE, Base, backbone, find_base, load_network, load_tokenizer
from clinstack.model.card import adapter_card
from clinstack.model.lineage import (
    CONFIG_FILE,
    HEAD_KEY,
    WEIGHTS_FILE,
    AdapterSource,
    StackedOn,
    find_adapter_folder,
    read_adapter,
    read_stack_record,
    refuse_wrong_base,
    stack_folder,
    tensors_hash,
)
from clinstack.model.methods import adapter_config
from clinstack.recipe import AdapterRecipe
from clinstack.tasks import Task

HEAD_FOLDER = "head"
HEAD_FILE = "head.safetensors"


@dataclass(frozen=True)
class Adapter:
    """An adapter's place in a stack."""

    name: str
    method: str
    trainable: bool
    verified: bool
    """False when it came without a record of the base it was trained on."""
    carries_head: bool
    """Whether it was made for the stack's task; its folder then holds the head, so that plain PEFT opens it whole."""


class Stack:
    """A base with its adapters and head, ready to train or to predict. Build it with `Stack.build` or `Stack.load`.

    Attributes
    ----------
    base : Base
    network : PreTrainedModel
        The transformers model, with the adapters' layers injected.
    adapters : tuple of Adapter
        From the base upwards.
    task : Task or None
        None for a causal language model.
    tokenizer : PreTrainedTokenizerBase
    max_tokens : int
        Length that the stage trained with: the context of a language model, the longest note of a classifier.
    suffix : str
        What a classifier reads after every note.
    keep : str
        Which part of a longer note a classifier reads: its "beginning", its "end", or its most important "sections".
    """

    def __init__(
        self,
        base: Base,
        network: PreTrainedModel,
        peft_model: PeftModel | None,
        adapters: Sequence[Adapter],
        task: Task | None,
        tokenizer: PreTrainedTokenizerBase,
        dtype: str,
        max_tokens: int = 512,
    ) -> None:
        self.base = base
        self.network = network
        self.adapters = tuple(adapters)
        self.task = task
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.max_tokens = max_tokens
        self.suffix = ""
        self.keep = "beginning"
        self._peft_model = peft_model
        self.settle()

    # ------------------------------------------------------------------ building

    @classmethod
    def build(
        cls,
        base: str = EMBEDDED,
        adapters: Sequence[AdapterRecipe] = (),
        task: Task | None = None,
        *,
        seed: int = 0,
        dtype: str = "float32",
    ) -> Stack:
        """Build a stack from a spec and assert its invariants.

        Parameters
        ----------
        base : str
            ``embedded``, a local folder, or a hub id.
        adapters : sequence of AdapterRecipe
            From the base upwards; each new, or read from a path.
        task : Task, optional
            Its head is put on top; without it the stack is a causal language model.
        seed : int
            Of the new weights.
        dtype : str
            Of the base's weights.

        Raises
        ------
        InputError
            If an adapter cannot be read, or was trained on another base or other adapters.
        StackError
            If an invariant does not hold.
        """
        found = find_base(base)
        sources: list[AdapterSource | None] = []
        beneath: list[tuple[str, str]] = []
        for index, adapter in enumerate(adapters):
            if adapter.path is None:
                sources.append(None)
                beneath.append((adapter.name, "new"))
                continue
            key = f"adapters.{index} ({adapter.name})"
            source = read_adapter(find_adapter_folder(Path(adapter.path), key), key)
            refuse_wrong_base(source, key, found, beneath)
            sources.append(source)
            beneath.append((adapter.name, source.fingerprint))
        return cls._assemble(found, adapters, sources, task, seed=seed, dtype=dtype)

    @classmethod
    def _assemble(
        cls,
        base: Base,
        adapters: Sequence[AdapterRecipe],
        sources: Sequence[AdapterSource | None],
        task: Task | None,
        *,
        seed: int,
        dtype: str,
        head: Tensor | None = None,
        head_in: str | None = None,
    ) -> Stack:
        from clinstack.model.checks import check_stack  # it takes a Stack

        classes = len(task.classes) if task else None
        network = load_network(base, classes=classes, dtype=dtype, seed=_derived_seed(seed, HEAD_MODULE))
        _refuse_names_of_modules(network, adapters)
        peft_model: PeftModel | None = None
        placed: list[Adapter] = []
        for adapter, source in zip(adapters, sources, strict=True):
            config = source.config if source else adapter_config(adapter, network)
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                # PEFT asks transformers for an attribute by a name that is being retired.
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
                torch.manual_seed(_derived_seed(seed, adapter.name))
                try:
                    if peft_model is None:
                        peft_model = PeftModel(network, config, adapter_name=adapter.name)
                    else:
                        peft_model.add_adapter(adapter.name, config)
                except ValueError as error:
                    detail = str(error).splitlines()[0]
                    raise InputError(f"adapter {adapter.name}: it does not fit the base: {detail}") from None
            if source:
                _load_weights(peft_model, adapter.name, source.weights)
            verified = source is None or source.verified
            is_top = adapter is adapters[-1]
            carries_head = task is not None and is_top and (head_in == adapter.name if head_in else source is None)
            placed.append(Adapter(adapter.name, adapter.method, adapter.is_trainable, verified, carries_head))
            if task is not None and isinstance(getattr(network, HEAD_MODULE), LoraLayer):
                raise InputError(
                    f"adapters: {adapter.name!r} adapts the head {HEAD_MODULE!r} too; a stack trains it whole."
                )
        if head is not None:
            _copy_head(network, head)
        stack = cls(base, network, peft_model, placed, task, load_tokenizer(base), dtype)
        check_stack(stack)
        return stack

    def settle(self) -> None:
        """Make every adapter active and exactly the tensors of the spec trainable.

        PEFT changes both as a side effect of loading, adding, activating and disabling adapters; so this sets them
        tensor by tensor after any such call, and nothing else in clinstack touches them.
        """
        if self._peft_model is not None:
            tuner: Any = self._peft_model.base_model
            tuner.set_adapter([adapter.name for adapter in self.adapters])
        wanted = set(self._trainable_names())
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in wanted)
        frozen = [adapter.name for adapter in self.adapters if not adapter.trainable]
        for layer in self.lora_layers().values():
            for name in frozen:
                if name in layer.lora_dropout:
                    # Dropout would still fire in a frozen adapter and make its part of the output random.
                    layer.lora_dropout[name] = nn.Identity()

    def _trainable_names(self) -> list[str]:
        """Names of the tensors that the spec calls trainable."""
        trainable = {adapter.name for adapter in self.adapters if adapter.trainable}
        return [
            name
            for name, _ in self.network.named_parameters()
            if (self.task is not None and name == f"{HEAD_MODULE}.weight")
            or (".lora_" in name and name.split(".lora_", 1)[1].split(".")[1] in trainable)
        ]

    # ------------------------------------------------------------------ looking inside

    @property
    def label(self) -> str:
        """The adapters' names, or ``base``."""
        return "+".join(adapter.name for adapter in self.adapters) or "base"

    @property
    def device(self) -> torch.device:
        """Where the base's weights are."""
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> Stack:
        """Move all tensors to a device."""
        self.network.to(device)  # type: ignore[arg-type]  # transformers' stub wants its own type
        return self

    def lora_layers(self) -> dict[str, LoraLayer]:
        """Return the layers that carry adapters, by their name in the network."""
        return {name: module for name, module in self.network.named_modules() if isinstance(module, LoraLayer)}

    @property
    def head(self) -> nn.Linear:
        """The classifier. Only a stack with a task has one."""
        if self.task is None:
            raise InputError("This stack is a causal language model; it has no classifier head.")
        return cast(nn.Linear, getattr(self.network, HEAD_MODULE))

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return exactly the tensors that the spec calls trainable, by name."""
        wanted = set(self._trainable_names())
        return {name: parameter for name, parameter in self.network.named_parameters() if name in wanted}

    def frozen_tensors(self) -> dict[str, Tensor]:
        """Return every other parameter and every buffer, by name."""
        wanted = set(self._trainable_names())
        return {name: tensor for name, tensor in self.network.state_dict().items() if name not in wanted}

    def summary(self) -> dict[str, Any]:
        """Return what ``run.json`` says about the stack."""
        return {
            "base": self.base.name,
            "fingerprint": self.base.fingerprint,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "trainable_parameters": sum(parameter.numel() for parameter in self.trainable_parameters().values()),
            "adapters": [
                {
                    "name": adapter.name,
                    "trainable": adapter.trainable,
                    "weights": tensors_hash(self.adapter_tensors(adapter.name)),
                    "lineage_verified": adapter.verified,
                }
                for adapter in self.adapters
            ],
        }

    @property
    def backbone_is_frozen(self) -> bool:
        """Whether only the head trains, so that pooled features never change."""
        return not any(adapter.trainable for adapter in self.adapters)

    def adapter_tensors(self, name: str) -> dict[str, Tensor]:
        """Return an adapter's weights under the names that PEFT gives them in files."""
        tensors = get_peft_model_state_dict(self._peft_model, adapter_name=name, save_embedding_layers=False)
        return {key: tensor.detach() for key, tensor in tensors.items()}

    def stacked_on(self, name: str) -> StackedOn:
        """Return what lies beneath an adapter now."""
        beneath: list[tuple[str, str]] = []
        for adapter in self.adapters:
            if adapter.name == name:
                break
            beneath.append((adapter.name, tensors_hash(self.adapter_tensors(adapter.name))))
        return StackedOn(self.base.fingerprint, tuple(beneath))

    @contextmanager
    def switched_off(self, *names: str) -> Iterator[None]:
        """Take adapters out of the forward pass for a while; without names, all of them.

        By their scaling and not by PEFT's ``disable_adapter``, which gives frozen adapters back trainable.
        """
        chosen = names or tuple(adapter.name for adapter in self.adapters)
        before = [(layer, dict(layer.scaling)) for layer in self.lora_layers().values()]
        try:
            for layer, scaling in before:
                for name in chosen:
                    if name in scaling:
                        layer.scaling[name] = 0.0
            yield
        finally:
            for layer, scaling in before:
                layer.scaling.update(scaling)

    # ------------------------------------------------------------------ computing

    def train(self) -> None:
        """Switch to training mode (dropout of trainable adapters on)."""
        self.network.train()

    def eval(self) -> None:
        """Switch to evaluation mode."""
        self.network.eval()

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Return the last layer's output, shape [rows, tokens, hidden].

        Without a mask and with position ids that begin anew at 0 for each document, a row holds several documents
        that do not see each other (transformers builds the block mask from the position ids; it does so only without
        a cache and without a mask).
        """
        output: Any = backbone(self.network)(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        return cast(Tensor, output.last_hidden_state)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the hidden state of each row's last real token in float32, shape [rows, hidden].

        By the mask and not by the padding token's id: right whatever the padding side, and when padding and end token
        are the same.
        """
        position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
        hidden = self.hidden_states(input_ids, attention_mask, position_ids)
        width = attention_mask.shape[1]
        last = width - 1 - attention_mask.flip(1).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return class logits in float32, shape [rows, classes]."""
        return cast(Tensor, self.head(self.pooled(input_ids, attention_mask)))

    # ------------------------------------------------------------------ training

    def begin_training(self, total_steps: int) -> None:
        """Tell the adapters' methods how many optimizer steps there will be."""

    def after_step(self, step: int) -> None:
        """Let the methods work after an optimizer step (numbered from 1), while its gradients are still there."""

    def penalty(self) -> Tensor | None:
        """Return what the methods add to a step's mean loss."""
        return None

    def method_state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep beside the trainable tensors."""
        return {}

    def load_method_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore `method_state`."""

    # ------------------------------------------------------------------ saving and loading

    def save(self, folder: Path) -> None:
        """Write ``stack.json`` and one plain PEFT folder for each adapter; safetensors only, in one step.

        The head lies in the top adapter's folder when that was made for this task (plain PEFT then opens it as a
        classifier), else in ``head/``.
        """
        from clinstack.model.checks import probe_output

        head_in = next((adapter.name for adapter in self.adapters if adapter.carries_head), HEAD_FOLDER)
        entries = []
        with replacing_directory(folder) as temporary:
            for adapter in self.adapters:
                stacked_on = self.stacked_on(adapter.name)
                tensors = self.adapter_tensors(adapter.name)
                entries.append(
                    {
                        "name": adapter.name,
                        "method": adapter.method,
                        "trainable": adapter.trainable,
                        "folder": adapter.name,
                        "weights": tensors_hash(tensors),
                        "parent": stacked_on.parent,
                        "stacked_on": stacked_on.to_dict(),
                        "verified": adapter.verified,
                    }
                )
                self._save_adapter(temporary / adapter.name, adapter, tensors)
            if self.task is not None and head_in == HEAD_FOLDER:
                (temporary / HEAD_FOLDER).mkdir()
                save_file({HEAD_KEY: self.head.weight.detach().contiguous()}, temporary / HEAD_FOLDER / HEAD_FILE)
            write_json(
                temporary / "stack.json",
                {
                    "format_version": 1,
                    "clinstack": __version__,
                    "base": {"id": self.base.name, "fingerprint": self.base.fingerprint, "dtype": self.dtype},
                    "adapters": entries,
                    "head": {"folder": head_in, "weights": tensors_hash({HEAD_KEY: self.head.weight})}
                    if self.task
                    else None,
                    "task": self.task.to_dict() if self.task else None,
                    "max_tokens": self.max_tokens,
                    "suffix": self.suffix,
                    "keep": self.keep,
                    "probe": probe_output(self).tolist(),
                },
            )

    def _save_adapter(self, folder: Path, adapter: Adapter, tensors: dict[str, Tensor]) -> None:
        assert self._peft_model is not None
        folder.mkdir()
        values = self._peft_model.peft_config[adapter.name].to_dict()
        values["target_modules"] = sorted(values["target_modules"])
        values["base_model_name_or_path"] = self.base.name
        values["inference_mode"] = True
        contents = {key: tensor.contiguous() for key, tensor in tensors.items()}
        if adapter.carries_head:
            values["task_type"] = "SEQ_CLS"
            values["modules_to_save"] = [HEAD_MODULE]
            contents[HEAD_KEY] = self.head.weight.detach().contiguous()
        write_json(folder / CONFIG_FILE, _plain(values))
        save_file(contents, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        beneath = [other.name for other in self.adapters[: self.adapters.index(adapter)]]
        write_text(
            folder / "README.md",
            adapter_card(adapter.name, beneath, self.base, self.task if adapter.carries_head else None),
        )

    @classmethod
    def load(cls, folder: Path, base: str | None = None, *, dtype: str | None = None) -> Stack:
        """Load a saved stack, verify every fingerprint, and compare its output with the one recorded when saved.

        Parameters
        ----------
        folder : Path
            A Stack, or a finished Run.
        base : str, optional
            Where the base is on this machine; as recorded when not given.
        dtype : str, optional
            Of the base; as recorded when not given.

        Raises
        ------
        InputError
            If the base, an adapter or the head is not the recorded one; the message says which.
        """
        from clinstack.model.checks import check_probe

        folder = stack_folder(folder)
        record = read_stack_record(folder)
        found = find_base(base or record["base"]["id"])
        if found.fingerprint != record["base"]["fingerprint"]:
            raise InputError(
                f"{folder}: the base {found.name} is not the one that this stack was built on "
                f"(fingerprint {found.fingerprint[:19]}, recorded {record['base']['fingerprint'][:19]})."
            )
        adapters: list[AdapterRecipe] = []
        sources: list[AdapterSource] = []
        beneath: list[tuple[str, str]] = []
        for item in record["adapters"]:
            key = f"{folder}, adapter {item['name']}"
            source = read_adapter(folder / item["folder"], key)
            refuse_wrong_base(source, key, found, beneath)
            beneath.append((item["name"], source.fingerprint))
            path = str(folder / item["folder"])
            adapters.append(AdapterRecipe(name=item["name"], path=path, trainable=item["trainable"]))
            sources.append(source)
        task = Task.from_dict(record["task"], str(folder / "stack.json")) if record["task"] else None
        head = _read_head(folder, record["head"]) if record["head"] else None
        head_in = record["head"]["folder"] if record["head"] else None
        chosen = dtype or record["base"]["dtype"]
        stack = cls._assemble(found, adapters, sources, task, seed=0, dtype=chosen, head=head, head_in=head_in)
        stack.max_tokens, stack.suffix, stack.keep = record["max_tokens"], record["suffix"], record["keep"]
        if chosen == record["base"]["dtype"]:
            check_probe(stack, torch.tensor(record["probe"]))
        stack.eval()
        return stack


def _refuse_names_of_modules(network: PreTrainedModel, adapters: Sequence[AdapterRecipe]) -> None:
    """Refuse an adapter called like a part of the base: PEFT finds an adapter's tensors by its name between dots."""
    taken = {part for name, _ in network.named_parameters() for part in name.split(".")}
    for adapter in adapters:
        if adapter.name in taken:
            raise InputError(
                f"adapters.{adapter.name}: the base has a part called {adapter.name!r} too, and PEFT could not tell "
                "them apart; use another name, such as 'clinical' or 'task'."
            )


def _load_weights(peft_model: PeftModel, name: str, weights: dict[str, Tensor]) -> None:
    try:
        result: Any = set_peft_model_state_dict(peft_model, weights, adapter_name=name)
    except RuntimeError as error:
        detail = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"adapter {name}: its file does not fit the base ({detail})") from None
    missing = [key for key in result.missing_keys if f".{name}." in key]
    if missing or result.unexpected_keys:
        key = (missing or result.unexpected_keys)[0]
        raise InputError(f"adapter {name}: its file does not fit the base (at {key}).")


def _read_head(folder: Path, record: dict[str, Any]) -> Tensor:
    file = WEIGHTS_FILE if record["folder"] != HEAD_FOLDER else HEAD_FILE
    try:
        head = load_file(folder / record["folder"] / file)[HEAD_KEY]
    except (OSError, KeyError, SafetensorError):
        raise InputError(f"{folder}: the head in {record['folder']}/{file} is missing or damaged.") from None
    if tensors_hash({HEAD_KEY: head}) != record["weights"]:
        raise InputError(f"{folder}: the head is not the one that stack.json records.")
    return head


def _copy_head(network: PreTrainedModel, head: Tensor) -> None:
    layer = cast(nn.Linear, getattr(network, HEAD_MODULE))
    if layer.weight.shape != head.shape:
        raise InputError(f"The head has {head.shape[0]} outputs; the task has {layer.weight.shape[0]} classes.")
    with torch.no_grad():
        layer.weight.copy_(head)


def _derived_seed(seed: int, name: str) -> int:
    """A seed of its own for each part, so that adding one part does not change another's first weights."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:6], "big")


def _plain(value: Any) -> Any:
    """Turn the sets and enumerations of PEFT's configurations into what JSON holds."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.value if hasattr(value, "value") else value
