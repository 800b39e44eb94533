"""Synthetic notes and instructions through an OpenAI-compatible endpoint, after Asclepius (Kweon et al. 2024).

`clinstack.synthesize.notes` makes notes of case reports, `clinstack.synthesize.instructions` makes instructions of
notes.
"""
