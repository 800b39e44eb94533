"""Macro AUROC and average precision of 1,266 codes on 9,829 notes, and their bootstrap, against scikit-learn.

    python benchmarks/auroc.py            # seven rounds, about three minutes
    python benchmarks/auroc.py --quick    # three rounds, about a minute

The table is invented: as many notes and codes as the test split of the diagnoses task on MIMIC-III, the commonest code
on a third of the notes, half of the codes on fewer than thirty. scikit-learn goes label by label, which is faster than
its ``average="macro"``; resampling with it copies the drawn rows and scores each label again. A thousand resamples of
that take hours, so a few resamples of some labels are timed, and scaled by the labels and resamples left out. All
rounds alternate between the ways; times are CPU seconds of all threads, medians over rounds. clinstack's call gives
AUROC and average precision together, and its bootstrap's time includes drawing the patients.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn
from sklearn.metrics import average_precision_score, roc_auc_score

from clinstack.evaluate.auroc import class_metrics, mean_of_known, micro_auroc
from clinstack.evaluate.bootstrap import draw_patients

NOTES, LABELS, RESAMPLES = 9829, 1266, 1000


def table() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the labels, the scores, both of shape (notes, labels), and the notes' patients."""
    generator = np.random.default_rng(0)
    prevalence = np.clip(0.35 / np.arange(1, LABELS + 1) ** 0.75, 0.0006, 1)
    indicator = generator.random((NOTES, LABELS)) < prevalence
    indicator[0], indicator[1] = True, False
    scores = generator.normal(size=(NOTES, LABELS)) + indicator
    return indicator, scores, [f"p{number:05d}" for number in generator.integers(0, 8000, NOTES)]


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return the CPU seconds, the seconds, and the result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def by_label(score: Callable[..., float], indicator: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Call a scikit-learn metric on each column."""
    return np.array([score(truth, column) for truth, column in zip(indicator.T, scores.T, strict=True)])


def bootstrap(indicator: np.ndarray, scores: np.ndarray, patients: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Draw the patients and compute both figures of each label in each resample."""
    return class_metrics(indicator, scores, draw_patients(patients, RESAMPLES, 0).weights(patients))


def resampled_with_sklearn(
    indicator: np.ndarray, scores: np.ndarray, weights: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Copy the rows that each weighting draws, and compute the AUROC of some labels, shape (resamples, labels)."""
    indicator, scores = indicator[:, labels], scores[:, labels]
    drawn = (np.repeat(np.arange(len(scores)), weight.astype(int)) for weight in weights)
    return np.stack([by_label(roc_auc_score, indicator[rows], scores[rows]) for rows in drawn])


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def agree(ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
    if (difference := float(np.abs(ours - theirs).max())) > 1e-12:
        raise SystemExit(f"{what} differs from scikit-learn's by {difference}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and fewer labels resampled")
    quick = parser.parse_args().quick
    rounds, resamples, sampled = (3, 2, 60) if quick else (7, 4, 120)
    indicator, scores, patients = table()
    unit = np.ones((1, NOTES))
    first = timed(lambda: class_metrics(indicator, scores, unit))[1]
    before = peak_megabytes()
    areas, _ = bootstrap(indicator, scores, patients)
    memory = peak_megabytes() - before
    few = draw_patients(patients, RESAMPLES, 0).weights(patients)[:resamples].copy()
    # Labels that each of these resamples holds: scikit-learn refuses the others.
    held = np.flatnonzero(((few @ indicator) > 0).all(axis=0))
    sample = held[np.linspace(0, len(held) - 1, sampled).astype(int)]
    scale = LABELS / len(sample) * RESAMPLES / resamples
    agree(areas[:resamples, sample], resampled_with_sklearn(indicator, scores, few, sample), "A resample's AUROC")

    ways: dict[str, Callable[[], Any]] = {
        "clinstack, both figures": lambda: class_metrics(indicator, scores, unit),
        "scikit-learn, AUROC": lambda: by_label(roc_auc_score, indicator, scores),
        "scikit-learn, average precision": lambda: by_label(average_precision_score, indicator, scores),
        "clinstack, micro AUROC": lambda: micro_auroc(indicator, scores, unit),
        "scikit-learn, micro AUROC": lambda: roc_auc_score(indicator.ravel(), scores.ravel()),
        "clinstack, bootstrap of both figures": lambda: bootstrap(indicator, scores, patients),
        "scikit-learn, bootstrap of AUROC (scaled)": lambda: resampled_with_sklearn(indicator, scores, few, sample),
    }
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for way, work in ways.items():
            cpu, wall, results[way] = timed(work)
            times = scale if way.endswith("(scaled)") else 1.0
            seconds[way].append((cpu * times, wall * times))
    ours = results["clinstack, both figures"]
    agree(ours[0][0], results["scikit-learn, AUROC"], "AUROC")
    agree(ours[1][0], results["scikit-learn, average precision"], "Average precision")
    agree(results["clinstack, micro AUROC"][0], results["scikit-learn, micro AUROC"], "Micro AUROC")
    agree(mean_of_known(ours[0])[0], results["scikit-learn, AUROC"].mean(), "Macro AUROC")

    def ratio(ours: str, theirs: str) -> float:
        pairs = zip(seconds[ours], seconds[theirs], strict=True)
        return round(statistics.median(their[0] / our[0] for our, their in pairs), 1)

    both, booted = "clinstack, both figures", "clinstack, bootstrap of both figures"
    ratios = {
        "auroc_vs_sklearn": ratio(both, "scikit-learn, AUROC"),
        "average_precision_vs_sklearn": ratio(both, "scikit-learn, average precision"),
        "micro_auroc_vs_sklearn": ratio("clinstack, micro AUROC", "scikit-learn, micro AUROC"),
        "auroc_bootstrap_vs_sklearn": ratio(booted, "scikit-learn, bootstrap of AUROC (scaled)"),
    }
    print(
        f"{NOTES:,} notes, {LABELS:,} labels, {RESAMPLES:,} resamples, {rounds} rounds; {os.cpu_count()} cores, "
        f"{platform.machine()}, scikit-learn {sklearn.__version__}.\n"
        f"Resampling with scikit-learn: {resamples} resamples of {len(sample)} labels, times {scale:,.0f}.\n"
    )
    print("| way | CPU seconds | seconds |\n|---|--:|--:|")
    for way, pairs in seconds.items():
        cpu, wall = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"| {way} | {cpu:,.3f} | {wall:,.3f} |")
    print(f"\nThe first call took {first:.1f} s; the bootstrap needs {memory:,.0f} MB beside the table.")
    print(json.dumps({"benchmark": "auroc", "ratios": ratios}))


if __name__ == "__main__":
    main()
