"""MIMIC-III to Notes and the five outcome tasks."""

from clinstack.notes.mimic3.prepare import prepare_mimic3

__all__ = ["prepare_mimic3"]
