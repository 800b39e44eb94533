"""Whether the server can still be used: the first error that ends the run, and what leads to it."""

from __future__ import annotations

import threading

from clinstack.endpoint.call import EndpointError, Failed
from clinstack.recipe.endpoint import EndpointRecipe

_DOWN_AFTER = 8
"""Requests that fail one after another, each with all its retries, before the server counts as down; or twice the
concurrency if that is more."""


class ServerHealth:
    """What all threads know of the server; each method raises the error that ends the run, if there is one.

    Attributes
    ----------
    answered : int
        Requests that came to an answer.
    """

    def __init__(self, recipe: EndpointRecipe) -> None:
        self.answered = 0
        self._recipe = recipe
        self._lock = threading.Lock()
        self._failed_in_a_row = 0
        self._reached = False
        self._error: EndpointError | None = None

    def check(self) -> None:
        """Raise if the run has ended."""
        if self._error is not None:
            raise self._error

    def end(self, error: EndpointError) -> None:
        """End the run, unless it has ended."""
        with self._lock:
            self._error = self._error or error

    def answer(self) -> None:
        """Count an answer."""
        with self._lock:
            self.answered += 1
            self._failed_in_a_row = 0
            self._reached = True

    def failed_once(self, failed: Failed) -> None:
        """Take note of a failure, which may be tried again; raise if there never was a server."""
        with self._lock:
            self._reached = self._reached or failed.reached
            if not self._reached:
                self._error = self._error or EndpointError(
                    f"No server answers at {self._recipe.base_url}. Start it (such as `vllm serve "
                    f"{self._recipe.model}`), or correct endpoint.base_url."
                )
                raise self._error

    def failed_for_good(self, failed: Failed, kept: str) -> None:
        """Count a request that came to nothing; raise when request after request does: then it is the server.

        ``kept`` says what is kept, and where.
        """
        with self._lock:
            if not failed.may_heal and self.answered:
                return  # such as a prompt too long for the model, among others that are not
            self._failed_in_a_row += 1
            if self._failed_in_a_row < max(_DOWN_AFTER, 2 * self._recipe.concurrency):
                return
            remedy = "look whether it runs, and how busy it is"
            if not failed.may_heal:
                remedy = (
                    "its log says why: mostly a wrong endpoint.model, a prompt and max_tokens beyond the model's "
                    "context, or another endpoint.limit_key"
                )
            self._error = self._error or EndpointError(
                f"{self._recipe.base_url}: the last {self._failed_in_a_row} requests all failed, the last one with: "
                f"{failed.what}. {kept}. Put the server right ({remedy}), and the same command goes on."
            )
            raise self._error
