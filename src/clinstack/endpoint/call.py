"""One request over the wire by the `openai` client: an answer, a failure that may heal, or one that will not."""

from __future__ import annotations

import email.utils
import json
import logging
import os
import re
import time
from dataclasses import dataclass
from typing import Any

from clinstack.endpoint.requests import Reply, Request
from clinstack.errors import ClinstackError, InputError
from clinstack.recipe.endpoint import EndpointRecipe

_CONNECT_SECONDS = 20.0
_LONGEST_WAIT = 600.0
"""Seconds; a server that asks for more is asked again after these."""
_HEALING = frozenset({408, 409, 425, 429})
_OF_ONE_REQUEST = frozenset({400, 413, 422})
_ABOUT_THIS_MACHINE = tuple(
    f"X-Stainless-{name}"
    for name in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async", "Retry-Count")
)
_NO_MORE_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached"})


class EndpointError(ClinstackError):
    """The server cannot be used, now or at all; the message says what to do. Nothing that was answered is lost."""


@dataclass(frozen=True)
class Failed:
    """A request without an answer.

    Parameters
    ----------
    what : str
        For people; never text of the request or of a reply.
    may_heal : bool
        Whether to ask again.
    wait : float or None
        Seconds that the server asked to wait.
    for_all : bool
        Whether the server asked it of everybody (429 with Retry-After).
    reached : bool
        Whether there was a server.
    """

    what: str
    may_heal: bool = True
    wait: float | None = None
    for_all: bool = False
    reached: bool = True


