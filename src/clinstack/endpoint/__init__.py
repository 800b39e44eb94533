"""Asking an OpenAI-compatible endpoint: concurrent, within limits, each reply kept before it is used.

Read `clinstack.endpoint.client` first.
"""

from clinstack.endpoint.client import Endpoint
from clinstack.endpoint.requests import BUDGET_SPENT, Reply, Request

__all__ = ["BUDGET_SPENT", "Endpoint", "Reply", "Request"]
