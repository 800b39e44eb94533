"""TRIPOD-LLM.md: the checklist for people."""

from __future__ import annotations

from itertools import groupby

from clinstack.model.cards.markdown import table
from clinstack.model.cards.tripod_answers import Answer
from clinstack.model.cards.tripod_items import NUMBERING, REFERENCE
from clinstack.model.cards.tripod_llm import Checklist


def tripod_page(checklist: Checklist) -> str:
    """Return the page."""
    counts = ", ".join(f"{count} {status}" for status, count in checklist.counts.items() if count)
    parts = [
        f"# TRIPOD-LLM: {checklist.facts.label}",
        f"{counts}. What is open, or open in part, a person answers under `tripod` in `card.yaml`, such as "
        "`tripod: {'13': 'approved by …'}`; `clinstack card` then renders this page anew.",
        f"{REFERENCE}. {NUMBERING}",
    ]
    for section, rows in groupby(checklist.answers, key=lambda row: row[0].section):
        parts.append(f"## {section}")
        parts.append(
            table(
                ("item", "what it asks", "status", "answer"),
                [(item.number, item.asks, f"**{answer.status}**", _said(answer)) for item, answer in rows],
            )
        )
    return "\n\n".join(parts) + "\n"


def _said(answer: Answer) -> str:
    where = f" ({', '.join(answer.sources)})" if answer.sources else ""
    said = f"{answer.text}{where}" if answer.text else ""
    remains = f"*{answer.remains}*" if answer.remains else ""
    return " ".join(part for part in (said, remains) if part)
