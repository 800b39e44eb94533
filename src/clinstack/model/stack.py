"""The Stack: a base, adapters in order (each frozen or trainable), and a head. The heart of clinstack.

::

    logits ── head (float32) ── what the head reads: a decoder's last real token, an encoder's first or the mean
                                        │
    layer:   W x  +  clinical: B1 A1 x  +  task: B2 A2 x      every adapter is active in every forward pass
             ▲            ▲                     ▲
           frozen   frozen or trainable      trainable

An adapter may be of any method of `clinstack.model.methods`; virtual tokens stand before the text, an adaption prompt
beside the attention. The libraries break such a stack in many silent ways (an adapter that is loaded but not active, a
frozen one that comes back trainable). `clinstack.model.checks` asserts after building that none of them happened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from clinstack.errors import InputError
from clinstack.model.attention import attends_by_document, boundaries_mask
from clinstack.model.base import EMBEDDED, find_base, load_tokenizer
from clinstack.model.building import Parts, assemble, count_numbers, read_sources
from clinstack.model.data_lineage import DataSource, data_of
from clinstack.model.families import backbone, encoder_of, head_of, head_parameters
from clinstack.model.lineage import StackedOn, read_stack_record, stack_folder, tensors_hash
from clinstack.model.methods.low_rank import LowRank, activate, lora_layers
from clinstack.model.methods.placed import Placed
from clinstack.model.methods.virtual_tokens import VirtualTokens
from clinstack.model.pooling import HeadInput, pool
from clinstack.model.privacy_lineage import TrainingPrivacy, privacy_of
from clinstack.model.reading import Reading
from clinstack.model.saving import load_parts, read_calibration, read_prompt, save_stack
from clinstack.model.training_hooks import TrainingHooks
from clinstack.recipe import AdapterRecipe
from clinstack.tasks import Task
from clinstack.tokens.prompts import Prompt


class Stack(TrainingHooks):
    """A base with its adapters and head, ready to train or to predict. Build it with `Stack.build` or `Stack.load`.

    Attributes
    ----------
    base : Base
    network : PreTrainedModel
        The transformers model, with the adapters injected.
    adapters : tuple of Adapter
        From the base upwards.
    task : Task or None
        None for a causal language model.
    tokenizer : PreTrainedTokenizerBase
    dtype : str
        The recipe's. A fully fine-tuned base is float32 all the same; to compute in it is then a matter of autocast.
    quantize : str
        "none", or the bits of the base's weights.
    max_tokens : int
        The context that a language model was trained with.
    reading : Reading
        What a classifier reads of a note.
    reads : HeadInput
        What of the base the head reads, as the recipe says it; `pooling` and `layer` are what that comes to.
    calibration : dict or None
        How scores become probabilities, fitted on validation notes.
    prompt : Prompt or None
        What a language model that follows instructions was trained to read.
    data : tuple of DataSource or None
        What was trained on; None where nothing is recorded.
    privacy : tuple of TrainingPrivacy or None
        Which trainings were differentially private; None where nothing is recorded.
    """

    def __init__(self, parts: Parts, max_tokens: int = 512) -> None:
        self.base = parts.base
        self.network = parts.network
        self.adapters = parts.adapters
        self.task = parts.task
        self.tokenizer = load_tokenizer(parts.base)
        self.dtype = parts.dtype
        self.quantize = parts.quantize
        self.max_tokens = max_tokens
        self.reading = Reading()
        self.reads = parts.reads
        self.calibration: dict[str, Any] | None = None
        self.prompt: Prompt | None = None
        self.data: tuple[DataSource, ...] | None = None
        self.privacy: tuple[TrainingPrivacy, ...] | None = None
        self._placed = parts.placed
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
        quantize: str = "none",
        pooling: str = "auto",
        layer: int | None = None,
    ) -> Stack:
        """Build a stack from a spec and assert its invariants.

        Parameters
        ----------
        base : str
            ``embedded``, ``embedded-encoder``, a local folder, or a hub id.
        adapters : sequence of AdapterRecipe
            From the base upwards; each new, or read from a path.
        task : Task, optional
            Its head is put on top; without it the stack is a causal language model.
        seed : int
            Of the new weights.
        dtype : str
            Of the base's weights.
        quantize : {"none", "8bit", "4bit"}
            Of the base's linear layers.
        pooling : {"auto", "last", "first", "mean"}
            What the head reads of a text's tokens; by the convention of the base's family when ``auto``.
        layer : int, optional
            The base's layer, from 1, whose output the head reads; those above are neither loaded nor computed.

        Raises
        ------
        InputError
            If an adapter cannot be read, does not fit the base, or was trained on another base or other adapters.
        StackError
            If an invariant does not hold.
        """
        found = find_base(base)
        sources = read_sources(found, adapters)
        parts = assemble(
            found,
            adapters,
            sources,
            task,
            seed=seed,
            dtype=dtype,
            quantize=quantize,
            reads=HeadInput(pooling, layer),
        )
        return cls._checked(parts)

    @classmethod
    def load(cls, folder: Path, base: str | None = None, *, dtype: str | None = None, quantize: str = "") -> Stack:
        """Load a saved stack, verify every fingerprint, and compare its output with the one recorded when saved.

        Parameters
        ----------
        folder : Path
            A Stack, or a finished Run.
        base : str, optional
            Where the base is on this machine; as recorded when not given.
        dtype, quantize : str, optional
            Of the base; as recorded when not given.

        Raises
        ------
        InputError
            If the base, an adapter or the head is not the recorded one; the message says which.
        """
        from clinstack.model.checks import check_probe

        folder = stack_folder(folder)
        record = read_stack_record(folder)
        parts = load_parts(folder, record, base, dtype, quantize)
        stack = cls._checked(parts)
        stack.max_tokens, stack.reading = record["max_tokens"], Reading.from_dict(record)
        stack.calibration, stack.prompt = read_calibration(folder), read_prompt(folder, record)
        stack.data, stack.privacy = data_of(record), privacy_of(record)
        if (parts.dtype, parts.quantize) == (record["base"]["dtype"], record["base"].get("quantize", "none")):
            check_probe(stack, torch.tensor(record["probe"]))
        stack.eval()
        return stack

    @classmethod
    def _checked(cls, parts: Parts) -> Stack:
        from clinstack.model.checks import check_stack  # it takes a Stack

        stack = cls(parts)
        check_stack(stack)
        return stack

    def settle(self) -> None:
        """Make every adapter active and exactly the tensors of the spec trainable.

        PEFT changes both as a side effect of loading, adding, activating and disabling adapters; so this sets them
        tensor by tensor after any such call, and nothing else in clinstack touches them.
        """
        activate(self.network, [adapter for adapter in self._placed if isinstance(adapter, LowRank)])
        wanted = set(self._trainable_names())
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad != (name in wanted):
                parameter.requires_grad_(name in wanted)

    def _trainable_names(self) -> list[str]:
        """Names of the tensors that the spec calls trainable."""
        names = [name for adapter in self._placed if adapter.trainable for name in adapter.parameter_names()]
        return [*names, *self.head_parameters()] if self.task is not None else names

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

    def placed(self, name: str) -> Placed:
        """Return an adapter as it lies in the network."""
        return next(adapter for adapter in self._placed if adapter.name == name)

    def lora_layers(self) -> dict[str, LoraLayer]:
        """Return the layers that carry low-rank adapters, by their name in the network."""
        return lora_layers(self.network)

    @property
    def _peft_model(self) -> PeftModel | None:
        """What PEFT knows of LoRA, DoRA and rsLoRA here; None without one."""
        found = (adapter for adapter in self._placed if isinstance(adapter, LowRank) and adapter.method != "adalora")
        return next((adapter.peft_model for adapter in found), None)

    @property
    def virtual_tokens(self) -> VirtualTokens | None:
        """What stands before each text; None without a prefix, a prompt or P-tuning."""
        return next((adapter for adapter in self._placed if isinstance(adapter, VirtualTokens)), None)

    @property
    def can_pack(self) -> bool:
        """Whether a row may hold several documents: not with virtual tokens, which only the first would follow."""
        return self.virtual_tokens is None

    @property
    def head(self) -> nn.Linear:
        """The classifier's final layer. Only a stack with a task has one.

        Where the family drops out features before it, that is part of its call in training.
        """
        if self.task is None:
            raise InputError("This stack is a causal language model; it has no classifier head.")
        return cast(nn.Linear, head_of(self.network))

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """Return all tensors of the head by name: weights, biases, and those of a new layer before the final one."""
        return head_parameters(self.network) if self.task is not None else {}

    @property
    def is_encoder(self) -> bool:
        """Whether every token sees the whole text."""
        return encoder_of(self.network.config) is not None

    @property
    def pooling(self) -> str:
        """What the head reads of a text's tokens: "last", "first" or "mean"."""
        return self.reads.kind(self.network.config)

    @property
    def layer(self) -> int | None:
        """The base's layer whose output is read; None where all are computed."""
        return self.reads.layer

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return exactly the tensors that the spec calls trainable, by name."""
        wanted = set(self._trainable_names())
        return {name: parameter for name, parameter in self.network.named_parameters() if name in wanted}

    def frozen_tensors(self) -> dict[str, Tensor]:
        """Return every other parameter and every buffer, by name."""
        trained = {id(parameter) for parameter in self.trainable_parameters().values()}
        tensors = self.network.state_dict(keep_vars=True).items()
        # By identity: an output layer may share its weights with the embeddings.
        return {name: tensor.detach() for name, tensor in tensors if id(tensor) not in trained}

    def summary(self) -> dict[str, Any]:
        """Return what ``run.json`` says about the stack."""
        return {
            "base": self.base.name,
            "fingerprint": self.base.fingerprint,
            **({"quantize": self.quantize} if self.quantize != "none" else {}),
            "parameters": count_numbers(self.network.parameters()),
            "trainable_parameters": count_numbers(self.trainable_parameters().values()),
            "adapters": [
                {
                    "name": adapter.name,
                    "method": adapter.method,
                    "trainable": adapter.trainable,
                    "weights": tensors_hash(self.adapter_tensors(adapter.name)),
                    "lineage_verified": adapter.verified,
                }
                for adapter in self.adapters
            ],
        }

    @property
    def backbone_is_frozen(self) -> bool:
        """Whether only the head's final layer trains, so that what it reads never changes."""
        in_head = {id(parameter) for parameter in self.head.parameters()} if self.task is not None else set()
        return all(id(parameter) in in_head for parameter in self.trainable_parameters().values())

    def adapter_tensors(self, name: str) -> dict[str, Tensor]:
        """Return an adapter's weights under the names that PEFT (or transformers) gives them in files."""
        placed = self.placed(name)
        return {**placed.tensors(), **placed.idle}

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

        Exactly: the rest computes what it would without them, and nobody's gradients are switched.
        """
        chosen = names or tuple(adapter.name for adapter in self.adapters)
        with ExitStack() as contexts:
            for adapter in self._placed:
                if adapter.name in chosen:
                    contexts.enter_context(adapter.switched_off())
            yield

    # ------------------------------------------------------------------ computing

    def train(self) -> None:
        """Switch to training mode: dropout of trainable adapters, of the head, and of a body in which something trains.

        A body that is read as it is gives the same features in each epoch, computed once or anew.
        """
        self.network.train()
        if self.task is not None and not any(adapter.trainable for adapter in self.adapters):
            backbone(self.network).eval()

    def eval(self) -> None:
        """Switch to evaluation mode."""
        self.network.eval()

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the last layer's output of the given tokens, without virtual ones: shape [rows, tokens, hidden].

        With a mask of shape [rows, tokens] rows may be padded on either side. Without one and with position ids that
        begin anew at 0 for each document, a row holds several documents that do not see each other, where `can_pack`
        says so: by `clinstack.model.attention`, or by the block mask that transformers builds from the position ids
        (it does so only without a cache and without a mask).
        """
        if attention_mask is not None and attention_mask.dim() == 2 and position_ids is None:
            position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
        virtual = self.virtual_tokens
        if virtual is not None and not virtual.is_off:
            return virtual.hidden_states(input_ids, attention_mask, position_ids)
        if attention_mask is None and position_ids is not None and attends_by_document(self.network):
            attention_mask = boundaries_mask(position_ids)
        options: dict[str, Any] = {"use_cache": False}
        family = encoder_of(self.network.config)
        if family is not None:
            options = {}
            if family.offset_positions and position_ids is not None:
                position_ids = position_ids + self.network.config.pad_token_id + 1
        output: Any = backbone(self.network)(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **options
        )
        return cast(Tensor, output.last_hidden_state)

    def features_from(self, pooled: Tensor) -> Tensor:
        """Return what the head reads of pooled hidden states, float32, shape [rows, features].

        What the family has between the two: BERT's pooler, ModernBERT's head block, nothing in decoders.
        """
        family = encoder_of(self.network.config)
        return pooled if family is None else family.between(self.network, pooled).float()

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return what the head reads in float32, shape [rows, features].

        By the mask and not by the padding token's id: right whatever the padding side, and when padding and end token
        are the same.
        """
        return self.features_from(pool(self.hidden_states(input_ids, attention_mask), attention_mask, self.pooling))

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return class logits in float32, shape [rows, classes]."""
        return cast(Tensor, self.head(self.pooled(input_ids, attention_mask)))

    # ------------------------------------------------------------------ training

    def use_gradient_checkpointing(self) -> None:
        """Keep each layer's input only, and compute the rest again in the backward pass.

        Raises
        ------
        InputError
            If a method or the base cannot.
        """
        virtual = self.virtual_tokens
        if virtual is not None and virtual.method == "prefix":
            raise InputError(
                f"training.gradient_checkpointing: the prefix of {virtual.name!r} lies in the cache of keys and "
                "values, which layers that are computed again would lose; use false, or p_tuning or prompt."
            )
        try:
            # The other way (reentrant) gives no gradient to what lies below the first input that needs one.
            self.network.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise InputError(f"training.gradient_checkpointing: {str(error).splitlines()[0]}") from None

    # ------------------------------------------------------------------ saving

    def save(self, folder: Path) -> None:
        """Write ``stack.json`` and a folder for each adapter; safetensors only, in one step."""
        save_stack(self, folder)
