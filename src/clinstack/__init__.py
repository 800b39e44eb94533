"""Adapter stacks for clinical language models: one frozen base, one clinical adapter, one small adapter per task."""

__version__ = "0.1.0"
