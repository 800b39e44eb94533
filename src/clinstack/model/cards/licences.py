"""The licence of a base, from what lies in its folder or from its id; never from what its weights look like.

An architecture is no evidence: anybody may train a Llama from nothing. What is not known is "unknown: look it up".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from clinstack.model.base import EMBEDDED_FOLDERS
from clinstack.model.cards.names import hub_id

_READ = 20_000
"""Characters of a file that are looked at."""
_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
_NAMES = {
    "apache-2.0": "Apache License 2.0",
    "mit": "MIT License",
    "llama2": "Llama 2 Community License",
    "llama3": "Meta Llama 3 Community License",
    "llama3.1": "Llama 3.1 Community License",
    "llama3.2": "Llama 3.2 Community License",
    "llama3.3": "Llama 3.3 Community License",
    "gemma": "Gemma Terms of Use",
    "bsd-3-clause": "BSD 3-Clause License",
    "cc-by-nc-4.0": "Creative Commons Attribution-NonCommercial 4.0",
    "cc-by-4.0": "Creative Commons Attribution 4.0",
    "openrail": "OpenRAIL",
}
_TEXTS = (
    (r"llama 3\.3 community license", "llama3.3"),
    (r"llama 3\.2 community license", "llama3.2"),
    (r"llama 3\.1 community license", "llama3.1"),
    (r"llama 3 community license", "llama3"),
    (r"llama 2 community license", "llama2"),
    (r"gemma terms of use", "gemma"),
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"permission is hereby granted, free of charge, to any person obtaining a copy of this software", "mit"),
)
"""What stands in a licence's own text, the more special first."""
_IDS = (
    (r"meta-llama/Llama-2-\d+b(-chat)?(-hf)?", "llama2"),
    (r"meta-llama/Meta-Llama-3-\d+B(-Instruct)?", "llama3"),
    (r"meta-llama/(Meta-)?Llama-3\.1-\d+B(-Instruct)?", "llama3.1"),
    (r"meta-llama/Llama-3\.2-\d+B(-Instruct)?", "llama3.2"),
    (r"meta-llama/Llama-3\.3-\d+B-Instruct", "llama3.3"),
    (r"google/gemma-(2-|3-)?\d+b(-it|-pt)?", "gemma"),
    (r"mistralai/(Mistral-7B|Mixtral-8x7B)(-Instruct)?-v0\.\d", "apache-2.0"),
    (r"Qwen/Qwen3-[\d.]+B(-Base)?", "apache-2.0"),
    (r"Qwen/Qwen2\.5-(0\.5|1\.5|7|14|32)B(-Instruct)?", "apache-2.0"),
    (r"TinyLlama/TinyLlama-1\.1B-.+", "apache-2.0"),
    (r"HuggingFaceTB/SmolLM2-[\d.]+[MB](-Instruct)?", "apache-2.0"),
    (r"EleutherAI/pythia-[\d.]+[mb](-deduped)?", "apache-2.0"),
    (r"microsoft/phi-2", "mit"),
    (r"(google-bert/)?bert-base-(un)?cased", "apache-2.0"),
    (r"answerdotai/ModernBERT-(base|large)", "apache-2.0"),
    (r"emilyalsentzer/Bio_(Discharge_Summary_|Clinical)BERT", "mit"),
)
"""Bases by their whole id on the hub, whose licence is known."""


@dataclass(frozen=True)
class Licence:
    """A licence and how it is known.

    Parameters
    ----------
    identifier : str
        As the hub has it; ``unknown`` where nobody says.
    name : str
        For people.
    evidence : str
        Where it was read.
    """

    identifier: str
    name: str
    evidence: str

    @property
    def is_known(self) -> bool:
        """Whether there is one."""
        return self.identifier != "unknown"

    def to_dict(self) -> dict[str, str]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Licence:
        """Read what `to_dict` wrote."""
        return cls(str(values["identifier"]), str(values["name"]), str(values["evidence"]))


UNKNOWN_LICENCE = Licence("unknown", "unknown: look it up", "nothing in the base's folder or its id says it")


def named(identifier: str) -> str:
    """Return a licence's name for people."""
    return _NAMES.get(identifier, identifier)


def base_licence(base: str) -> Licence:
    """Return the licence of a base that stack.json names so. Asks no network.

    Its README's metadata count first, then the text of a licence beside it, and last a table of bases by their id on
    the hub.
    """
    folder = EMBEDDED_FOLDERS.get(base) or Path(base)
    if folder.is_dir():
        found = _from_readme(folder) or _from_text(folder)
        if found is not None:
            return found
    name = hub_id(base)
    for pattern, identifier in _IDS:
        if name is not None and re.fullmatch(pattern, name):
            return Licence(identifier, named(identifier), "known for the base's id on the hub")
    return UNKNOWN_LICENCE


def _from_readme(folder: Path) -> Licence | None:
    file = folder / "README.md"
    if not file.is_file():
        return None
    parts = file.read_text(encoding="utf-8", errors="replace")[:_READ].split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        values = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    identifier = values.get("license") if isinstance(values, dict) else None
    if not isinstance(identifier, str) or identifier in ("", "unknown"):
        return None
    if identifier == "other":
        name = str(values.get("license_name") or "another licence: read it in the base's folder")
        return Licence("other", name, "README.md of the base")
    return Licence(identifier, named(identifier), "README.md of the base")


def _from_text(folder: Path) -> Licence | None:
    for name in _FILES:
        file = folder / name
        if not file.is_file():
            continue
        text = " ".join(file.read_text(encoding="utf-8", errors="replace")[:_READ].lower().split())
        for pattern, identifier in _TEXTS:
            if re.search(pattern, text):
                return Licence(identifier, named(identifier), f"{name} of the base")
    return None
