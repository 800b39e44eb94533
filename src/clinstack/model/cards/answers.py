"""What a person adds to the cards: ``card.yaml`` beside ``stack.json``, so that no rendering writes over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from clinstack.errors import InputError
from clinstack.recipe.reading import suggest

ANSWERS_FILE = "card.yaml"
KEYS = (
    "owner",
    "contact",
    "license",
    "intended_use",
    "intended_users",
    "patient_population",
    "out_of_scope",
    "clinical_risk_level",
    "known_biases",
    "bias_mitigation",
    "maintenance",
    "funding",
    "stakeholders",
    "publications",
    "patient_consent",
)


@dataclass(frozen=True)
class Answers:
    """What people said.

    Parameters
    ----------
    texts : mapping of str to str
        By the keys of `KEYS`.
    tripod : mapping of str to str
        By the number of an item of TRIPOD-LLM, such as ``13``.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    tripod: Mapping[str, str] = field(default_factory=dict)

    def get(self, key: str) -> str | None:
        """Return what was said under a key; None where nothing was."""
        return self.texts.get(key)


def read_answers(folder: Path, items: tuple[str, ...]) -> Answers:
    """Read ``card.yaml`` of a Stack's folder; nobody has said anything where there is none.

    Parameters
    ----------
    folder : Path
    items : tuple of str
        The numbers of the items of TRIPOD-LLM.

    Raises
    ------
    InputError
        If it is damaged, or has a key that is not known.
    """
    file = folder / ANSWERS_FILE
    if not file.is_file():
        return Answers()
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"{file} is not a YAML file; correct it, or remove it.") from None
    if values is None:
        return Answers()
    table = _texts(values, file, "", (*KEYS, "tripod"))
    tripod = _texts(values.get("tripod") or {}, file, "tripod.", items)
    return Answers({key: text for key, text in table.items() if key != "tripod"}, tripod)


def _texts(values: Any, file: Path, where: str, known: tuple[str, ...]) -> dict[str, str]:
    if not isinstance(values, dict):
        raise InputError(f"{file}: {where or 'it'} must be a list of keys and texts, each as `key: text`.")
    found = {}
    for key, text in values.items():
        name = str(key)
        if name not in known:
            hint = suggest(name, list(known)) or f" Known here: {', '.join(known)}."
            raise InputError(f"{file}: unknown key {where}{name}.{hint}")
        if name == "tripod" and not where:
            continue
        if not isinstance(text, (str, int, float)) or not str(text).strip():
            raise InputError(f"{file}: {where}{name} must be a text; leave it out where nothing is to be said.")
        found[name] = str(text).strip()
    return found
