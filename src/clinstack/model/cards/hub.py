"""The metadata at the head of a README.md, as the Hugging Face hub reads it."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from clinstack.model.cards.facts import StackFacts
from clinstack.model.cards.figures import figures_of
from clinstack.model.cards.names import hub_id
from clinstack.model.cards.sentences import SOURCES

_ENGLISH = ("mimic3", "mimic4", "oracle", "asclepius")
_PUBLIC = {"asclepius": "starmpcc/Asclepius-Synthetic-Clinical-Notes"}
"""Sources that are data sets on the hub; MIMIC is not, and the synthetic cohort is made anew on each machine."""


def metadata(
    facts: StackFacts, library: str | None = None, relation: str | None = None, *, with_results: bool = True
) -> str:
    """Return the YAML between the two lines of dashes.

    Parameters
    ----------
    facts : StackFacts
    library : str, optional
        What opens the folder; by the stack's methods when not given.
    relation : str, optional
        What the hub calls the relation to the base, likewise.
    with_results : bool
        Whether the figures of the test patients are in it.
    """
    sources = [str(source.source) for source in facts.data if source.source is not None]
    of_source = [str(source.source) for source in facts.data if source.stage is not None]
    classifier = facts.task is not None
    identifier, name = _licence(facts)
    base = hub_id(str(facts.record["base"]["id"]))
    whole = facts.is_whole_model or not facts.adapters
    relation = relation or ("finetune" if whole else "adapter")
    methods = [adapter.method for adapter in facts.adapters]
    extra: dict[str, Any] = {
        **({} if name is None else {"license_name": name}),
        **({} if base is None else {"base_model_relation": relation}),
    }
    task = "text-classification" if classifier else "text-generation"
    data = ModelCardData(
        language="en" if of_source and all(source in _ENGLISH for source in of_source) else None,
        license=identifier,
        base_model=base,
        library_name=library or _library(facts),
        pipeline_tag=task,
        tags=[
            "clinstack",
            "clinical",
            *dict.fromkeys(methods),
            *([facts.stage] if facts.stage else []),
            *([facts.task.name] if facts.task is not None else []),
            *(["synthetic-data"] if facts.synthetic else []),
        ],
        datasets=[_PUBLIC[source] for source in dict.fromkeys(sources) if source in _PUBLIC] or None,
        model_name=facts.label,
        eval_results=(_results(facts, task) or None) if with_results else None,
        ignore_metadata_errors=False,
        **extra,
    )
    return str(data.to_yaml())


def _library(facts: StackFacts) -> str:
    peft = any(adapter.method != "full" for adapter in facts.adapters)
    return "peft" if peft else "transformers" if facts.adapters else "clinstack"


def _licence(facts: StackFacts) -> tuple[str, str | None]:
    """Return the hub's ``license`` and ``license_name``: the owner's word, else the base's where the data allow it."""
    said = facts.answers.get("license")
    if said:
        return said, None
    if facts.publishable is False:
        return "other", "bound-by-a-data-use-agreement"
    if facts.publishable is None or not facts.licence.is_known:
        return "unknown", None
    return facts.licence.identifier, facts.licence.name if facts.licence.identifier == "other" else None


def _results(facts: StackFacts, task: str) -> list[EvalResult]:
    sources = [source for source in facts.data if source.source is not None]
    last = str(sources[-1].source) if sources else "private"
    name = SOURCES.get(last, last)
    if sources and sources[-1].synthetic:
        last, name = f"synthetic-{last}", f"the synthetic cohort, in the shape of {name}"
    return [
        EvalResult(
            task_type=task,
            task_name=None if facts.task is None else facts.task.name,
            dataset_type=last,
            dataset_name=f"{name}, test patients",
            dataset_split="test",
            metric_type=figure.hub,
            metric_name=figure.name,
            metric_value=round(figure.value, 6),
            metric_args=None
            if figure.interval is None
            else {"interval": [round(end, 6) for end in figure.interval], "level": 0.95},
        )
        for figure in figures_of(facts.metrics)
        if figure.split == "test" and not figure.key.startswith(("temperature.", "isotonic."))
    ]
