"""Adapter stacks for clinical language models: one frozen base, one clinical adapter, one small adapter per task."""

__version__ = "0.1.0"

from clinstack.offline import settle as _settle

# First of all, before any library reads the environment: telemetry is off, and in closed-network mode the network.
_settle()
