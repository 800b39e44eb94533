"""The API's description: what FastAPI writes, with this server's limits, its token and its errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from clinstack.serve.schemas import DISCLAIMER, ErrorResponse
from clinstack.serve.settings import ServeSettings

_MEANINGS = {
    401: "The token is wrong or missing.",
    403: "Not allowed here.",
    404: "There is no such thing here.",
    408: "The body did not arrive in time.",
    409: "What is served does not allow it.",
    413: "The body, or what it comes to in tokens, is too large.",
    422: "The request is wrong; `param` says where.",
    429: "Too much at once; Retry-After says when to come back.",
    500: "Something failed here.",
    503: "The server is stopping.",
    504: "It took too long.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorResponse, "description": meaning} for code, meaning in _MEANINGS.items()
}
"""By status, as FastAPI's ``responses`` takes them."""
EVERYWHERE: dict[int | str, dict[str, Any]] = {code: ERRORS[code] for code in (401, 403, 408, 413, 422, 429, 500, 503)}
"""What any route behind the token may answer."""


def describe_api(app: FastAPI, settings: ServeSettings, version: str) -> None:
    """Let the app's OpenAPI document say what this server takes."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title="clinstack", version=version, description=DISCLAIMER, routes=app.routes)
            _add_limits(made["components"]["schemas"], settings)
            _add_token(made, settings)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to do it


def _add_limits(schemas: dict[str, Any], settings: ServeSettings) -> None:
    schemas["PredictMany"]["properties"]["notes"]["maxItems"] = settings.max_notes
    texts = [
        schemas["PredictOne"]["properties"]["note"],
        schemas["Note"]["properties"]["text"],
        *(item for item in schemas["PredictMany"]["properties"]["notes"]["items"]["anyOf"] if "type" in item),
    ]
    for text in texts:
        text["maxLength"] = settings.max_characters


def _add_token(document: dict[str, Any], settings: ServeSettings) -> None:
    if settings.no_token:
        return
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        if path not in {"/healthz", "/readyz"}:
            for operation in operations.values():
                operation["security"] = [{"token": []}]
