"""The accountant against published values, against a case with a closed form, and what it finds."""

from __future__ import annotations

import math
import sys
import warnings

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from clinstack.errors import InputError
from clinstack.privacy.accountant import Mechanism, cost, find_noise_multiplier, usual_delta

MNIST = 60_000
PUBLISHED = {
    # Abadi et al. 2016, "Deep Learning with Differential Privacy", section 3.2: 1.26 after 100 epochs at q = 0.01.
    "abadi": (Mechanism(0.01, 4.0, 10_000), 1.26),
    # tensorflow/privacy, tutorials/README.md, its table and "Expected Output": MNIST in batches of 256.
    "tutorial, 60 epochs": (Mechanism(256 / MNIST, 1.12, 60 * MNIST // 256), 2.92),
    "tutorial, 30 epochs": (Mechanism(256 / MNIST, 0.6, 30 * MNIST // 256), 9.74),
    "tutorial, 10 epochs": (Mechanism(256 / MNIST, 1.2, 10 * MNIST // 256), 1.20),
    # Bu et al. 2020, "Deep Learning with Gaussian Differential Privacy", figure 4: the moments accountant at epoch 20.
    "gaussian dp": (Mechanism(256 / MNIST, 1.3, 20 * MNIST // 256), 1.34),
}
DELTA = 1e-5


def epsilon_of_the_moments_accountant(mechanism: Mechanism) -> float:
    """Epsilon as these publications convert it: log moments at whole orders, theorem 2.2 of Abadi et al."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants.analysis.rdp import compute_rdp  # type: ignore[import-untyped]
    orders = [1 + place / 10 for place in range(1, 100)] + list(range(11, 64))
    divergences = compute_rdp(
        q=mechanism.sampling_rate,
        noise_multiplier=mechanism.noise_multiplier,
        steps=mechanism.steps,
        orders=orders,
    )
    return min(
        float(divergence) - math.log(DELTA) / (order - 1) for divergence, order in zip(divergences, orders, strict=True)
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_divergences_give_the_published_epsilon_and_the_tight_bound_is_below_it(name: str) -> None:
    mechanism, published = PUBLISHED[name]
    assert epsilon_of_the_moments_accountant(mechanism) == pytest.approx(published, rel=0.015)
    found = cost([mechanism], DELTA)
    assert found.accountant == "prv"
    # Both conversions are newer than the published one, and tighter.
    assert 0.5 * published < found.epsilon < found.epsilon_rdp < published


@pytest.mark.parametrize(("noise", "steps", "delta"), [(5.0, 10, 1e-3), (20.0, 100, 1e-5), (1.0, 1, 1e-4)])
def test_with_every_patient_in_every_step_it_is_the_gaussian_mechanism(noise: float, steps: int, delta: float) -> None:
    """Balle and Wang 2018, "Improving the Gaussian Mechanism", theorem 8: exact, for composed Gaussians are one."""
    mu = math.sqrt(steps) / noise

    def excess(epsilon: float) -> float:
        return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta)

    exact = brentq(excess, 0, 100)
    found = cost([Mechanism(1.0, noise, steps)], delta)
    assert exact <= found.epsilon <= exact + 0.03
    assert found.epsilon < found.epsilon_rdp


def test_less_noise_more_patients_and_more_steps_cost_more() -> None:
    usual = cost([Mechanism(0.05, 1.0, 100)], 1e-3).epsilon
    assert cost([Mechanism(0.05, 0.8, 100)], 1e-3).epsilon > usual
    assert cost([Mechanism(0.10, 1.0, 100)], 1e-3).epsilon > usual
    assert cost([Mechanism(0.05, 1.0, 200)], 1e-3).epsilon > usual
    assert cost([Mechanism(0.05, 1.0, 100)], 1e-5).epsilon > usual


def test_trainings_compose_to_less_than_their_sum() -> None:
    first, second = Mechanism(0.1, 1.2, 50), Mechanism(0.2, 1.5, 30)
    together = cost([first, second], 1e-3).epsilon
    alone = [cost([one], 1e-3).epsilon for one in (first, second)]
    assert max(alone) < together < sum(alone)
    halves = cost([Mechanism(0.1, 1.2, 20), Mechanism(0.1, 1.2, 30)], 1e-3).epsilon
    assert halves == pytest.approx(cost([first], 1e-3).epsilon, abs=0.02)


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(3.0, 0.05, 20), (1.0, 1.0, 20)])
def test_the_noise_of_an_epsilon_costs_it_and_hardly_less(epsilon: float, rate: float, steps: int) -> None:
    noise = find_noise_multiplier(epsilon, 1e-3, rate, steps)
    assert cost([Mechanism(rate, noise, steps)], 1e-3).epsilon <= epsilon
    assert cost([Mechanism(rate, 0.99 * noise, steps)], 1e-3).epsilon > epsilon


def test_an_epsilon_out_of_reach_is_refused() -> None:
    with pytest.raises(InputError, match=r"privacy\.epsilon: 0\.001 .* out of reach with 100,000 steps"):
        find_noise_multiplier(0.001, 1e-9, 1.0, 100_000)


def test_no_step_costs_nothing_and_little_is_not_negative() -> None:
    assert cost([Mechanism(0.1, 1.0, 0)], 1e-3).epsilon == 0.0
    assert cost([Mechanism(0.001, 50.0, 4)], 1e-2).epsilon == 0.0


def test_the_usual_delta_is_below_one_in_the_patients() -> None:
    for patients in (2, 10, 1_000, 50_000):
        assert 0 < usual_delta(patients) < 1 / patients
    assert usual_delta(1_000) == pytest.approx(1_000**-1.1)


def test_without_opacus_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(InputError, match=r"pip install 'clinstack\[private\]'"):
        cost([Mechanism(0.1, 1.0, 10)], 1e-3)


def test_bounds_hold_over_many_settings() -> None:
    """PRV is at or below RDP, up to its own error."""
    random = np.random.default_rng(0)
    for _ in range(8):
        mechanism = Mechanism(
            float(random.choice([0.001, 0.01, 0.1, 0.5, 1.0])),
            float(10 ** random.uniform(-0.3, 1.5)),
            int(10 ** random.uniform(0, 2.5)),
        )
        found = cost([mechanism], float(10 ** random.uniform(-6, -2)))  # raises where they disagree
        assert 0 <= found.epsilon <= found.epsilon_rdp
