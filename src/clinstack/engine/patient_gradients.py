"""The clipped sum of the gradients of single patients: what a private step adds its noise to.

Where only LoRA factors of linear layers and a linear head train, one pass over several patients gives the gradient of
each: a linear layer's is the product of what it read and of the gradient of what it gave, summed over the positions of
that patient (Goodfellow 2015, "Efficient Per-Example Gradient Computations"; Opacus' GradSampleModule does the same)::

    rows of a pass       x [positions, in]        g [positions, out]        gradient of W [out, in]
    patient 0            x0                       g0                        g0' x0
    patient 1            x1                       g1                        g1' x1

Everywhere else (magnitudes of DoRA, AdaLoRA, virtual tokens, adaption prompts, embeddings, whole bases) each patient
has a backward pass alone, which is exact whatever trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from clinstack.engine.patients import PassShape, PatientItems
from clinstack.engine.precision import forward_precision
from clinstack.engine.step import Objective
from clinstack.model.checks import StackError
from clinstack.model.stack import Stack

Gradients = dict[str, Tensor]
_SMALL = 1e-6
"""Added to a norm before dividing by it, so that a clipped gradient is never longer than the bound."""
_TOLERANCE = 1e-3
"""How far the sum of the patients' gradients may be from autograd's, relative; they are summed in another order."""


class PrivateObjective(Objective, Protocol):
    """What a stage trains on privately: items of patients, whose losses add up."""

    patients: PatientItems | None
    """None where the recipe is not private."""

    def weights(self, items: Sequence[int]) -> list[float]:
        """Return the weight of each item, as `loss` sums them up."""
        ...

    def shape(self, items: Sequence[int]) -> PassShape | None:
        """Return how items lie in one forward pass; None where they take more than one."""
        ...


class _UnknownPositionsError(Exception):
    """A layer reads other positions than the pass has: whose they are cannot be told."""


@dataclass(frozen=True)
class Drawn:
    """A patient of a step, and the items that are read.

    Parameters
    ----------
    patient : int
    items : list of int
    """

    patient: int
    items: list[int]


class PatientGradients:
    """Computes the gradients of single patients.

    Parameters
    ----------
    stack : Stack
    objective : PrivateObjective
    parameters : dict of str to Parameter
        What trains.
    together : bool
        Let several patients share a pass where that is exact; else each has its own.
    """

    def __init__(
        self,
        stack: Stack,
        objective: PrivateObjective,
        parameters: dict[str, nn.Parameter],
        *,
        together: bool = True,
    ) -> None:
        self._stack = stack
        self._objective = objective
        self._parameters = parameters
        # A base in 8 bits rounds by the largest number of a whole pass, other patients' among them.
        layers = linear_layers(stack, parameters) if together and stack.quantize == "none" else None
        self._layers: dict[str, _Layer] = layers or {}
        self._together = layers is not None
        self._checked = False

    @property
    def together(self) -> bool:
        """Whether several patients share a pass."""
        return self._together

    def clipped_sum(self, drawn: Sequence[Drawn], clip: float, most_items: int) -> Gradients:
        """Return the sum of the patients' gradients, each scaled down to at most ``clip`` over all tensors together.

        A patient's gradient is that of the mean loss of what is read of the patient: of a token, or of an example.

        Parameters
        ----------
        drawn : sequence of Drawn
        clip : float
        most_items : int
            Items that go through the network at once.
        """
        total = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}
        for group in self._groups(drawn, most_items):
            for gradients in self._of_group(group, most_items):
                factors = clip_factors(gradients, clip)
                for name, each in gradients.items():
                    total[name] += torch.einsum("p,p...->...", factors.to(each), each)
        return total

    def _of_group(self, group: Sequence[Drawn], most_items: int) -> Iterator[Gradients]:
        """Yield the gradients of patients, shape [patients, *parameter]: of all in one, or one after another."""
        if len(group) > 1 and self._together:
            try:
                yield self._of_several(group)
            except _UnknownPositionsError:
                self._together = False  # as in a mixture of experts, whose layers read some of the tokens
            else:
                return
        for one in group:
            yield {name: gradient[None] for name, gradient in self._of_one(one, most_items).items()}

    def _groups(self, drawn: Sequence[Drawn], most_items: int) -> Iterator[list[Drawn]]:
        """Yield patients who share a pass."""
        group: list[Drawn] = []
        for one in drawn:
            longer = [item for other in group for item in other.items] + one.items
            fits = self._together and len(longer) <= most_items and self._objective.shape(longer) is not None
            if group and not fits:
                yield group
                group = []
            group.append(one)
        if group:
            yield group

    def _of_one(self, drawn: Drawn, most_items: int) -> Gradients:
        """Return the gradients of one patient by a backward pass."""
        self._forget()
        weight = 0.0
        for at in range(0, len(drawn.items), most_items):
            items = drawn.items[at : at + most_items]
            with forward_precision(self._stack):
                loss, part = self._objective.loss(items)
            loss.backward()
            weight += part
        gradients = {
            name: parameter.grad.detach() / weight
            for name, parameter in self._parameters.items()
            if parameter.grad is not None and weight
        }
        self._forget()
        return gradients

    def _of_several(self, group: Sequence[Drawn]) -> Gradients:
        """Return the gradients of several patients by one pass; shape [patients, *parameter]."""
        items = [item for one in group for item in one.items]
        shape = self._objective.shape(items)
        assert shape is not None
        counts = [len(one.items) for one in group]
        self._forget()
        with _recording(self._layers, shape, counts) as recorded, forward_precision(self._stack):
            loss, _ = self._objective.loss(items)
            loss.backward()
        if not self._checked:
            check_sums(recorded, self._parameters)
            self._checked = True
        self._forget()
        weights = _sums(self._objective.weights(items), counts)
        scale = torch.tensor([1.0 / weight if weight else 0.0 for weight in weights])
        return {name: each * _for_each(scale, each) for name, each in recorded.items()}

    def _forget(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None


def clip_factors(gradients: Gradients, clip: float) -> Tensor:
    """Return what each patient's gradients are multiplied by, so that their norm is at most ``clip``; shape [patients].

    The norm is Euclidean, over all tensors together. A patient whose gradient is not finite counts as one without: 0
    is within the bound too, and an error would tell that the patient is there.

    Parameters
    ----------
    gradients : dict of str to Tensor [patients, ...]
        Those that are not finite are set to 0 in place.
    """
    squares = [each.flatten(1).double().square().sum(1).cpu() for each in gradients.values()]
    if not squares:
        return torch.zeros(1)
    norms = torch.stack(squares).sum(0).sqrt()
    finite = norms.isfinite()
    for each in gradients.values() if not bool(finite.all()) else ():
        each[~finite.to(each.device)] = 0.0
    return torch.where(finite, (clip / (norms + _SMALL)).clamp(max=1.0), 0.0)


@dataclass(frozen=True)
class _Layer:
    """A linear layer that trains."""

    module: nn.Linear
    weight: str
    bias: str | None
    of_head: bool
    """It reads one row for each item, and not tokens."""


def linear_layers(stack: Stack, parameters: dict[str, nn.Parameter]) -> dict[str, _Layer] | None:
    """Return the linear layers that hold everything that trains; None where something trains that is in none.

    Only LoRA's own factors and the final layer of a decoder's head: what other weights of linear layers are multiplied
    with does not always pass through the layer (the magnitudes of DoRA, for one).
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    methods = {adapter.method for adapter in stack.adapters if adapter.trainable}
    if not methods <= {"lora", "rslora"}:
        return None
    head = None if stack.task is None else stack.head
    found: dict[str, _Layer] = {}
    for place, module in stack.network.named_modules():
        if type(module) is not nn.Linear or id(module.weight) not in names:
            continue
        of_head = module is head
        if not of_head and not (".lora_A." in place or ".lora_B." in place):
            return None
        bias = None if module.bias is None else names.get(id(module.bias))
        found[place] = _Layer(module, names[id(module.weight)], bias, of_head)
    held = {layer.weight for layer in found.values()} | {layer.bias for layer in found.values() if layer.bias}
    return found if held == set(parameters) else None


