"""The published builders of the four van Aken tasks, reproduced bit for bit.

van Aken et al. 2021, "Clinical Outcome Prediction from Admission Notes using Self-Supervised Knowledge Integration".
The files that its scripts wrote depend on how pandas 1 guessed types and sorted; all of that is part of the behaviour
that is reproduced here, without pandas. What each quirk does to the data stands in docs/mimic3.md.
"""
