"""AUROC and AUPRC of a task: its classes, and their averages."""

from __future__ import annotations

from clinstack.evaluate.auroc import FloatArray, class_metrics, mean_of_known, micro_auroc, one_vs_one_auroc
from clinstack.evaluate.scored import Scored

ByClass = tuple[FloatArray, FloatArray]
"""AUROC and AUPRC, each of shape (resamples, columns)."""


def ranking_columns(table: Scored) -> list[int]:
    """Return the columns that are ranked: of a binary task the positive class, else those with both labels."""
    return [1] if table.task.kind == "binary" else table.scored_columns


def ranking_figures(table: Scored, weights: FloatArray) -> tuple[ByClass, dict[str, FloatArray]]:
    """Compute the figures under each weighting of the rows.

    Parameters
    ----------
    table : Scored
    weights : array of float, shape (resamples, rows)

    Returns
    -------
    by_class : (array, array)
        AUROC and AUPRC of `ranking_columns`, each of shape (resamples, columns).
    averages : dict of str to array of float, shape (resamples,)
        ``auroc`` (binary); ``auroc_ovo``, ``auroc_ovr``, ``auroc_ovr_micro`` and ``auroc_ovr_weighted`` (multiclass);
        ``auroc_macro``, ``auroc_micro`` and ``auroc_weighted`` (multilabel); ``auprc``, the plain mean, and
        ``auprc_weighted``. Weighted means by the positives of a class, in each resample by its own.
    """
    kind, columns = table.task.kind, ranking_columns(table)
    indicator = table.indicator[:, columns]
    scores = table.margin[:, None] if kind == "binary" else table.scores[:, columns]
    areas, precisions = class_metrics(indicator, scores, weights)
    if kind == "binary":
        return (areas, precisions), {"auroc": areas[:, 0], "auprc": precisions[:, 0]}
    support = weights @ indicator
    micro = micro_auroc(indicator, scores, weights)
    area = {"macro": mean_of_known(areas), "micro": micro, "weighted": mean_of_known(areas, support)}
    precision = {"auprc": mean_of_known(precisions), "auprc_weighted": mean_of_known(precisions, support)}
    if kind == "multilabel":
        return (areas, precisions), {f"auroc_{name}": values for name, values in area.items()} | precision
    ovo = one_vs_one_auroc(table.indicator.argmax(axis=1), table.scores, weights)
    ovr = {"auroc_ovr": area["macro"], "auroc_ovr_micro": micro, "auroc_ovr_weighted": area["weighted"]}
    return (areas, precisions), {"auroc_ovo": ovo} | ovr | precision
