"""Serving: one base in memory, any number of stacks on it, an HTTP API and a web page."""