class Caller:
    """Sends requests to one endpoint; used by many threads.

    Parameters
    ----------
    recipe : EndpointRecipe
        Address, model and sampling.
    is_remote : bool
        Whether the host is beyond this machine and its private network.

    Raises
    ------
    InputError
        If `openai` is not installed, or the environment variable of the key is not set.
    """

    def __init__(self, recipe: EndpointRecipe, is_remote: bool) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            raise InputError("Endpoints need the client openai: pip install 'clinstack[synthesize]'") from None
        key = "none"  # the client wants one; servers on one's own machine do not look at it
        if recipe.api_key_env is not None:
            key = os.environ.get(recipe.api_key_env, "")
            if not key:
                raise InputError(
                    f"endpoint.api_key_env: the environment variable {recipe.api_key_env} is not set; "
                    f"export {recipe.api_key_env}=… with the key of {recipe.base_url}."
                )
        # With OPENAI_LOG=debug the client would write whole prompts to the log.
        logging.getLogger("openai").setLevel(logging.WARNING)
        self.recipe = recipe
        self._errors = (openai.APITimeoutError, openai.APIConnectionError, openai.APIStatusError)
        http_client = openai.DefaultHttpxClient(
            # Neither a proxy named in the environment nor a redirect may carry text to another machine.
            trust_env=is_remote,
            follow_redirects=False,
            limits=_limits(openai, recipe.concurrency),
        )
        # The client would add what machine and Python it runs on; that is nobody's business.
        less: Any = {name: openai.Omit() for name in _ABOUT_THIS_MACHINE}
        self._client: Any = openai.OpenAI(
            api_key=key,
            base_url=recipe.base_url,
            max_retries=0,
            timeout=openai.Timeout(recipe.timeout, connect=min(recipe.timeout, _CONNECT_SECONDS)),
            default_headers=less,
            http_client=http_client,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def call(self, request: Request) -> Reply | Failed:
        """Send a request once.

        Raises
        ------
        EndpointError
            If no request to this server can come to anything; with the remedy.
        """
        timed_out, lost, refused = self._errors
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=self.recipe.model,
                messages=[{"role": role, "content": content} for role, content in request.messages],
                temperature=self.recipe.temperature,
                seed=request.seed,
                **{self.recipe.limit_key: request.max_tokens or self.recipe.max_tokens},
            )
        except timed_out:
            return Failed(f"no answer within {self.recipe.timeout:g} s")
        except lost as error:
            opened = type(error.__cause__).__name__ != "ConnectError"
            return Failed("the connection broke off" if opened else "the connection was refused", reached=opened)
        except refused as error:
            return self._refused(error)
        return self._read(request, response.http_response.text)

    def _read(self, request: Request, body: str) -> Reply | Failed:
        """Take the answer out of a reply, whatever the server made of it."""
        try:
            content = json.loads(body)
        except ValueError:
            return Failed("a reply that is not JSON")
        choices = content.get("choices") if isinstance(content, dict) else None
        if not isinstance(choices, list) or not choices:
            return Failed("a reply without choices")
        choice = choices[0] if isinstance(choices[0], dict) else {}
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(message, dict) or not isinstance(text, str | None):
            return Failed("a reply without a message")
        usage = content.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        text = text or ""
        # Lone surrogates are legal in JSON and in no file.
        text = text.encode("utf-8", "replace").decode()
        finish = choice.get("finish_reason")
        model = content.get("model")
        return Reply(
            key=request.key,
            text=text,
            finish_reason=finish if isinstance(finish, str) else None,
            prompt_tokens=_count(usage.get("prompt_tokens"), request.prompt_tokens()),
            completion_tokens=_count(usage.get("completion_tokens"), -(-len(text) // 4)),
            model=model if isinstance(model, str) and model else self.recipe.model,
            failure=None,
        )

    def _refused(self, error: Any) -> Failed:
        """Tell apart what may heal, what is one request's matter, and what will never do."""
        status = int(error.status_code)
        code = _code(error)
        what = f"status {status}" + (f" ({code})" if code else "")
        where, recipe = self.recipe.base_url, self.recipe
        if status < 400:
            raise EndpointError(
                f"{where} answers with a redirect ({what}), which is not followed; name the address that it leads to "
                f"as endpoint.base_url."
            )
        if code in _NO_MORE_MONEY or status == 402:
            raise EndpointError(f"{where}: {what}: the account has no money left; fill it up, and start again.")
        if status in _HEALING or status >= 500:
            wait = retry_after(error.response.headers)
            return Failed(what, wait=wait, for_all=status == 429 and wait is not None)
        if status in _OF_ONE_REQUEST:
            return Failed(what, may_heal=False)
        if status in {401, 403}:
            named = (
                f"the key in the environment variable {recipe.api_key_env} is not accepted; set the right one"
                if recipe.api_key_env
                else "the server wants a key; name the environment variable that holds it as endpoint.api_key_env"
            )
            raise EndpointError(f"{where}: {what}: {named}.")
        if status == 404:
            known = ", ".join(self._models()) or "unknown"
            raise EndpointError(
                f"{where}: {what}: no model {recipe.model!r}, or no such address. Its models are: {known}. Correct "
                f"endpoint.model, or endpoint.base_url, which mostly ends with /v1."
            )
        raise EndpointError(f"{where}: {what}: the server does not take such requests; look into its log.")

    def _models(self) -> list[str]:
        """Return the names of the server's models, the first few, for an error message."""
        import openai

        try:
            found = self._client.models.list(timeout=5).data
            return [str(model.id) for model in found][:8]
        except (openai.OpenAIError, ValueError, TypeError, AttributeError):
            return []


def retry_after(headers: Any) -> float | None:
    """Return the seconds that a server asks to wait: ``Retry-After`` in seconds or as a date (RFC 9110, 10.2.3)."""
    value = str(headers.get("retry-after") or "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _LONGEST_WAIT) if seconds == seconds else None


def _limits(openai: Any, concurrency: int) -> Any:
    """Return the client's limits of connections, wide enough for all requests under way."""
    limits = openai.DEFAULT_CONNECTION_LIMITS
    return type(limits)(max_connections=concurrency + 1, max_keepalive_connections=concurrency + 1)


def _code(error: Any) -> str | None:
    """Return the server's word for an error if it is one word; its sentences may repeat the prompt."""
    body = error.body if isinstance(error.body, dict) else {}
    for value in (error.code, body.get("code"), body.get("type")):
        if isinstance(value, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{2,40}", value):
            return value
    return None


def _count(value: Any, otherwise: int) -> int:
    """Return a count of tokens; what a server leaves out or garbles is taken from the length of the text."""
    return value if isinstance(value, int) and value >= 0 and not isinstance(value, bool) else otherwise
