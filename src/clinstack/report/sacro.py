"""An audit in the format of SACRO-ML's reports, for output checkers whose tools read those (``audit.sacro.json``).

SACRO-ML (AI-SDC, MIT licence; its ``sacroml.metrics`` and ``attack_report_formatter`` were read for this) keeps each
attack under ``attack_experiment_logger.attack_instance_logger``, with the figures of a binary classifier that calls
items members. The names and the formulas here are its own, with two differences, which ``docs/audit.md`` explains: a
rate at a small false positive rate is read off the curve and not interpolated, and where SACRO-ML calls an item a
member from a probability of 0.5 on, an attack here does so above the median of its scores.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clinstack import __version__
from clinstack.evaluate.auroc import ranking_metrics
from clinstack.files import write_json

FILE = "audit.sacro.json"
_RATES = (0.5, 0.2, 0.1, 0.01, 0.001, 0.00001)
"""In per cent, as SACRO-ML names them."""
_SHARES = {"01": 0.1, "02": 0.2, "001": 0.01}
"""Shares of the items with the highest and the lowest scores that are compared."""


def write_sacro(folder: Path, report: Mapping[str, Any], record: Mapping[str, Any]) -> Path:
    """Write an audit as SACRO-ML's report.

    Parameters
    ----------
    folder : Path
        The audit's Run, with the table of the membership attacks.
    report : mapping
        What ``audit.json`` holds.
    record : mapping
        The Run's ``run.json``.
    """
    time = datetime.fromisoformat(record["created"]).strftime("%d/%m/%Y %H:%M:%S")
    name = report["stack"]["fingerprint"]
    result: dict[str, Any] = {
        # At the top for its LogLogROCModule, which looks for them there.
        "log_id": str(uuid.uuid5(uuid.NAMESPACE_OID, name)),
        "metadata": {"attack": "clinstack-audit", "verdict": report["verdict"], "sentence": report["sentence"]},
    }
    for attack, metrics in _instances(folder, report["sections"]["membership"]).items():
        result |= _entry(
            f"clinstack membership {attack}", report, name, time, _membership_figures(report, attack), metrics
        )
    for section in ("canaries", "extraction"):
        if report["sections"][section]["tested"]:
            found = {item["name"]: item["value"] for item in report["findings"] if item["attack"] == section}
            result |= _entry(f"clinstack {section}", report, name, time, found, None)
    write_json(folder / FILE, result)
    return folder / FILE


def _entry(
    attack: str,
    report: Mapping[str, Any],
    name: str,
    time: str,
    figures: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
) -> dict[str, Any]:
    log_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {attack}"))
    stack = report["stack"]
    entry: dict[str, Any] = {
        "log_id": log_id,
        "log_time": time,
        "metadata": {
            "sacroml_version": f"none: written by clinstack {__version__}",
            "attack_name": attack,
            "attack_params": {"output_dir": ".", "max_notes": report["max_notes"], **report["seeds"]},
            "global_metrics": dict(figures),
            "target_model": f"{stack['base']['id']} + {stack['label']}",
            "target_model_params": {adapter["name"]: adapter["method"] for adapter in stack["adapters"]},
            "target_train_params": stack["training"] or {},
        },
    }
    if metrics is not None:
        entry["attack_experiment_logger"] = {"attack_instance_logger": {"instance_0": dict(metrics)}}
    return {f"{attack}_{log_id}": entry}


def _membership_figures(report: Mapping[str, Any], attack: str) -> dict[str, Any]:
    """Return this attack's own figures, whose intervals are over patients, as SACRO-ML's are not."""
    own = report["sections"]["membership"]["attacks"][attack]
    result: dict[str, Any] = {}
    for name in ("auroc", "auroc_joint", "tpr_at_1_percent", "tpr_at_0.1_percent"):
        if isinstance(own.get(name), dict):
            result[name] = own[name]["value"]
            result[f"{name}_interval"] = own[name]["interval"]
    return result


def _instances(folder: Path, section: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return SACRO-ML's figures of each membership attack."""
    if not section["tested"]:
        return {}
    table = pq.read_table(folder / section["table"])
    member = table["member"].to_numpy(zero_copy_only=False).astype(bool)
    return {name: metrics(member, table[f"score_{name}"].to_numpy()) for name in section["attacks"]}


