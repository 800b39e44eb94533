"""Identifiers of people in text: where they stand and of which kind; never their words in what is written."""

from clinstack.privacy.identifiers.counts import IdentifierCounts, scan_texts
from clinstack.privacy.identifiers.engines import Engine, find_identifiers, open_engines
from clinstack.privacy.identifiers.identifier import KINDS, PLACEHOLDER, Identifier

__all__ = [
    "KINDS",
    "PLACEHOLDER",
    "Engine",
    "Identifier",
    "IdentifierCounts",
    "find_identifiers",
    "open_engines",
    "scan_texts",
]
