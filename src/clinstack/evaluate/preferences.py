"""What preference optimization changed, on pairs of held-out patients, with intervals over patients.

Log probabilities are sums over an answer's tokens, its end token among them. The implicit reward of an answer is beta
times the log of its probability over the reference's (Rafailov et al. 2023, section 4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from clinstack.evaluate.auroc import FloatArray
from clinstack.evaluate.bootstrap import Estimate, draw_patients, estimate
from clinstack.recipe import EvaluationRecipe


def preference_metrics(table: pa.Table, beta: float, settings: EvaluationRecipe) -> dict[str, Any]:
    """Measure the pairs of one split.

    Parameters
    ----------
    table : pyarrow.Table
        Columns ``patient_id``; ``chosen, rejected`` and ``reference_chosen, reference_rejected``, log probabilities in
        nats; ``chosen_tokens, rejected_tokens``; ``divergence``, in nats summed over the chosen answer's tokens, or
        null.
    beta : float
        Of the loss.

    Returns
    -------
    dict
        Counts of ``pairs`` and ``patients``, and as ``{"value", "interval"}``:

        - ``prefers_chosen``: ``before``, ``after`` and their ``difference``: the share of pairs whose chosen answer is
          the more probable one; ``prefers_chosen_per_token`` compares mean log probabilities of a token instead, so
          that the shorter answer has no head start;
        - ``reward_accuracy``: the share whose chosen answer has the higher implicit reward (a tie is half a pair, so
          it is 0.5 before training), and ``reward_margin``, the mean difference of the two rewards;
        - ``log_ratio_per_token`` of ``chosen`` and ``rejected``: how much more probable training made a token of
          them, in nats. Both below 0 is common: the rejected ones fall faster;
        - ``kl_per_token``: the Kullback-Leibler divergence of the trained stack from the reference, at the tokens of
          the chosen answers; unknown where there is no divergence.
    """
    patient_ids = [str(item) for item in table["patient_id"].to_pylist()]
    draws = draw_patients(patient_ids, settings.resamples, settings.seed)
    weights = np.concatenate([np.ones((1, len(patient_ids))), draws.weights(patient_ids)])
    names = ("chosen", "rejected", "reference_chosen", "reference_rejected", "chosen_tokens", "rejected_tokens")
    chosen, rejected, old_chosen, old_rejected, chosen_tokens, rejected_tokens = (
        np.asarray(table[name].to_pylist(), dtype=np.float64) for name in names
    )

    def mean(values: FloatArray, by: FloatArray | None = None, *, share: bool = False) -> Estimate:
        """Return the mean of a pair, or the sum over the sum of ``by``."""
        below = np.ones(len(values)) if by is None else by
        with np.errstate(invalid="ignore", divide="ignore"):
            found = (weights @ values) / (weights @ below)
        return estimate(float(found[0]), found[1:], bounded=share)

    def preferences(before: FloatArray, after: FloatArray) -> dict[str, Estimate]:
        return {
            "before": mean(_first_is_larger(before), share=True),
            "after": mean(_first_is_larger(after), share=True),
            "difference": mean(_first_is_larger(after) - _first_is_larger(before)),
        }

    margins = (chosen - old_chosen) - (rejected - old_rejected)
    divergence = np.asarray(
        [np.nan if value is None else value for value in table["divergence"].to_pylist()], dtype=np.float64
    )
    return {
        "pairs": len(patient_ids),
        "patients": len(draws.patients),
        "prefers_chosen": preferences(old_chosen - old_rejected, chosen - rejected),
        "prefers_chosen_per_token": preferences(
            old_chosen / chosen_tokens - old_rejected / rejected_tokens,
            chosen / chosen_tokens - rejected / rejected_tokens,
        ),
        "reward_accuracy": mean(_first_is_larger(margins), share=True),
        "reward_margin": mean(beta * margins),
        "log_ratio_per_token": {
            "chosen": mean(chosen - old_chosen, chosen_tokens),
            "rejected": mean(rejected - old_rejected, rejected_tokens),
        },
        "kl_per_token": mean(divergence, chosen_tokens),
        "bootstrap": {"unit": "patient", "resamples": settings.resamples, "seed": settings.seed, "level": 0.95},
    }


def _first_is_larger(differences: FloatArray) -> FloatArray:
    """Return 1 where a difference is above 0, 0 below, and a half for a tie."""
    return np.asarray((np.sign(differences) + 1) / 2)
