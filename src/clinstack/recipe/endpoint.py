"""The part of a recipe that names an OpenAI-compatible endpoint, what may be asked of it, and what it costs."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from clinstack.recipe.section import Section


class EndpointRecipe(Section):
    """An OpenAI-compatible server: vLLM, ``transformers serve``, or, when asked for, one of another house."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Up to and with ``/v1``."""
    model: str = Field(min_length=1)
    """As the server calls it."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    max_tokens: int = Field(default=1024, ge=1)
    """Of an answer, where the request says nothing else."""
    limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How the server calls the limit; OpenAI's newer models know ``max_completion_tokens`` alone."""
    concurrency: int = Field(default=8, ge=1, le=1024)
    """Requests that are under way at a time."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """In any 60 seconds; None for no limit."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Of prompts and answers, in any 60 seconds; None for no limit."""
    timeout: float = Field(default=300.0, gt=0)
    """Seconds that the server may be silent before a request is given up and tried again."""
    retries: int = Field(default=5, ge=0)
    """Of a request that failed in a way that may heal."""
    backoff: float = Field(default=1.0, gt=0)
    """Seconds before the first retry; doubled for each further one, up to a minute."""
    token_budget: int | None = Field(default=None, ge=1)
    """Tokens of all replies that the store may come to hold, prompts and answers; None for no limit."""
    api_key_env: str | None = None
    """Environment variable that holds the key; a server on this machine mostly needs none."""
    allow_remote: bool = False
    """Whether text may go to a host that is not this machine or in a private network."""
    price_prompt: float | None = Field(default=None, ge=0)
    """Of a million prompt tokens, in whatever money."""
    price_completion: float | None = Field(default=None, ge=0)
    """Of a million answered tokens."""
    tokens_per_second: float = Field(default=30.0, gt=0)
    """Answered tokens that one request is assumed to get in a second, for the estimate of the time."""

    @field_validator("base_url")
    @classmethod
    def _has_a_host(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError("not an address such as http://127.0.0.1:8000/v1") from None
        if parts.scheme not in {"http", "https"} or not host:
            raise ValueError("not an address such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise ValueError("holds a password, and recipes are kept; name an environment variable as api_key_env")
        if parts.query or parts.fragment:
            raise ValueError("must end with the path, such as http://127.0.0.1:8000/v1")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        # A key that is pasted here would be written into every resolved recipe.
        if value is not None and (not value.isidentifier() or value.startswith("sk_")):
            raise ValueError("is the name of an environment variable such as OPENAI_API_KEY, not the key itself")
        return value
