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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from clinstack.engine.log_probabilities import PairScores, token_log_probabilities
from clinstack.errors import InputError
from clinstack.model.stack import Stack
from clinstack.recipe.align import AlignRecipe
from clinstack.tokens.preferences import Pair

try:
    import datasets  # type: ignore[import-untyped]
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
except ImportError:
    raise InputError(
        "align computes its losses with TRL, which is not installed: pip install 'clinstack[align]'."
    ) from None


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

    def __call__(self, batch: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """Return what TRL makes of pairs, given by their numbers.

        Returns
        -------
        loss : Tensor
            The mean of the pairs, a scalar with gradients where they are enabled.
        rewards : dict
            ``reward_accuracy``, the share of pairs whose chosen answer has the higher implicit reward, and
            ``reward_margin``, the mean difference of the two rewards.
        """
        inputs = self._trainer.data_collator([self._rows[place] for place in batch])
        inputs = {name: tensor.to(self._stack.device) for name, tensor in inputs.items()}
        loss: Tensor = self._trainer.compute_loss(self._policy, inputs)  # type: ignore[no-untyped-call]
        figures = self._trainer._metrics["train"]
        rewards = {
            "reward_accuracy": float(figures["rewards/accuracies"][-1]),
            "reward_margin": float(figures["rewards/margins"][-1]),
        }
        figures.clear()  # it keeps those of every batch until somebody logs them
        return loss, rewards


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
