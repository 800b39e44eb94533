"""The cards of a stack in what is exported of it: the same facts, rendered for the exported folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clinstack.export.source import Source
from clinstack.files import write_json, write_text
from clinstack.model.cards import measured
from clinstack.model.cards.facts import AUDIT_FILE, StackFacts, gather
from clinstack.model.cards.hub import metadata
from clinstack.model.cards.readme import licences_section
from clinstack.model.cards.sentences import audited
from clinstack.model.cards.tripod_llm import checklist
from clinstack.model.cards.tripod_page import tripod_page
from clinstack.model.cards.write import TRIPOD_PAGE, marked, write_machine_readable
from clinstack.model.lineage import stack_folder

_RELATIONS = {
    "merged": "finetune",
    "fused": "adapter",
    "clinical-merged": "adapter",
    "peft": "adapter",
    "gguf": "finetune",
}
"""What the hub calls each kind's relation to its base."""
_LIBRARIES = {"merged": "transformers", "fused": "peft", "clinical-merged": "peft", "peft": "peft", "gguf": "gguf"}


def facts_of(source: Source) -> StackFacts:
    """Return what is known of a stack, with the whole lineage of its data: a base made by export has one too."""
    facts = gather(source.folder)
    if source.stack.data is None:
        return facts
    return replace(facts, record={**facts.record, "data": [item.to_dict() for item in source.stack.data]})


def front_matter(kind: str, known: Sequence[StackFacts]) -> str:
    """Return the hub's metadata; of several stacks without their results, which are in a section of each."""
    return metadata(known[0], _LIBRARIES[kind], _RELATIONS[kind], with_results=len(known) == 1)


def card_sections(known: Mapping[str, StackFacts]) -> list[str]:
    """Return licences, results, groups and privacy; of several stacks each under its name."""
    parts = [licences_section(next(iter(known.values())))]
    for name, facts in known.items():
        for part in (measured.results_section(facts), measured.groups_section(facts), measured.privacy_section(facts)):
            title, rest = part.split("\n", 1)
            parts.append(part if len(known) == 1 else f"{title}, {name}\n{rest}")
    return parts


def write_exported_cards(folder: Path, places: Sequence[str], known: Sequence[StackFacts]) -> None:
    """Write checklist, CHAI's card and the audit's summary into the exported folder, of several stacks into the folder
    of each.
    """
    for place, facts in zip(places, known, strict=True):
        if facts.audit is not None:
            write_json(folder / place / AUDIT_FILE, _without_places(facts.audit))
        write_machine_readable(folder / place, facts)
        write_text(folder / place / TRIPOD_PAGE, marked(tripod_page(checklist(facts))))


def _without_places(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Return an audit's summary without the place that the audit's Run has on this machine."""
    report = audit.get("report")
    if not isinstance(report, Mapping) or "run" not in report:
        return dict(audit)
    return {**audit, "report": {**report, "run": Path(str(report["run"])).name}}


def leaking(paths: Sequence[Path]) -> list[str]:
    """Return the names of the stacks whose audit, of these very weights, found that they leak."""
    known = [gather(stack_folder(path)) for path in paths]
    return [facts.label for facts in known if audited(facts).verdict == "leaking"]
