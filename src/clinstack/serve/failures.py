"""Errors of the API: one shape, and never a word of what was sent.

An `ApiError` may be raised anywhere beneath the app. Anything else that is raised becomes a 500 without detail; its
type and place go to the log, its message does not, because a library may have written text of a note into it.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

from clinstack.serve.schemas import ErrorDetail, ErrorResponse

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "payload_too_large",
    422: "invalid_request_error",
    429: "rate_limited",
    499: "client_closed_request",
    500: "internal_error",
    503: "unavailable",
    504: "timeout",
}


class ApiError(Exception):
    """An answer other than 200. Its message is shown to the client as it is.

    Parameters
    ----------
    status : int
        Of HTTP.
    message : str
        What is wrong and what to do; nothing of the request.
    param : str, optional
        Where in the request, such as ``notes.3.text``.
    retry_after : float, optional
        Seconds after which to try again.
    kind : str, optional
        The error's type; by the status when not given.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, retry_after: float | None = None, kind: str = ""
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.retry_after = status, message, param, retry_after
        self.kind = kind or TYPES[status]

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """Return the answer."""
        detail = ErrorDetail.model_validate({"type": self.kind, "message": self.message, "param": self.param})
        waits = {} if self.retry_after is None else {"Retry-After": str(max(1, -int(-self.retry_after // 1)))}
        return JSONResponse(ErrorResponse(error=detail).model_dump(), self.status, headers={**waits, **(headers or {})})


def validation_error(errors: Sequence[Any]) -> ApiError:
    """Return what pydantic found, as the first thing to mend and where it is.

    Parameters
    ----------
    errors : sequence of dict
        As ``ValidationError.errors()`` gives them; ``input`` and ``ctx`` hold what was sent and are not looked at.
    """
    # Of a value that may have one of several shapes, pydantic tells what is wrong with each; the deepest place is the
    # one that somebody meant.
    chosen = max(errors, key=lambda item: len(_place(item["loc"])))
    place = ".".join(map(str, _place(chosen["loc"])))
    messages = {
        "json_invalid": "the body is no JSON",
        "missing": "this field is missing",
        "extra_forbidden": "there is no such field",
        "string_unicode": "this is no valid Unicode",
        "union_tag_invalid": "there are fields that nobody knows",
        # The key itself comes from the request; it is in no message and, being no field's name, in no place either.
        "value_error": "this value is refused",
        "assertion_error": "this value is refused",
    }
    message = messages.get(chosen["type"], str(chosen["msg"]))
    if chosen["type"] in {"json_invalid", "extra_forbidden"}:
        place = ".".join(map(str, _place(chosen["loc"])[:-1]))
    return ApiError(422, f"{place}: {message}" if place else message, param=place or None)


def _place(loc: Sequence[int | str]) -> list[int | str]:
    """Return where a value is without the words that pydantic adds for the members of a union."""
    added = {"body", "one", "many", "constrained-str", "str", "Note"}
    return [part for part in loc if isinstance(part, int) or part not in added]


def describe(error: BaseException) -> str:
    """Return an exception's type and where it came from, without its message, which may hold text of a note."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    cause = error.__cause__ or error.__context__
    return f"{type(error).__name__} at {where or 'an unknown place'}" + (f"; after {describe(cause)}" if cause else "")
