"""Preference optimization of a Stack: TRL's losses, the Stack's own forward pass, and a reference that is the Stack.

Direct preference optimization (Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a
Reward Model") compares a policy with a reference. Left to itself TRL takes for the reference what remains of a PEFT
model when its adapters are disabled: all of them, so that a Stack would be pulled away from the bare base instead of
from the Stack as it was. Here the reference's log probabilities are computed once, before the first step, with exactly
the new adapters switched off, and handed to TRL as the columns that it calls ``ref_chosen_logps`` and
``ref_rejected_logps``.

TRL's trainer is the keeper of batches and losses. It never holds the Stack's weights: its constructor would make
trainable tensors of a quantized base bfloat16, patch the network's forward pass, and not know of virtual tokens.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from clinstack.errors import InputError
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from clinstack.recipe.align import AlignRecipe
from clinstack.tokens.batches import pad

IGNORED = -100
_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 26}
"""Logits at once, as in `clinstack.engine.next_token`."""


@dataclass(frozen=True)
class Pair:
    """One prompt's two answers in tokens.

    Parameters
    ----------
    prompt, chosen, rejected : list of int
        The answers with their end token.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def tokens(self) -> int:
        """Tokens of both rows, without filler."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of the longer row."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class PairScores:
    """What a model gives to the answers of pairs: float64 sums in nats, shape [pairs], in the order of the pairs."""

    chosen: Tensor
    rejected: Tensor


def token_log_probabilities(stack: Stack, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
    """Return the log probability of each label given the tokens before it, with gradients where they are enabled.

    Only the labelled positions meet the output layer, a chunk at a time, and a chunk's logits are made again in the
    backward pass: nothing of the vocabulary's size is kept.

    Parameters
    ----------
    input_ids, attention_mask : int64 tensors [rows, tokens]
    labels : int64 tensor [rows, tokens]
        The token itself where it is scored, -100 elsewhere; the first of a row never is.

    Returns
    -------
    float32 tensor [rows, tokens - 1]
        Position ``i`` is that of token ``i + 1``; 0 where nothing is scored.
    """
    hidden = stack.hidden_states(input_ids, attention_mask)[:, :-1]
    targets = labels[:, 1:]
    scored = targets != IGNORED
    output: Any = stack.network.get_output_embeddings()
    cap = getattr(stack.network.config, "final_logit_softcapping", None)
    compute = partial(_log_probabilities, output.weight, getattr(output, "bias", None), cap)
    chosen, wanted = hidden[scored], targets[scored]
    size = max(1, _LOGITS.get(hidden.device.type, _LOGITS["cuda"]) // len(output.weight))
    parts = [
        checkpoint(compute, chosen[at : at + size], wanted[at : at + size], use_reentrant=False)
        for at in range(0, len(wanted), size)
    ]
    result = hidden.new_zeros(targets.shape, dtype=torch.float32)
    return result.masked_scatter(scored, torch.cat(parts)) if parts else result


def _log_probabilities(
    weight: Tensor, bias: Tensor | None, cap: float | None, hidden: Tensor, labels: Tensor
) -> Tensor:
    logits = F.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)).float()
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return -F.cross_entropy(logits, labels, reduction="none")


@dataclass
class _Scored:
    """What TRL reads of a forward pass. Its own figures of logits are not computed: the Run has others."""

    log_probs: Tensor
    entropy: Tensor
    mean_logits: Tensor
    is_top1: Tensor


class Policy(PreTrainedModel):
    """The Stack as TRL sees it: a model without weights of its own, whose forward pass is the Stack's.

    So whatever TRL does to a model (casts, patches, moves, disabled dropout) does not reach the Stack.
    """

    config_class = PreTrainedConfig

    def __init__(self, stack: Stack) -> None:
        super().__init__(PreTrainedConfig())
        self.generation_config = GenerationConfig()
        # Past nn.Module, which would register the network's tensors as this model's.
        object.__setattr__(self, "_stack", stack)

    def get_output_embeddings(self) -> Any:
        """Return the network's output layer."""
        stack: Stack = self.__dict__["_stack"]
        return stack.network.get_output_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        use_cache: bool = False,
        fused_lm_head: bool = True,
    ) -> _Scored:
        """Return log probabilities of the labels as TRL's fused output layer does, shape [rows, tokens - 1]."""
        assert fused_lm_head, "TRL asks for log probabilities, never for logits"
        assert not use_cache, "TRL asks for no cache"
        logs = token_log_probabilities(self.__dict__["_stack"], input_ids, attention_mask, labels)
        unknown = torch.full_like(logs, float("nan")).detach()
        return _Scored(logs, unknown, unknown, torch.zeros_like(logs, dtype=torch.bool))


