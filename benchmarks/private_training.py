"""What private training costs: the gradients of single patients against those of a plain step.

    python benchmarks/private_training.py --quick     # about a minute
    python benchmarks/private_training.py

The embedded base with a new LoRA reads rows of invented tokens, 8 patients with two rows each. All ways read the same
rows in passes of eight and take turns in one process on one thread; a ratio is the median over turns of the ratios of
CPU time within a turn. That all private ways give the same clipped sum is checked first.

- ``plain``: loss and summed gradient, as every training here.
- ``together``: gradients of single patients, several patients in a pass (`clinstack.engine.patient_gradients`).
- ``one by one``: a pass for each patient, as methods other than LoRA need it.
- ``opacus``: the same by Opacus' GradSampleModule, whose gradients of rows are summed up to those of patients.
- ``noise``: drawing the noise of a step, beside any of the private ways.

The last line is one of JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clinstack.engine.losses import causal_loss
from clinstack.engine.patient_gradients import Drawn, PatientGradients, clip_factors
from clinstack.engine.patients import PassShape, PatientItems, rows_by_patient, shape_of_rows
from clinstack.engine.secret import Secret
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from clinstack.tokens.documents import Documents
from clinstack.tokens.layout import lay_out

PATIENTS, ROWS, CONTEXT, IN_A_PASS, CLIP = 8, 2, 256, 8, 1.0
TURNS, QUICK_TURNS = 9, 3
TARGETS = {"query and value": ("q_proj", "v_proj"), "all linear layers": "all-linear"}
TOLERANCE = 1e-4


class Rows:
    """Rows of invented tokens, each full, two for each patient."""

    unit = "tokens"

    def __init__(self, stack: Stack) -> None:
        random = np.random.default_rng(0)
        count = PATIENTS * ROWS
        texts = [random.integers(3, stack.network.config.vocab_size, CONTEXT + 1) for _ in range(count)]
        rows = lay_out(Documents.of(texts), "packed", CONTEXT, 0)
        owners = [f"p{number // ROWS:02d}" for number in range(count)]
        self._stack = stack
        self.rows, self.patients = rows_by_patient(rows, owners)

    def loss(self, items: Sequence[int]) -> tuple[Tensor, float]:
        """Return the summed loss and the predictions."""
        batch = self.rows.collate(items)
        return causal_loss(self._stack, batch), float(batch.predictions)

    def weights(self, items: Sequence[int]) -> list[float]:
        """Return the predictions of each row."""
        return [float(count) for count in self.rows.fills[items]]

    def shape(self, items: Sequence[int]) -> PassShape:
        """Return how rows lie in a pass."""
        return shape_of_rows(self.rows, items)


def plain(stack: Stack, rows: Rows, drawn: Sequence[Drawn]) -> dict[str, Tensor]:
    """Sum the gradients of all rows."""
    parameters = stack.trainable_parameters()
    items = [item for one in drawn for item in one.items]
    for at in range(0, len(items), IN_A_PASS):
        rows.loss(items[at : at + IN_A_PASS])[0].backward()
    found = {name: parameter.grad.clone() for name, parameter in parameters.items() if parameter.grad is not None}
    for parameter in parameters.values():
        parameter.grad = None
    return found


def by_opacus(stack: Stack, rows: Rows, drawn: Sequence[Drawn]) -> dict[str, Tensor]:
    """Sum the clipped gradients of patients, made of those of rows by Opacus."""
    from opacus.grad_sample import GradSampleModule  # type: ignore[import-untyped]

    module = GradSampleModule(stack.network, batch_first=True, loss_reduction="sum")
    parameters: dict[str, Any] = dict(stack.trainable_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for at in range(0, len(drawn), IN_A_PASS // ROWS):
        group = drawn[at : at + IN_A_PASS // ROWS]
        items = [item for one in group for item in one.items]
        owners = torch.tensor([place for place, one in enumerate(group) for _ in one.items])
        rows.loss(items)[0].backward()
        weights = torch.zeros(len(group)).index_add(0, owners, torch.tensor(rows.weights(items)))
        gradients = {}
        for name, parameter in parameters.items():
            each = parameter.grad_sample
            summed = each.new_zeros(len(group), *parameter.shape).index_add(0, owners, each)
            gradients[name] = summed / weights.view(-1, *[1] * parameter.dim())
            parameter.grad = parameter.grad_sample = None
        factors = clip_factors(gradients, CLIP)
        for name, each in gradients.items():
            total[name] += torch.einsum("p,p...->...", factors.to(each), each)
    module.remove_hooks()
    for parameter in parameters.values():
        for attribute in ("grad_sample", "_forward_counter", "allow_grad_accumulation"):
            parameter.__dict__.pop(attribute, None)
    return total


def ways_of(target: Any) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """Return what is compared, for one choice of adapted layers."""
    stack = Stack.build("embedded", [AdapterRecipe(name="clinical", rank=16, alpha=32, target_modules=target)])
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in stack.trainable_parameters().values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    stack.train()
    rows: Any = Rows(stack)
    patients: PatientItems = rows.patients
    drawn = [Drawn(patient, patients[patient].tolist()) for patient in range(len(patients))]
    parameters = stack.trainable_parameters()
    numbers = sum(parameter.numel() for parameter in parameters.values())
    together = PatientGradients(stack, rows, parameters)
    alone = PatientGradients(stack, rows, parameters, together=False)
    secret = Secret(bytes(32))

    def noise() -> dict[str, Tensor]:
        return {"noise": torch.from_numpy(secret.normal("noise", 0, numbers))}

    return {
        "plain": lambda: plain(stack, rows, drawn),
        "together": lambda: together.clipped_sum(drawn, CLIP, IN_A_PASS),
        "one by one": lambda: alone.clipped_sum(drawn, CLIP, IN_A_PASS),
        "opacus": lambda: by_opacus(stack, rows, drawn),
        "noise": noise,
    }


def check_equal(ways: dict[str, Callable[[], dict[str, Tensor]]]) -> None:
    """End the script where two private ways differ."""
    expected = ways["one by one"]()
    size = float(torch.cat([each.flatten() for each in expected.values()]).norm())
    for name in ("together", "opacus"):
        found = ways[name]()
        apart = float(torch.cat([(found[key] - each).flatten() for key, each in expected.items()]).norm())
        if not apart <= TOLERANCE * size:
            raise SystemExit(f"{name} and one by one differ by {apart / size:.2g} of the clipped sum.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TURNS} turns instead of {TURNS}")
    turns = QUICK_TURNS if parser.parse_args().quick else TURNS
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of Opacus, about hooks and its secure mode
    result: dict[str, Any] = {}
    for target, modules in TARGETS.items():
        ways = ways_of(modules)
        check_equal(ways)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, way in ways.items():
                began = time.process_time()
                way()
                seconds[name].append(time.process_time() - began)
        ratios = {
            name: statistics.median(own / base for own, base in zip(each, seconds["plain"], strict=True))
            for name, each in seconds.items()
        }
        tokens = PATIENTS * ROWS * CONTEXT
        print(f"{target}: a plain step of {tokens:,} tokens takes {statistics.median(seconds['plain']):.2f} s of CPU")
        for name, ratio in ratios.items():
            print(f"  {name:<12} {ratio:6.3f} of plain")
        result[target] = {name: round(ratio, 4) for name, ratio in ratios.items()}
    print(json.dumps({"benchmark": "private_training", "turns": turns, "machine": platform.machine(), **result}))


if __name__ == "__main__":
    main()
