"""MIMIC-IV to Notes and the outcome tasks on its admissions."""

from clinstack.notes.mimic4.prepare import prepare_mimic4

__all__ = ["prepare_mimic4"]
