"""Seeds as a second source of variance: what another training of the same stack would have given."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clinstack.evaluate.auroc import FloatArray
from clinstack.evaluate.bootstrap import estimate, rarer_patients
from clinstack.evaluate.multiple_comparisons import bootstrap_p
from clinstack.evaluate.scored import Scored

AUROC, AUPRC = 0, 1


@dataclass(frozen=True)
class TaskFigures:
    """AUROC and AUPRC of one stack on one task, of each seed.

    Parameters
    ----------
    task : str
    seeds : tuple of int
        Sorted.
    values : array of float, shape (seeds, 2)
        Of the rows as they are.
    resampled : array of float, shape (seeds, 2, resamples)
    drawn_by : int
        Seed of the draws.
    rarer : int, optional
        Binary: patients of the rarer label, for the interval.
    """

    task: str
    seeds: tuple[int, ...]
    values: FloatArray
    resampled: FloatArray
    drawn_by: int
    rarer: int | None = None

    def mean(self, place: int, seeds: tuple[int, ...]) -> tuple[float, FloatArray]:
        """Return the mean over some seeds, as it is and in each resample."""
        rows = [self.seeds.index(number) for number in seeds]
        values, resampled = self.values[rows, place], self.resampled[rows, place]
        if len(rows) == 1:
            return float(values[0]), resampled[0]
        shares = seed_shares(self.task, seeds, resampled.shape[1], self.drawn_by)
        return float(values.mean()), (shares * resampled).sum(axis=0)


@dataclass(frozen=True)
class Figure:
    """A figure of a table: of one stack on one task, or its mean over several."""

    parts: Sequence[TaskFigures]

    def estimate(self, place: int) -> dict[str, object]:
        """Return value, interval, number of seeds, and the standard deviation over them, None with one."""
        rarer = self.parts[0].rarer if len(self.parts) == 1 else None
        mean = _mean_over_tasks([part.mean(place, part.seeds) for part in self.parts])
        figure = estimate(*mean, bounded=True, rarer=rarer)
        seeds = self.parts[0].seeds
        deviation = None
        if len(seeds) > 1 and all(part.seeds == seeds for part in self.parts):
            deviation = float(np.mean([part.values[:, place] for part in self.parts], axis=0).std(ddof=1))
        known = deviation is not None and np.isfinite(deviation)
        return figure | {
            "seeds": min(len(part.seeds) for part in self.parts),
            "seed_deviation": deviation if known else None,
        }


def task_figures(
    by_seed: Mapping[int, Scored], weights: FloatArray, drawn_by: int, patient_ids: Sequence[str]
) -> TaskFigures:
    """Compute the headline figures of each seed of one stack on one task; weights have shape (resamples, rows)."""
    numbers = tuple(sorted(by_seed))
    rows = [by_seed[number] for number in numbers]
    return TaskFigures(
        task=rows[0].task.name,
        seeds=numbers,
        values=np.array([[part[0] for part in table.headline(table.unit_weights)] for table in rows]),
        resampled=np.array([table.headline(weights) for table in rows]),
        drawn_by=drawn_by,
        rarer=rarer_patients(rows[0].indicator, patient_ids)[1] if rows[0].task.kind == "binary" else None,
    )


def seed_shares(task: str, seeds: tuple[int, ...], resamples: int, seed: int) -> FloatArray:
    """Draw as many seeds as there are, with replacement, in each resample, and say what each counts in the mean.

    The mean of n drawn from n varies by (n - 1) / n of what the mean of n new seeds does; with the two to five that one
    can afford that is far too little. The distance of each share from 1 / n is therefore stretched by the root of
    n / (n - 1) (Rao & Wu 1988). The draws depend on task and seeds: two stacks with the same seeds on a task are
    paired, and tasks, whose trainings have nothing to do with each other, are independent.

    Returns
    -------
    array of float, shape (seeds, resamples)
        Each column sums to 1.
    """
    count = len(seeds)
    generator = np.random.default_rng([seed, zlib.crc32(f"{task} {seeds}".encode())])
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples).T
    return np.asarray(1 / count + np.sqrt(count / max(1, count - 1)) * (drawn - 1) / count)


def paired_difference(a: Figure, b: Figure) -> dict[str, object]:
    """Return AUROC of a minus AUROC of b with its interval, p-value and the number of seeds it rests on."""
    ours, theirs, counts = [], [], []
    for one, other in zip(a.parts, b.parts, strict=True):
        common = tuple(sorted(set(one.seeds) & set(other.seeds)))
        ours.append(one.mean(AUROC, common or one.seeds))
        theirs.append(other.mean(AUROC, common or other.seeds))
        counts.append(len(common) or min(len(one.seeds), len(other.seeds)))
    (value, resampled), (base, base_resampled) = _mean_over_tasks(ours), _mean_over_tasks(theirs)
    difference, drawn = value - base, resampled - base_resampled
    return estimate(difference, drawn) | {"seeds": min(counts), "p": bootstrap_p(difference, drawn)}


def _mean_over_tasks(parts: Sequence[tuple[float, FloatArray]]) -> tuple[float, FloatArray]:
    values, resampled = zip(*parts, strict=True)
    return float(np.mean(values)), np.mean(resampled, axis=0)
