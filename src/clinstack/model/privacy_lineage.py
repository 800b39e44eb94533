"""Which trainings of a stack were differentially private: ``privacy`` in stack.json, one entry for each.

The list of a new stack is that of every stack its adapters come from, and its own training. A guarantee for the whole
stack holds only where every entry is private: what a training without noise has read, nothing later can hide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.model.base import Base
from clinstack.model.data_lineage import data_of_base
from clinstack.model.lineage import find_adapter_folder, read_stack_record
from clinstack.recipe import AdapterRecipe


@dataclass(frozen=True)
class TrainingPrivacy:
    """One training, and what it cost.

    Parameters
    ----------
    stage : str or None
        ``pretrain``, ``instruct``, ``finetune`` or ``align``; None where it is not known.
    adapter : str
        What was trained: adapters joined by ``+``, ``head`` where only a head was.
    private : bool or None
        None where nothing is recorded, which promises nothing.
    prepare : str or None
        Hash of the Notes' prepare.json, to see which trainings read the same Notes.
    unit, epsilon, delta, noise_multiplier, clip, sampling_rate, steps, patients, accountant
        As ``run.json`` has them; None of a training that was not private.
    overall : dict or None
        ``epsilon, delta, how`` of this training and all before it, as one; None where one of them is not private.
    """

    stage: str | None
    adapter: str
    private: bool | None
    prepare: str | None = None
    unit: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    noise_multiplier: float | None = None
    clip: float | None = None
    sampling_rate: float | None = None
    steps: int | None = None
    patients: int | None = None
    accountant: str | None = None
    overall: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of stack.json; of a training that was not private only what it was."""
        return {key: value for key, value in asdict(self).items() if value is not None or key in _ALWAYS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingPrivacy:
        """Read what `to_dict` wrote."""
        if not isinstance(values["adapter"], str):
            raise TypeError("adapter is no name")
        known: dict[str, Any] = {key: values.get(key) for key in cls.__dataclass_fields__}
        return cls(**known)


_ALWAYS = ("stage", "adapter", "private")


def privacy_of(record: Mapping[str, Any]) -> tuple[TrainingPrivacy, ...] | None:
    """Return what stack.json says; None where it says nothing, as of stacks from before.

    Raises
    ------
    InputError
        If it is damaged.
    """
    entries = record.get("privacy")
    if entries is None:
        return None
    try:
        return tuple(TrainingPrivacy.from_dict(entry) for entry in entries)
    except (TypeError, KeyError, AttributeError):
        raise InputError("privacy: what stack.json says of private training is damaged; train it again.") from None


def privacy_before(adapters: Sequence[AdapterRecipe], base: Base) -> tuple[TrainingPrivacy, ...]:
    """Return the trainings that a recipe's adapters and base come from, before its own.

    Parameters
    ----------
    adapters : sequence of AdapterRecipe
        Those with a path bring the entries of the stack that they come from, whole.
    base : Base
        One that `clinstack export` made of a stack was trained on notes; it does not say how.
    """
    found: list[TrainingPrivacy] = []
    if data_of_base(base):
        found.append(TrainingPrivacy(None, f"base {base.name}", None))
    for index, adapter in enumerate(adapters):
        if adapter.path is None:
            continue
        place = find_adapter_folder(Path(adapter.path), f"adapters.{index} ({adapter.name})").parent
        record = read_stack_record(place) if (place / "stack.json").is_file() else {}
        entries = privacy_of(record)
        found += (TrainingPrivacy(None, adapter.name, None),) if entries is None else entries
    return distinct(found)


def distinct(entries: Iterable[TrainingPrivacy]) -> tuple[TrainingPrivacy, ...]:
    """Return entries without repetitions, in their order: two adapters may come from one stack."""
    result: list[TrainingPrivacy] = []
    for entry in entries:
        if entry not in result:
            result.append(entry)
    return tuple(result)


def privacy_sentence(entries: Sequence[TrainingPrivacy] | None) -> str:
    """Say what is promised of a whole stack, in one sentence.

    Parameters
    ----------
    entries : sequence of TrainingPrivacy or None
        In the order of the trainings; None where nothing is recorded.
    """
    if not entries:
        return "No guarantee: nothing is recorded of private training."
    open_ones = [entry for entry in entries if not entry.private]
    if len(open_ones) == len(entries):
        return "No guarantee: it was not trained with differential privacy."
    if open_ones:
        first = open_ones[0]
        how = "was trained without differential privacy" if first.private is False else "comes without a record of it"
        return (
            f"No guarantee for the stack as a whole: {_name(first)} {how}, and a private training on top of it hides "
            "only what that one read."
        )
    last = entries[-1]
    if last.overall is None:
        return "No guarantee for the stack as a whole: nothing is recorded of what its trainings cost together."
    together = "" if len(entries) == 1 else f" of its {len(entries)} trainings together"
    return (
        f"Differentially private for each training {last.unit}: epsilon {last.overall['epsilon']:.3g} at delta "
        f"{last.overall['delta']:.2g}{together}; validation and test patients are outside of it."
    )


def _name(entry: TrainingPrivacy) -> str:
    return entry.adapter if entry.stage is None else f"{entry.adapter} ({entry.stage})"
