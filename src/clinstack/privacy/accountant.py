"""What private training costs: epsilon of a number of steps, and the noise that a given epsilon takes.

A step draws each patient with the chance q, alone (a Poisson sample), bounds what each brings by ``clip``, and adds
Gaussian noise of the standard deviation ``noise_multiplier * clip``: the Poisson-subsampled Gaussian mechanism. Steps
are composed by their privacy loss random variables (PRV; Gopi, Lee and Wutschitz 2021, "Numerical Composition of
Differential Privacy"), whose upper bound is reported, and beside it by Rényi divergences (RDP; Mironov, Talwar and
Zhang 2019, "Rényi Differential Privacy of the Sampled Gaussian Mechanism"), which hold too and are never tighter. Both
are Opacus' implementations (extra ``private``). Neighbours are data with one patient added or removed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from clinstack.errors import ClinstackError, InputError

EPSILON_ERROR = 0.01
"""Largest error of the PRV accountant's epsilon; it is in the bound that is reported."""
_DELTA_ERROR = 1e-3
"""Its share of delta."""
_PRECISION = 5e-3
"""Relative, of a noise multiplier that is searched for."""
_COARSE = 0.1
"""Of the one that the search begins with."""
_LEAST_NOISE, _MOST_NOISE = 0.1, 1e5


@dataclass(frozen=True)
class Mechanism:
    """Steps of the Poisson-subsampled Gaussian mechanism.

    Parameters
    ----------
    sampling_rate : float
        Chance of each patient to be in a step, above 0 and at most 1.
    noise_multiplier : float
        Standard deviation of the noise in units of the clipping norm.
    steps : int
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int


@dataclass(frozen=True)
class Cost:
    """An upper bound of epsilon at a delta.

    Parameters
    ----------
    epsilon : float
        The smaller of the two bounds; both hold.
    epsilon_rdp : float
        That of Rényi divergences, to compare.
    accountant : {"prv", "rdp"}
        Whose bound ``epsilon`` is.
    """

    epsilon: float
    epsilon_rdp: float
    accountant: str


def usual_delta(patients: int) -> float:
    """Return patients ** -1.1: well below one in the number of patients, as a release of one of them whole would be."""
    return math.exp(-1.1 * math.log(patients)) if patients > 1 else 0.5


def cost(mechanisms: Sequence[Mechanism], delta: float) -> Cost:
    """Return what steps cost together, also of several trainings on the same patients one after another.

    Raises
    ------
    InputError
        If Opacus is not installed.
    ClinstackError
        If neither bound is finite, or if the PRV bound is above that of RDP by more than its own error.
    """
    by_rdp = _epsilon(mechanisms, delta, "rdp")
    try:
        by_prv = _epsilon(mechanisms, delta, "prv")
    except (ValueError, RuntimeError, OverflowError, MemoryError, IndexError):
        by_prv = math.inf  # so little noise that its grid has no end; the other bound holds
    if not math.isfinite(by_prv) and not math.isfinite(by_rdp):
        raise ClinstackError(
            "privacy: no bound of epsilon is finite with so little noise; raise privacy.noise_multiplier."
        )
    # Around 0 the PRV bound is its error, and not tighter.
    if math.isfinite(by_prv) and by_prv > by_rdp + 2 * EPSILON_ERROR:
        raise ClinstackError(
            f"The accountants disagree (PRV {by_prv:.4f}, RDP {by_rdp:.4f}), which must not be; report it with "
            f"{list(mechanisms)} and delta {delta}."
        )
    return Cost(max(0.0, min(by_prv, by_rdp)), max(0.0, by_rdp), "prv" if by_prv <= by_rdp else "rdp")


def find_noise_multiplier(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Return the least noise multiplier whose steps cost at most ``epsilon``, to half a percent of itself.

    Raises
    ------
    InputError
        If no noise is enough, or Opacus is not installed.
    """

    def is_enough(noise: float, kind: str) -> bool:
        mechanism = Mechanism(sampling_rate, noise, steps)
        spent = cost([mechanism], delta).epsilon if kind == "prv" else _epsilon([mechanism], delta, kind)
        return spent <= epsilon

    # RDP takes a hundredth of the time, and what is enough by its bound is enough.
    high = _least(lambda noise: is_enough(noise, "rdp"), _LEAST_NOISE, _MOST_NOISE, _COARSE)
    if high is None:
        raise InputError(
            f"privacy.epsilon: {epsilon:g} at delta {delta:.3g} is out of reach with {steps:,} steps; raise it, train "
            "fewer steps, or lower privacy.patients_per_step."
        )
    return _least(lambda noise: is_enough(noise, "prv"), high / 2, high, _PRECISION) or high


def _least(is_enough: Callable[[float], bool], low: float, high: float, precision: float) -> float | None:
    """Return the least noise that is enough, to a share of itself; None where even the most is not."""
    if not is_enough(high):
        return None
    if is_enough(low):
        return low
    while high / low > 1 + precision:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _epsilon(mechanisms: Sequence[Mechanism], delta: float, kind: str) -> float:
    accountant = _accountants()[kind]()
    accountant.history = [(item.noise_multiplier, item.sampling_rate, item.steps) for item in mechanisms if item.steps]
    if not accountant.history:
        return 0.0
    options = {"eps_error": EPSILON_ERROR, "delta_error": delta * _DELTA_ERROR} if kind == "prv" else {}
    with warnings.catch_warnings():
        # At a rate of 1 the logarithm of 1 - q is of 0, as it should be; RDP warns where its best order is the last.
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta=delta, **options))


def _accountants() -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from opacus.accountants import PRVAccountant, RDPAccountant  # type: ignore[import-untyped]
    except ImportError:
        raise InputError(
            "privacy: the accountant is Opacus', which is not installed; pip install 'clinstack[private]'."
        ) from None
    return {"prv": PRVAccountant, "rdp": RDPAccountant}
