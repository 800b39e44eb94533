"""Compiled AUROC and average precision of large tables, for one weighting of the rows or a thousand at once.

`clinstack.evaluate.auroc` calls this for large tables only: importing it imports numba, and a first call compiles.

In each column the positives' distinct scores ("cuts") are sorted; every entry then has a key that says between which
cuts it lies, found by a table of equally wide cells instead of a search. A weighting adds up the weights by key and
walks down the cuts. For many weightings the entries are sorted by key once, and the weights, which count whole rows
in a bootstrap, are added as bytes, `_LANES` weightings at a time, so that a block of them stays in the processor's
cache. Sums of whole numbers are exact and each column is worked out alone: values depend neither on the blocks nor on
the threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from clinstack.evaluate.auroc import BoolArray, FloatArray, IntArray

_LANES = 128  # weightings in a block: 10,000 rows of bytes are then 1.3 MB
_WIDTH = 128  # columns worked on at once: runs of 1 KB in the rows of scores
_CELLS = 16  # cells for each cut: few rows then share a cell with more than one
_FLUSH = 256  # bytes that two bytes can add up: 256 x 255 < 65,536

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
KeyArray = NDArray[np.int32]

unsigned = np.uint64  # an index that cannot be negative: without its check loops become vector instructions


def compiled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile a function at its first call, and keep the machine code where Python keeps its own (``__pycache__``).

    Where neither that folder nor the user's cache folder can be written, each process compiles it anew.
    """
    try:
        kernel = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:
        kernel = numba.njit(nogil=True, error_model="numpy")(function)
    return cast("Callable[Parameters, Result]", kernel)


