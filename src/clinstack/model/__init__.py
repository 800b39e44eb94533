"""Bases, adapter methods and the Stack that joins them."""
