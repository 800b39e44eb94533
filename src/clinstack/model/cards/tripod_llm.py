"""The TRIPOD-LLM checklist of a Stack: what its Run answers, what a person has to, and what does not apply.

Nothing is invented: an answer names the file that it comes from. Where a Run knows a part of what an item asks, it is
marked "answered in part" and says what a person adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clinstack.model.cards.answers import ANSWERS_FILE
from clinstack.model.cards.facts import StackFacts
from clinstack.model.cards.tripod_answers import KNOWN, OPEN, STATUSES, Answer
from clinstack.model.cards.tripod_items import NUMBERING, REFERENCE, Item, items


@dataclass(frozen=True)
class Checklist:
    """All items with their answers.

    Parameters
    ----------
    facts : StackFacts
    answers : tuple of (Item, Answer)
    """

    facts: StackFacts
    answers: tuple[tuple[Item, Answer], ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many items have each status."""
        found = [answer.status for _, answer in self.answers]
        return {status: found.count(status) for status in STATUSES}

    def to_dict(self) -> dict[str, Any]:
        """Return ``tripod-llm.json``."""
        return {
            "format_version": 1,
            "guideline": {"reference": REFERENCE, "numbering": NUMBERING},
            "stack": self.facts.fingerprint,
            "label": self.facts.label,
            "designs": list(designs(self.facts)),
            "tasks": list(tasks(self.facts)),
            "counts": self.counts,
            "items": [
                {
                    "item": item.number,
                    "section": item.section,
                    "topic": item.topic,
                    "asks": item.asks,
                    "designs": list(item.designs) or ["all"],
                    "tasks": list(item.tasks) or ["all"],
                    "status": answer.status,
                    "answer": answer.text or None,
                    "from": list(answer.sources),
                    "remains": answer.remains or None,
                }
                for item, answer in self.answers
            ],
            "kept": self.facts.kept(),
        }


def checklist(facts: StackFacts) -> Checklist:
    """Answer all items."""
    return Checklist(facts, tuple((item, _answer(facts, item)) for item in items()))


def designs(facts: StackFacts) -> tuple[str, ...]:
    """Return the guideline's designs that a Run is: methods, and evaluation on patients of the same source."""
    return ("M", "E") if facts.run else ("M",)


def tasks(facts: StackFacts) -> tuple[str, ...]:
    """Return the guideline's tasks that a stack has; none for a language model that goes on with texts."""
    if facts.task is not None:
        return ("C", "OF")
    return ("QA",) if facts.prompt is not None else ()


def _answer(facts: StackFacts, item: Item) -> Answer:
    said = facts.answers.tripod.get(item.number)
    if said is not None:
        return Answer("answered", said, (ANSWERS_FILE,))
    if item.tasks and not set(item.tasks) & set(tasks(facts)):
        return Answer("not applicable", remains=f"Of tasks of the kinds {', '.join(item.tasks)}; this stack has none.")
    if item.designs == ("H",) and facts.synthetic:
        return Answer("not applicable", remains="Of evaluations in health care; these patients do not exist.")
    known = KNOWN.get(item.number)
    found = known(facts) if known is not None else None
    return found or Answer("open", remains=OPEN.get(item.number, "A person answers this."))
