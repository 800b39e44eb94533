"""A classifier's figures as the published code of Gema et al. (2023) computed them, for comparison with its tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from clinstack.evaluate.auroc import class_metrics, mean_of_known, softmax
from clinstack.evaluate.scored import Scored


def published_figures(table: Scored) -> dict[str, Any]:
    """Compute the published code's figures; point estimates, as it gave no intervals.

    Parameters
    ----------
    table : Scored

    Returns
    -------
    dict
        Multilabel: ``auroc_of_softmax`` and ``auprc_of_softmax`` rank the notes of a class by a softmax over all
        classes, though these do not exclude each other, which is not the order of the logits; ``f1_macro_at_half`` and
        ``f1_micro_at_half`` call a class where its sigmoid is 0.5 or more. The means are plain ones over the classes
        that have both labels: ``classes_counted``, without ``classes_skipped``.
        Multiclass: ``auroc_ovo_macro`` (one class against one) and ``auprc_ovr_macro`` (one against the rest).
        Binary: ``auroc`` and ``auprc`` of the softmax.
    """
    from sklearn import metrics

    one = table.unit_weights
    if table.task.kind == "binary":
        areas, precisions = class_metrics(table.indicator[:, [1]], table.scores[:, [1]], one)
        return {"auroc": _known(areas[0, 0]), "auprc": _known(precisions[0, 0])}
    columns = table.scored_columns
    counts = {"classes_counted": len(columns), "classes_skipped": len(table.task.classes) - len(columns)}
    if table.task.kind == "multiclass":
        area = table.headline(one)[0][0]
        _, precisions = class_metrics(table.indicator[:, columns], table.scores[:, columns], one)
        return {"auroc_ovo_macro": _known(area), "auprc_ovr_macro": _known(mean_of_known(precisions)[0]), **counts}
    indicator, called = table.indicator[:, columns], table.logits[:, columns] >= 0
    areas, precisions = class_metrics(indicator, softmax(table.logits)[:, columns], one)
    f1 = [metrics.f1_score(indicator[:, place], called[:, place], zero_division=0) for place in range(len(columns))]
    return {
        "auroc_of_softmax": _known(mean_of_known(areas)[0]),
        "auprc_of_softmax": _known(mean_of_known(precisions)[0]),
        "f1_macro_at_half": float(np.mean(f1)) if f1 else None,
        "f1_micro_at_half": float(
            metrics.f1_score(table.indicator, table.logits >= 0, average="micro", zero_division=0)
        ),
        **counts,
    }


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
