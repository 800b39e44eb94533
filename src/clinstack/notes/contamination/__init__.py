"""Duplicates between splits, tasks and corpora, and phrases that give a label away."""