@dataclass(frozen=True)
class PackedWeights:
    """Weightings of rows in the order in which the kernels read them.

    Parameters
    ----------
    blocks : array of uint8 or float64, shape (blocks, rows * _LANES)
        Bytes where all weights are whole numbers up to 255; the last block is filled up with zeros.
    first : array of float, shape (rows,)
        The first weighting.
    resamples : int
    """

    blocks: NDArray[np.generic]
    first: FloatArray
    resamples: int

    @classmethod
    def pack(cls, weights: NDArray[np.generic]) -> PackedWeights:
        """Pack weightings of shape (resamples, rows)."""
        resamples, rows = weights.shape
        first = np.ascontiguousarray(weights[0], dtype=np.float64)
        if resamples == 1:
            return cls(np.empty((0, 0), dtype=np.uint8), first, resamples)
        blocks: NDArray[np.generic] = np.zeros((-(-resamples // _LANES), rows, _LANES), dtype=np.uint8)
        for block, start in enumerate(range(0, resamples, _LANES)):
            part = weights[start : start + _LANES].T
            with np.errstate(invalid="ignore"):
                blocks[block, :, : part.shape[1]] = part
            if not np.array_equal(blocks[block, :, : part.shape[1]], part):
                blocks = np.zeros(blocks.shape, dtype=np.float64)
                for place, begin in enumerate(range(0, resamples, _LANES)):
                    piece = weights[begin : begin + _LANES].T
                    blocks[place, :, : piece.shape[1]] = piece
                break
        return cls(blocks.reshape(len(blocks), -1), first, resamples)


def rank(
    indicator: BoolArray,
    scores: FloatArray,
    weights: PackedWeights,
    owners: NDArray[np.integer] | None = None,
    threads: int | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Compute AUROC and average precision of each column under each weighting.

    Parameters
    ----------
    indicator : array of bool, shape (entries, columns)
    scores : array of float, shape (entries, columns)
        No NaN; ties exact.
    weights : PackedWeights
    owners : array of int, shape (entries,), optional
        Whose weight an entry has: the row in ``weights``. Without it, entry i is row i.
    threads : int, optional
        Groups of 128 columns worked on side by side; by default as many as there are cores, but eight at most. Values
        are the same for any number.

    Returns
    -------
    auroc, average_precision : arrays of float, shape (resamples, columns)
        NaN where a weighting leaves a column only one of its labels.
    """
    entries, columns = scores.shape
    flat = np.ascontiguousarray(scores, dtype=np.float64).reshape(-1)
    labels = np.ascontiguousarray(indicator, dtype=np.bool_).reshape(-1)
    rows = (np.arange(entries) if owners is None else owners).astype(np.int32)
    cuts, starts, ends = _cuts(flat, columns, np.flatnonzero(labels))
    areas, precisions = np.empty((2, weights.resamples, columns))

    def work(first: int) -> None:
        last = min(first + _WIDTH, columns)
        table = flat, labels, columns, first, last, cuts, starts, ends, rows
        if weights.resamples == 1:
            _rank_once(*table, weights.first, areas, precisions)
        else:
            partial = np.empty(_LANES, dtype=np.uint16 if weights.blocks.dtype == np.uint8 else np.float64)
            _rank_many(*table, weights.blocks, partial, areas, precisions)

    firsts = range(0, columns, _WIDTH)
    threads = min(threads or os.cpu_count() or 1, 8, len(firsts))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, firsts))
    else:
        for first in firsts:
            work(first)
    return areas, precisions


@compiled
def _cuts(scores: FloatArray, columns: int, places: IntArray) -> tuple[FloatArray, IntArray, IntArray]:
    """Sort the positives' distinct scores by column.

    Those of column c are ``cuts[starts[c] : ends[c]]``; the NaN behind them is above all scores.
    """
    starts = np.zeros(columns + 1, np.int64)
    for place in places:
        starts[place % columns + 1] += 1
    for column in range(columns):
        starts[column + 1] += starts[column] + 1
    cuts = np.full(starts[columns], np.nan)
    ends = starts[:columns].copy()
    for place in places:
        column = place % columns
        cuts[ends[column]] = scores[place]
        ends[column] += 1
    for column in range(columns):
        start = starts[column]
        part = cuts[start : ends[column]]
        _sort(part)
        known = 0
        for value in part:
            if known == 0 or value != part[known - 1]:
                part[known] = value
                known += 1
        part[known:] = np.nan
        ends[column] = start + known
    return cuts, starts, ends


@compiled
def _sort(values: FloatArray) -> None:
    """Sort in place (Shell 1959, with Knuth's gaps): as fast here as numba's sort, which takes a second to compile."""
    gap = 1
    while gap < len(values):
        gap = 3 * gap + 1
    while gap > 0:
        for place in range(gap, len(values)):
            value, free = values[place], place
            while free >= gap and values[free - gap] > value:
                values[free] = values[free - gap]
                free -= gap
            values[free] = value
        gap //= 3


@compiled
def _keys(
    scores: FloatArray,
    labels: BoolArray,
    columns: int,
    first: int,
    width: int,
    cuts: FloatArray,
    starts: IntArray,
    ends: IntArray,
) -> KeyArray:
    """Return the key of each entry of columns first to first + width, shape (entries * width,), row by row.

    With cuts counted from 0 for the first of these columns: 3g is a negative below cut g (and above cut g - 1), 3g + 1
    a positive on cut g, 3g + 2 a negative tied with it. Three times a column's end is a negative above its cuts.
    """
    lowest, scale, cells = np.zeros(width), np.zeros(width), np.zeros(width)
    offsets = np.zeros(width + 1, np.int32)
    for column in range(width):
        known = ends[column] - starts[column]
        span = cuts[ends[column] - 1] - cuts[starts[column]] if known else 0.0
        lowest[column] = cuts[starts[column]] if known else 0.0
        cells[column] = max(1, _CELLS * known)
        # An infinite span leaves all in the first cell; so does a NaN below. Then each entry is searched for.
        scale[column] = cells[column] / span if span > 0 else 0.0
        offsets[column + 1] = offsets[column] + np.int64(cells[column]) + 1
    # The first cut that is not below the cell, as -cut - 1 where more than one lies in it.
    table = np.empty(offsets[width], np.int32)
    for column in range(width):
        filled = np.int64(offsets[column])
        for cut in range(starts[column], ends[column]):
            far = (cuts[cut] - lowest[column]) * scale[column]
            far = far if far > 0.0 else 0.0
            far = far if far < cells[column] else cells[column]
            cell = offsets[column] + np.int64(far)
            if filled > cell and table[cell] >= 0:
                table[cell] = -table[cell] - 1
            while filled <= cell:
                table[filled] = cut
                filled += 1
        while filled < offsets[column + 1]:
            table[filled] = ends[column]
            filled += 1

    entries = len(scores) // columns
    keys = np.empty(entries * width, np.int32)
    for entry in range(entries):
        theirs, ours = entry * columns + first, entry * width
        for column in range(width):
            far = (scores[unsigned(theirs + column)] - lowest[unsigned(column)]) * scale[unsigned(column)]
            far = far if far > 0.0 else 0.0
            far = far if far < cells[unsigned(column)] else cells[unsigned(column)]
            keys[unsigned(ours + column)] = np.int32(far) + offsets[unsigned(column)]
        for column in range(width):
            score = scores[unsigned(theirs + column)]
            place = np.int64(table[unsigned(keys[unsigned(ours + column)])])
            if place < 0:
                place = -place - 1
                above = ends[unsigned(column)]
                while place < above:
                    middle = (place + above) >> 1
                    if cuts[unsigned(middle)] < score:
                        place = middle + 1
                    else:
                        above = middle
            value = cuts[unsigned(place)]
            key = 3 * (place + (value < score))
            if value == score:
                key += 2 - np.int64(labels[unsigned(theirs + column)])
            keys[unsigned(ours + column)] = key
    return keys


@compiled
def _rank_once(
    scores: FloatArray,
    labels: BoolArray,
    columns: int,
    first: int,
    last: int,
    cuts: FloatArray,
    starts: IntArray,
    ends: IntArray,
    owners: KeyArray,
    weights: FloatArray,
    areas: FloatArray,
    precisions: FloatArray,
) -> None:
    """Rank columns first to last under one weighting."""
    width = last - first
    here = cuts[starts[first] : starts[last]]
    begins, stops = starts[first:last] - starts[first], ends[first:last] - starts[first]
    keys = _keys(scores, labels, columns, first, width, here, begins, stops)
    sums = np.zeros(3 * len(here))
    for entry in range(len(owners)):
        weight = weights[owners[entry]]
        for column in range(width):
            sums[unsigned(keys[unsigned(entry * width + column)])] += weight
    for column in range(width):
        positive, negative, wrong, taken = 0.0, sums[3 * stops[column]], 0.0, 0.0
        for cut in range(stops[column] - 1, begins[column] - 1, -1):
            weight, tied = sums[3 * cut + 1], sums[3 * cut + 2]
            wrong += weight * (2.0 * negative + tied)
            negative += tied
            positive += weight
            taken += weight * (positive / (positive + negative) if positive > 0.0 else 0.0)
            negative += sums[3 * cut]
        pairs = 2.0 * positive * negative
        areas[0, first + column] = (pairs - wrong) / pairs if pairs > 0.0 else np.nan
        precisions[0, first + column] = taken / positive if pairs > 0.0 else np.nan


@compiled
def _rank_many(
    scores: FloatArray,
    labels: BoolArray,
    columns: int,
    first: int,
    last: int,
    cuts: FloatArray,
    starts: IntArray,
    ends: IntArray,
    owners: KeyArray,
    blocks: NDArray[np.generic],
    partial: NDArray[np.generic],
    areas: FloatArray,
    precisions: FloatArray,
) -> None:
    """Rank columns first to last under many weightings, block by block."""
    width = last - first
    here = cuts[starts[first] : starts[last]]
    begins, stops = starts[first:last] - starts[first], ends[first:last] - starts[first]
    keys = _keys(scores, labels, columns, first, width, here, begins, stops)
    # Sort the entries by key, by counting; of an entry only its row in the weights is needed.
    bounds = np.zeros(3 * len(here) + 1, np.int64)
    for key in keys:
        bounds[key + 1] += 1
    for key in range(3 * len(here)):
        bounds[key + 1] += bounds[key]
    free, rows = bounds.copy(), np.empty(len(keys), np.int32)
    for entry in range(len(owners)):
        for column in range(width):
            key = keys[entry * width + column]
            rows[free[key]] = owners[entry]
            free[key] += 1

    positive, negative, wrong, taken = np.zeros(_LANES), np.zeros(_LANES), np.zeros(_LANES), np.zeros(_LANES)
    weight, tied, between = np.zeros(_LANES), np.zeros(_LANES), np.zeros(_LANES)
    for block in range(len(blocks)):
        weights, begin = blocks[block], block * _LANES
        for column in range(width):
            positive[:], wrong[:], taken[:] = 0.0, 0.0, 0.0
            key = 3 * stops[column]
            _add(weights, rows, bounds[key], bounds[key + 1], partial, negative)
            for cut in range(stops[column] - 1, begins[column] - 1, -1):
                key = 3 * cut
                _add(weights, rows, bounds[key], bounds[key + 1], partial, between)
                _add(weights, rows, bounds[key + 1], bounds[key + 2], partial, weight)
                _add(weights, rows, bounds[key + 2], bounds[key + 3], partial, tied)
                for lane in range(_LANES):
                    wrong[lane] += weight[lane] * (2.0 * negative[lane] + tied[lane])
                    false = negative[lane] + tied[lane]
                    true = positive[lane] + weight[lane]
                    taken[lane] += weight[lane] * (true / (true + false) if true > 0.0 else 0.0)
                    positive[lane] = true
                    negative[lane] = false + between[lane]
            for lane in range(min(_LANES, len(areas) - begin)):
                pairs = 2.0 * positive[lane] * negative[lane]
                areas[begin + lane, first + column] = (pairs - wrong[lane]) / pairs if pairs > 0.0 else np.nan
                precisions[begin + lane, first + column] = taken[lane] / positive[lane] if pairs > 0.0 else np.nan


@compiled
def _add(
    weights: NDArray[np.generic],
    rows: KeyArray,
    start: int,
    stop: int,
    partial: NDArray[np.generic],
    total: FloatArray,
) -> None:
    """Add up the weights of rows start to stop in each lane; four rows a time, and in two bytes as long as they do."""
    for lane in range(_LANES):
        total[unsigned(lane)] = 0.0
    while start < stop:
        end = min(stop, start + _FLUSH)
        for lane in range(_LANES):
            partial[unsigned(lane)] = 0
        while start + 4 <= end:
            one, two = rows[unsigned(start)] * _LANES, rows[unsigned(start + 1)] * _LANES
            three, four = rows[unsigned(start + 2)] * _LANES, rows[unsigned(start + 3)] * _LANES
            for lane in range(_LANES):
                partial[unsigned(lane)] += (
                    weights[unsigned(one + lane)]
                    + weights[unsigned(two + lane)]
                    + weights[unsigned(three + lane)]
                    + weights[unsigned(four + lane)]
                )
            start += 4
        while start < end:
            one = rows[unsigned(start)] * _LANES
            for lane in range(_LANES):
                partial[unsigned(lane)] += weights[unsigned(one + lane)]
            start += 1
        for lane in range(_LANES):
            total[unsigned(lane)] += partial[unsigned(lane)]