class _Trainer(DPOTrainer):
    """TRL's trainer for pairs that are tokens already and have their reference's log probabilities."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Leave the rows as they are: the prompt is token for token that of instruction tuning."""
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Leave the columns ``ref_chosen_logps`` and ``ref_rejected_logps`` as they are."""
        return dataset

    def _send_telemetry(self) -> None:
        """Send nothing to anybody."""


class PreferenceLoss:
    """A preference loss of TRL on a Stack.

    Parameters
    ----------
    stack : Stack
        A causal language model.
    recipe : AlignRecipe
        Its ``loss``, ``beta``, ``label_smoothing`` and ``sft_weight``.
    pairs : sequence of Pair
    reference : PairScores
        Of the same pairs.
    folder : Path
        Which TRL is told to write into; it writes nothing.
    """

    def __init__(
        self, stack: Stack, recipe: AlignRecipe, pairs: Sequence[Pair], reference: PairScores, folder: Path
    ) -> None:
        _refuse_other_trl()
        output = stack.network.get_output_embeddings()
        if output is None or not isinstance(getattr(output, "weight", None), Tensor) or hasattr(output, "base_layer"):
            raise InputError(
                "adapters: one of them adapts the base's output layer, which preference losses read as it is; leave "
                "the output layer out of target_modules."
            )
        self._stack = stack
        self._policy = Policy(stack)
        chosen, rejected = reference.chosen.tolist(), reference.rejected.tolist()
        self._rows = [
            {
                "prompt_ids": pair.prompt,
                "chosen_ids": pair.chosen,
                "rejected_ids": pair.rejected,
                "ref_chosen_logps": chosen[place],
                "ref_rejected_logps": rejected[place],
            }
            for place, pair in enumerate(pairs)
        ]
        with _quietly():
            self._trainer = _Trainer(
                model=self._policy,
                args=_config(recipe, folder, stack.device),
                # It looks at the first row; the batches are chosen by the Run's seed, and made by its collator.
                train_dataset=datasets.Dataset.from_list(self._rows[:1]),
                processing_class=stack.tokenizer,
            )
        del self._policy.forward  # TRL has put its fused output layer there, which computes the prompt's logits too

    def __call__(self, batch: Sequence[int]) -> Tensor:
        """Return the mean loss of pairs by their numbers, a scalar with gradients where they are enabled."""
        inputs = self._trainer.data_collator([self._rows[place] for place in batch])
        inputs = {name: tensor.to(self._stack.device) for name, tensor in inputs.items()}
        loss: Tensor = self._trainer.compute_loss(self._policy, inputs)  # type: ignore[no-untyped-call]
        self._trainer._metrics["train"].clear()  # it keeps figures of every batch until somebody logs them
        return loss


def pair_scores(stack: Stack, pairs: Sequence[Pair], batch_size: int, advance: Any = None) -> PairScores:
    """Return the log probabilities of the answers of pairs, summed over their tokens, without gradients.

    Parameters
    ----------
    stack : Stack
        As it is now; in evaluation mode, or without dropout.
    batch_size : int
        Pairs at once; the longest first, so that memory runs out at once or never.
    advance : callable, optional
        Called with the tokens of each batch.
    """
    chosen = torch.zeros(len(pairs), dtype=torch.float64)
    rejected = torch.zeros(len(pairs), dtype=torch.float64)
    order = sorted(range(len(pairs)), key=lambda place: (-pairs[place].longest, place))
    for at in range(0, len(order), batch_size):
        places = order[at : at + batch_size]
        input_ids, mask, labels = (tensor.to(stack.device) for tensor in pair_rows(stack, [pairs[i] for i in places]))
        with torch.no_grad():
            logs = token_log_probabilities(stack, input_ids, mask, labels).double().sum(1).cpu()
        chosen[places], rejected[places] = logs.chunk(2)
        if advance is not None:
            advance(sum(pairs[place].tokens for place in places))
    return PairScores(chosen, rejected)


def pair_rows(stack: Stack, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Return input ids, mask and labels of pairs, int64 [2 * pairs, tokens]: first all chosen, then all rejected."""
    rows = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    input_ids, mask = pad(
        [np.asarray([*prompt, *answer]) for prompt, answer in rows], int(stack.tokenizer.pad_token_id)
    )
    labels = torch.full_like(input_ids, IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return input_ids, mask, labels


@contextmanager
def as_reference(stack: Stack, adapters: Sequence[AdapterRecipe]) -> Iterator[None]:
    """Let the stack compute as it was before it was aligned, for a while: without the adapters that begin here.

    Those that are continued must hold their first weights, as they do before the first step. A base that is trained
    whole does too, so it is not read again.
    """
    new = [adapter.name for adapter in adapters if adapter.path is None and adapter.method != "full"]
    with ExitStack() as contexts:
        if new:  # without names, `switched_off` would take all of them
            contexts.enter_context(stack.switched_off(*new))
        yield


def _config(recipe: AlignRecipe, folder: Path, device: torch.device) -> DPOConfig:
    losses: list[str] = [recipe.loss]
    weights = [1.0]
    if recipe.sft_weight:
        losses, weights = [*losses, "sft"], [*weights, recipe.sft_weight]
    return DPOConfig(
        output_dir=str(folder),
        loss_type=losses,
        loss_weights=weights,
        beta=recipe.beta,
        label_smoothing=recipe.label_smoothing,
        precompute_ref_log_probs=True,
        max_length=None,  # pairs fit already, and a cut would take the end token
        disable_dropout=False,  # it would not reach the Stack; `AlignObjective` sees to it
        bf16=False,
        report_to="none",
        push_to_hub=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        seed=recipe.training.seed,
    )


def _refuse_other_trl() -> None:
    """Refuse a TRL whose trainer has not the parts that `_Trainer` replaces.

    Raises
    ------
    InputError
        With the version that was found.
    """
    parts = ("_prepare_dataset", "_precompute_ref_logps", "_send_telemetry", "compute_loss")
    missing = [name for name in parts if not hasattr(DPOTrainer, name)]
    if missing:
        raise InputError(
            f"TRL {importlib.metadata.version('trl')} has another DPOTrainer (without {missing[0]}) than 1.16, which "
            "clinstack is made for; run pip install 'trl==1.16.*'."
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep TRL's bars off the terminal, and what it says of its own defaults, which no user can change."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()
