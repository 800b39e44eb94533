"""Everything that the cards of a Stack say, gathered from what is on disk: no weight is read, no network asked.

::

    STACK/stack.json                     what it is, its lineage, its data
    STACK/audit.json, calibration.json   the audit's verdict; probabilities
    STACK/card.yaml                      what people added
    RUN/run.json, recipe.yaml, metrics.json   how it was made, and what was measured
    the Notes: prepare.json, datasheet.json   whom it was made from, in counts
    the base's README or licence

What is not there is unknown. Notes and base may be on another machine when a card is rendered again, so what was read
of them once is kept in ``tripod-llm.json`` for as long as stack.json is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clinstack.files import read_json, sha256_file
from clinstack.model.cards.answers import Answers, read_answers
from clinstack.model.cards.cohort import CohortFacts, cohort_facts
from clinstack.model.cards.licences import UNKNOWN_LICENCE, Licence, base_licence
from clinstack.model.cards.names import public_base_name
from clinstack.model.cards.tripod_items import numbers
from clinstack.model.data_lineage import UNKNOWN, DataSource, data_of, openly_publishable
from clinstack.model.lineage import read_stack_record, run_record
from clinstack.model.pooling import HeadInput
from clinstack.tasks import Task
from clinstack.tokens.prompts import Prompt

TRIPOD_FILE = "tripod-llm.json"
AUDIT_FILE = "audit.json"


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter as stack.json has it; see `clinstack.model.card.Level`."""

    name: str
    method: str
    trainable: bool
    weights: str
    parent: str
    verified: bool
    carries_head: bool


@dataclass(frozen=True)
class StackFacts:
    """What is known of a Stack.

    Parameters
    ----------
    record : dict
        Its stack.json.
    fingerprint : str
        The hash of stack.json.
    run, recipe, metrics : dict
        Of the Run that it lies in; empty where there is none, or the Run's record is of other weights.
    audit : dict or None
        The audit's summary.
    cohort : CohortFacts or None
        What the Notes say of whom it was trained on.
    licence : Licence
        Of the base.
    answers : Answers
        What people added.
    """

    record: dict[str, Any]
    fingerprint: str
    run: dict[str, Any]
    recipe: dict[str, Any]
    metrics: dict[str, Any]
    audit: dict[str, Any] | None
    calibrated: bool
    cohort: CohortFacts | None
    licence: Licence
    answers: Answers

    @property
    def base(self) -> str:
        """The base's name for others."""
        return public_base_name(str(self.record["base"]["id"]))

    @property
    def adapters(self) -> tuple[AdapterFacts, ...]:
        """From below."""
        head = (self.record.get("head") or {}).get("folder")
        return tuple(
            AdapterFacts(
                str(item["name"]),
                str(item["method"]),
                bool(item["trainable"]),
                str(item["weights"]),
                str(item["parent"]),
                bool(item["verified"]),
                item["folder"] == head,
            )
            for item in self.record["adapters"]
        )

    @property
    def task(self) -> Task | None:
        """What a classifier tells apart."""
        found = self.record.get("task")
        return Task.from_dict(found, "stack.json") if found else None

    @property
    def reads(self) -> HeadInput:
        """What the head reads."""
        return HeadInput(self.record.get("pooling", "auto"), self.record.get("layer"))

    @property
    def prompt(self) -> Prompt | None:
        """What it was trained to answer; of shots, which are texts of notes, nothing is known here."""
        found = self.record.get("prompt")
        return Prompt.from_dict({**found, "shots": 0}) if found else None

    @property
    def stage(self) -> str | None:
        """What its Run did."""
        return self.run.get("stage") or self.recipe.get("stage")

    @property
    def label(self) -> str:
        """What a person calls it."""
        named = self.run.get("label") or "+".join(adapter.name for adapter in self.adapters) or "head"
        task = self.task
        return f"{task.name}: {named}" if task is not None else str(named)

    @property
    def data(self) -> tuple[DataSource, ...]:
        """What it was trained on, base and parents included; one unknown entry where nothing is recorded."""
        return data_of(self.record) or (UNKNOWN,)

    @property
    def synthetic(self) -> bool | None:
        """Whether all that it was trained on was invented; None where nobody says."""
        if self.record.get("data"):
            said = {source.synthetic for source in self.data}
            return False if False in said else None if None in said else True
        found = self.run.get("synthetic")
        return found if isinstance(found, bool) else None

    @property
    def publishable(self) -> bool | None:
        """Whether its weights may be published; None where that is not known."""
        return openly_publishable(self.data)

    @property
    def is_whole_model(self) -> bool:
        """Whether the base itself was trained."""
        return any(adapter.method == "full" for adapter in self.adapters)

    def kept(self) -> dict[str, Any]:
        """Return what a later rendering may not find any more."""
        return {
            "stack": self.fingerprint,
            "cohort": None if self.cohort is None else self.cohort.to_dict(),
            "base_licence": self.licence.to_dict(),
        }


def gather(folder: Path) -> StackFacts:
    """Read what is known of the Stack in a folder.

    Raises
    ------
    InputError
        If stack.json or what people wrote is damaged.
    """
    record = read_stack_record(folder)
    fingerprint = sha256_file(folder / "stack.json")
    run = run_record(folder)
    of_run = bool(run) and _same_weights(record, run)
    recipe = _yaml(folder.parent / "recipe.yaml") if of_run else {}
    kept = _json(folder / TRIPOD_FILE).get("kept") or {}
    if kept.get("stack") != fingerprint:
        kept = {}
    data = data_of(record) or ()
    cohort = cohort_facts(recipe, data[-1].prepare if data else None, (record.get("task") or {}).get("name"))
    if cohort is None and kept.get("cohort"):
        cohort = CohortFacts.from_dict(kept["cohort"])
    licence = base_licence(str(record["base"]["id"]))
    if licence == UNKNOWN_LICENCE and kept.get("base_licence"):
        licence = Licence.from_dict(kept["base_licence"])
    return StackFacts(
        record,
        fingerprint,
        run if of_run else {},
        recipe,
        _json(folder.parent / "metrics.json") if of_run else {},
        _json(folder / AUDIT_FILE) or None,
        (folder / "calibration.json").is_file(),
        cohort,
        licence,
        read_answers(folder, numbers()),
    )


def _same_weights(record: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Whether a Run's record is of these weights: a stack may have been put in the place of another."""
    of_run = [item.get("weights") for item in (run.get("stack") or {}).get("adapters", [])]
    return of_run == [item["weights"] for item in record["adapters"]]


def _json(file: Path) -> dict[str, Any]:
    """Return what a file says; nothing where it is not there, or nobody can read it: a card then says "unknown"."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _yaml(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
