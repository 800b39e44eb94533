"""The items of TRIPOD-LLM, in our words and with the guideline's numbers; see `tripod_llm.json` beside this file.

Gallifant et al. 2025, "The TRIPOD-LLM reporting guideline for studies using large language models", Nature Medicine 31,
60-69, Table 2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

REFERENCE = (
    "Gallifant et al. 2025, The TRIPOD-LLM reporting guideline for studies using large language models, "
    "Nature Medicine 31, 60-69, doi:10.1038/s41591-024-03425-5"
)
NUMBERING = (
    "Numbers, designs and tasks are those of the guideline's Table 2, taken from two public transcriptions of it that "
    "agree in every row, not from the article itself; the words are ours. The article speaks of 19 main items and 50 "
    "subitems; the transcriptions have 49 numbered rows (10 items without letters, 39 with) and, for item 2, 12 rows "
    "for abstracts, which are not listed here. The guideline is a living document: look at its own checklist before "
    "you submit one."
)


@dataclass(frozen=True)
class Item:
    """One row.

    Parameters
    ----------
    number : str
        Such as ``5a``.
    section, topic, asks : str
    designs : tuple of str
        M (methods), D (a new model from nothing), E (evaluation), H (evaluation in health care); empty: all.
    tasks : tuple of str
        C (classification), OF (outcome forecasting), QA, IR, DG, SS, MT; empty: all.
    """

    number: str
    section: str
    topic: str
    asks: str
    designs: tuple[str, ...]
    tasks: tuple[str, ...]


@cache
def items() -> tuple[Item, ...]:
    """Return all rows in their order."""
    text = (files("clinstack.model.cards") / "tripod_llm.json").read_text(encoding="utf-8")
    return tuple(
        Item(row["item"], row["section"], row["topic"], row["asks"], tuple(row["designs"]), tuple(row["tasks"]))
        for row in json.loads(text)["items"]
    )


def numbers() -> tuple[str, ...]:
    """Return the numbers of all rows."""
    return tuple(item.number for item in items())