def metrics(member: NDArray[np.bool_], scores: NDArray[np.float64]) -> dict[str, Any]:
    """Return the figures that SACRO-ML's ``get_metrics`` has, by its names.

    Parameters
    ----------
    member : bool array [items]
    scores : float64 array [items]
        Higher is more likely a member; any scale, for only their order counts.
    """
    called = scores > np.median(scores)
    confusion = {
        "tp": int((called & member).sum()),
        "fp": int((called & ~member).sum()),
        "tn": int((~called & ~member).sum()),
        "fn": int((~called & member).sum()),
    }
    result: dict[str, Any] = _confusion_figures(**confusion)
    result["AUC"] = float(ranking_metrics(member, scores, np.ones((1, len(scores))))[0][0])
    result["P_HIGHER_AUC"] = auc_p_value(result["AUC"], int(member.sum()), int((~member).sum()))
    for name, share in _SHARES.items():
        for key, value in zip(("FMAX", "FMIN", "FDIF", "PDIF"), _extremes(member, scores, share), strict=True):
            result[f"{key}{name}"] = value
    false, true, thresholds = roc_points(member, scores)
    for rate in _RATES:
        result[f"TPR@{rate:g}%"] = float(true[false <= rate / 100].max())
    result |= {"fpr": false.tolist(), "tpr": true.tolist(), "roc_thresh": thresholds.tolist()}
    result |= {"n_pos_test_examples": int(member.sum()), "n_neg_test_examples": int((~member).sum())}
    return result


def _confusion_figures(tp: int, fp: int, tn: int, fn: int) -> dict[str, float]:
    def share(part: float, whole: float) -> float:
        return part / whole if whole else 0.0

    result = {
        "TPR": share(tp, tp + fn),
        "FPR": share(fp, fp + tn),
        "FAR": share(fp, fp + tp),
        "TNR": share(tn, tn + fp),
        "PPV": share(tp, tp + fp),
        "NPV": share(tn, tn + fn),
        "FNR": share(fn, tp + fn),
        "ACC": share(tp + tn, tp + tn + fp + fn),
    }
    result["F1score"] = share(2 * result["PPV"] * result["TPR"], result["PPV"] + result["TPR"])
    result["Advantage"] = abs(result["TPR"] - result["FPR"])
    return result


def auc_p_value(area: float, positives: int, negatives: int) -> float:
    """Return the chance of so high an AUC between alike groups, by the normal approximation of Mann and Whitney.

    Items count as independent, as in SACRO-ML: of patients with several notes each it is too small.
    """
    from scipy.special import ndtr

    spread = np.sqrt((positives + negatives + 1) / (12 * positives * negatives))
    return float(ndtr(-(area - 0.5) / spread))


def _extremes(
    member: NDArray[np.bool_], scores: NDArray[np.float64], share: float
) -> tuple[float, float, float, float]:
    """Return the share of members among the highest and the lowest scores, its difference, and minus the log of p."""
    from scipy.special import log_ndtr

    count = int(np.ceil(len(scores) * share))
    order = np.argsort(scores, kind="stable")
    highest, lowest = float(member[order[-count:]].mean()), float(member[order[:count]].mean())
    frequency = float(member.mean())
    spread = np.sqrt(2 * frequency * (1 - frequency) / count)
    log_p = float(log_ndtr(-(highest - lowest) / spread)) if spread else 0.0
    return highest, lowest, highest - lowest, min(-log_p, 115.13)


def roc_points(
    member: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return false and true positive rates at each threshold, and the thresholds, the highest first.

    Of equal scores all are called members or none. The first threshold lets nobody in; as in SACRO-ML's reports it
    stands as 1, for JSON has no infinity.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.flatnonzero(np.append(np.diff(ordered) != 0, True))
    true, false = np.cumsum(member[order])[last], np.cumsum(~member[order])[last]
    return (
        np.append(0.0, false / max(1, int((~member).sum()))),
        np.append(0.0, true / max(1, int(member.sum()))),
        np.append(1.0, ordered[last]),
    )
