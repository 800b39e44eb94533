"""The web page: static files on the same server as the API, without a token, without secrets, without a build step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI, Response

from clinstack.errors import InputError

CONTENT_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "answers.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "elements.js": "text/javascript; charset=utf-8",
    "predictions.js": "text/javascript; charset=utf-8",
    "samples.json": "application/json",
    "icon.svg": "image/svg+xml",
}
"""The page's files and what each is: nothing else in the folder is served."""

PUBLIC_PATHS = frozenset({"/", *(f"/page/{name}" for name in CONTENT_TYPES if name != "index.html")})
"""Paths that are answered without a token: they hold nothing that is not in the package."""

HEADERS = {
    # No script or style in the markup, nothing from elsewhere, no form that a browser could send by itself, no frame
    # around it; and no script turns a text into markup.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The page of an older version must not meet the API of a newer one.
    "Cache-Control": "no-cache",
}


def _answering(content: bytes, content_type: str) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return Response(content, headers=HEADERS, media_type=content_type)

    return answer


def mount(app: FastAPI) -> None:
    """Answer ``/`` with the page and ``/page/…`` with its files.

    The files are read once, here: what a server serves does not change under it.

    Raises
    ------
    InputError
        When a file of the page is missing from the installation.
    """
    folder = files("clinstack.serve") / "page"
    for name, content_type in CONTENT_TYPES.items():
        try:
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            raise InputError(f"serve/page/{name} is missing from this installation: install clinstack again.") from None
        path = "/" if name == "index.html" else f"/page/{name}"
        answer = _answering(content, content_type)
        app.add_api_route(path, answer, methods=["GET", "HEAD"], include_in_schema=False, response_model=None)
