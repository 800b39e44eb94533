"""Perplexity on held-out notes, token by token, and what pretraining changed, with intervals over patients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clinstack.evaluate.auroc import FloatArray
from clinstack.evaluate.bootstrap import draw_patients, estimate
from clinstack.evaluate.predictions import LOSS_COLUMNS, read_split

_SUMS = ("tokens", "characters", "base_nll", "nll")


def perplexity_metrics(
    losses: Path | pa.Table, resamples: int = 1000, seed: int = 0, split: str = "test"
) -> dict[str, Any]:
    """Compute perplexity and bits per character of the base and of the adapted stack on the same notes.

    Perplexity is ``exp(sum of nll / sum of tokens)``: every token counts the same, whichever batch it was in. Bits
    per character, ``sum of nll / ln 2 / sum of characters``, do not depend on the tokenizer and so compare bases.

    Parameters
    ----------
    losses : Path or pyarrow.Table
        Columns as in ``losses.parquet``: ``patient_id, note_type, split, tokens, characters, base_nll, nll``.
    resamples, seed : int
        Of the bootstrap over patients; all figures share the same draws.
    split : {"test", "validation", "train"}

    Returns
    -------
    dict
        ``base`` and ``adapted`` with ``perplexity`` and ``bits_per_character``, and ``ratio``, the base's perplexity
        over the adapted one's, each ``{"value", "interval"}``; counts of ``notes``, ``patients``, ``tokens`` and
        ``characters``; ``by_note_type`` with the same keys for each note type.

    Raises
    ------
    InputError
        The table is missing, lacks a column, or has no row of the split.
    """
    table = read_split(losses, LOSS_COLUMNS, split)
    patient_ids = np.asarray(table["patient_id"].to_pylist(), dtype=np.str_)
    draws = draw_patients(patient_ids.tolist(), resamples, seed)
    place = np.searchsorted(draws.patients, patient_ids)
    sums = np.stack([np.asarray(table[column].to_pylist(), dtype=np.float64) for column in _SUMS], axis=1)
    types = np.asarray([str(value) for value in table["note_type"].to_pylist()], dtype=np.str_)

    def figures(chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
        by_patient = np.zeros((len(draws.patients), len(_SUMS)))
        np.add.at(by_patient, place[chosen], sums[chosen])
        return {
            "notes": int(chosen.sum()),
            "patients": len(np.unique(place[chosen])),
            "tokens": int(by_patient[:, 0].sum()),
            "characters": int(by_patient[:, 1].sum()),
        } | _estimates(by_patient.sum(axis=0, keepdims=True), draws.counts.T @ by_patient)

    return {
        "split": split,
        **figures(np.ones(len(types), dtype=bool)),
        "by_note_type": {name: figures(types == name) for name in sorted(set(types.tolist()))},
        "bootstrap": {"unit": "patient", "resamples": resamples, "seed": seed, "level": 0.95},
    }


def batch_perplexity(nll: FloatArray, tokens: FloatArray) -> dict[str, float]:
    """Compute the perplexity of the published code, which depends on the batches, beside that of the same tokens.

    Parameters
    ----------
    nll : float64 array [batches]
        Summed loss of each batch.
    tokens : float64 array [batches]
        Predicted tokens of each batch.

    Returns
    -------
    dict
        ``perplexity``, the exponential of the mean of the batches' mean losses (Gema et al. 2023, ``trainer.py``): a
        token of a batch of short notes counts more than one of long notes. ``by_token``, with every token the same.
    """
    return {
        "perplexity": math.exp(float((nll / tokens).mean())),
        "by_token": math.exp(float(nll.sum() / tokens.sum())),
    }


def _estimates(whole: FloatArray, resampled: FloatArray) -> dict[str, Any]:
    """Turn sums of tokens, characters and losses, one row each, into estimates."""
    value, draws = _figures(whole), _figures(resampled)
    joined = {name: estimate(float(value[name][0]), draws[name]) for name in value}
    return {
        "base": {"perplexity": joined["base"], "bits_per_character": joined["base_bits"]},
        "adapted": {"perplexity": joined["adapted"], "bits_per_character": joined["adapted_bits"]},
        "ratio": joined["ratio"],
    }


def _figures(sums: FloatArray) -> dict[str, FloatArray]:
    tokens, characters, base_nll, nll = sums.T
    # A resample without any note of the type has no perplexity: NaN, left out of the interval.
    with np.errstate(invalid="ignore", divide="ignore"):
        tokens = np.where(tokens > 0, tokens, np.nan)
        characters = np.where(characters > 0, characters, np.nan)
        return {
            "base": np.exp(base_nll / tokens),
            "adapted": np.exp(nll / tokens),
            "ratio": np.exp((base_nll - nll) / tokens),
            "base_bits": base_nll / math.log(2) / characters,
            "adapted_bits": nll / math.log(2) / characters,
        }