@contextmanager
def _recording(layers: dict[str, _Layer], shape: PassShape, counts: Sequence[int]) -> Iterator[Gradients]:
    """Yield what fills with each patient's gradients, shape [patients, *parameter], during a backward pass.

    Parameters
    ----------
    shape : PassShape
        Of the items of all patients in the pass.
    counts : sequence of int
        How many of the items each patient has.
    """
    recorded: Gradients = {}
    tokens = [int(number) for number in _sums(shape.positions, counts)]

    def hook_of(layer: _Layer) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        expected = (len(shape.positions),) if layer.of_head else (shape.rows, shape.width)
        lengths = list(counts) if layer.of_head else tokens

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            read = inputs[0].detach()
            if tuple(read.shape[:-1]) != expected:
                raise _UnknownPositionsError
            output.register_hook(lambda gradient: _record(recorded, layer, read, gradient.detach(), lengths))

        return hook

    handles = [layer.module.register_forward_hook(hook_of(layer)) for layer in layers.values()]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _record(recorded: Gradients, layer: _Layer, read: Tensor, gradient: Tensor, lengths: list[int]) -> None:
    """Add the gradients of a layer, patient by patient."""
    dtype = layer.module.weight.dtype
    reads = read.flatten(0, -2).to(dtype).split(lengths)
    gives = gradient.flatten(0, -2).to(dtype).split(lengths)
    _add(recorded, layer.weight, [give.T @ own for give, own in zip(gives, reads, strict=True)])
    if layer.bias is not None:
        _add(recorded, layer.bias, [give.sum(0) for give in gives])


def _add(recorded: Gradients, name: str, each: list[Tensor]) -> None:
    stacked = torch.stack(each)
    recorded[name] = recorded[name] + stacked if name in recorded else stacked


def check_sums(recorded: Gradients, parameters: dict[str, nn.Parameter]) -> None:
    """Assert that the patients' gradients sum up to autograd's: nothing of a tensor's gradient was missed.

    Raises
    ------
    StackError
        Naming the tensor.
    """
    for name, parameter in parameters.items():
        whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        summed = recorded[name].sum(0) if name in recorded else torch.zeros_like(whole)
        size = max(float(whole.norm()), float(summed.norm()))
        if float((whole - summed).norm()) > _TOLERANCE * size + 1e-12:
            raise StackError(f"{name}: the gradients of the patients do not sum up to the gradient of all of them.")


def _sums(numbers: Sequence[float], counts: Sequence[int]) -> list[float]:
    """Return the sum of each patient's numbers, which stand together."""
    result, at = [], 0
    for count in counts:
        result.append(sum(numbers[at : at + count]))
        at += count
    return result


def _for_each(scale: Tensor, like: Tensor) -> Tensor:
    return scale.to(like).view(-1, *[1] * (like.dim() - 1))
