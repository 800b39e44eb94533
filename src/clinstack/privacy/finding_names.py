"""What findings and attacks are called for a reader, wherever they are shown."""

from __future__ import annotations

_ATTACKS = {"min_k_plus_plus": "Min-K%++", "neighbourhood": "neighborhood"}
_MEASURES = {
    "auroc": "AUROC",
    "tpr_at_1_percent": "true positives at 1 % false ones",
    "own_text": "own text, verbatim",
}


def finding_name(name: str) -> str:
    """Return a finding's name for a reader, such as ``Membership, reference: AUROC``."""
    section, *rest = name.split(".")
    if section == "membership" and len(rest) == 2:
        return f"Membership, {membership_name(rest[0])}: {_measure(rest[1])}"
    return f"{section.capitalize()}: {_measure('.'.join(rest))}" if rest else _measure(section)


def membership_name(attack: str) -> str:
    """Return an attack's name for a reader."""
    return _ATTACKS.get(attack, attack.replace("_", " "))


def _measure(name: str) -> str:
    return _MEASURES.get(name, name.replace("_", " ").replace(".", ", "))
