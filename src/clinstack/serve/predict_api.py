"""``POST /v1/predict``: one note or many, one task or several, in one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Body, Request

from clinstack.evaluate.calibration import chosen_method
from clinstack.serve.answers import task_predictions
from clinstack.serve.failures import ApiError
from clinstack.serve.observe import Metrics, note_audit
from clinstack.serve.openapi import ERRORS
from clinstack.serve.schemas import Model, Note, Prediction, PredictMany, PredictOne, PredictRequest, PredictResponse
from clinstack.serve.security import CLIENT
from clinstack.serve.settings import ServeSettings

if TYPE_CHECKING:
    from clinstack.serve.queue import RequestQueue
    from clinstack.serve.served_stack import ServedStack
    from clinstack.serve.shared_base import SharedBase


Result = TypeVar("Result")


def router(queue: RequestQueue, settings: ServeSettings, metrics: Metrics) -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.post(
        "/v1/predict",
        summary="Score notes",
        response_model=PredictResponse,
        responses={code: ERRORS[code] for code in (404, 409, 504)},
        tags=["classifiers"],
    )
    async def predict(body: Annotated[PredictRequest, Body()], request: Request) -> PredictResponse:
        """Score one note or many with one classifier or several.

        All notes and tasks of a request are answered together, or none is.
        """
        notes = notes_of(body, settings)
        chosen = chosen_stacks(queue.stacks, body.tasks)
        methods = {}
        for stack in chosen:
            method = chosen_method(stack.calibration, body.calibration)
            if method is None:
                raise ApiError(409, f"The stack of {stack.name} has no fit of {body.calibration}.", param="calibration")
            methods[stack.name] = method
        ids = [note.id for note in notes if isinstance(note, Note)]
        note_audit(request, tasks=[stack.name for stack in chosen], notes=len(notes), ids=ids)

        texts = [note.text if isinstance(note, Note) else note for note in notes]
        items = [(stack.name, text) for text in texts for stack in chosen]
        # By address too: clients with the same token take turns as well.
        client = f"{request.scope[CLIENT]} {request.client.host if request.client else ''}"
        scored = await while_connected(request, queue.classify(items, settings.timeout_s, client=client))
        rows = [scored[start : start + len(chosen)] for start in range(0, len(scored), len(chosen))]
        by_stack = [
            task_predictions(
                task,
                stack.fingerprint,
                stack.calibration,
                np.stack([row[place].logits for row in rows]),
                methods[stack.name],
                body.top,
            )
            for place, stack in enumerate(chosen)
            if (task := stack.task) is not None
        ]
        for place, stack in enumerate(chosen):
            metrics.notes.labels(stack.name).inc(len(rows))
            metrics.tokens.labels(stack.name).inc(sum(row[place].tokens for row in rows))
        tokens = sum(part.tokens for row in rows for part in row)
        note_audit(request, tasks=[stack.name for stack in chosen], notes=len(notes), ids=ids, tokens=tokens)
        return PredictResponse(
            model=model_of(queue.shared),
            predictions=[
                Prediction(
                    id=note.id if isinstance(note, Note) else str(place),
                    tokens=max(part.tokens for part in rows[place]),
                    cut_tokens=max(part.cut for part in rows[place]),
                    tasks={stack.name: by_stack[column][place] for column, stack in enumerate(chosen)},
                )
                for place, note in enumerate(notes)
            ],
        )

    return routes


def notes_of(body: PredictOne | PredictMany, settings: ServeSettings) -> list[str | Note]:
    """Return a request's notes.

    Raises
    ------
    ApiError
        Too many, or one that is too long.
    """
    notes: list[str | Note] = [body.note] if isinstance(body, PredictOne) else list(body.notes)
    if len(notes) > settings.max_notes:
        raise ApiError(422, f"notes: at most {settings.max_notes} in one request here.", param="notes")
    for place, note in enumerate(notes):
        if len(note.text if isinstance(note, Note) else note) > settings.max_characters:
            where = "note" if isinstance(body, PredictOne) else f"notes.{place}"
            where += ".text" if isinstance(note, Note) else ""
            raise ApiError(422, f"{where}: a note has at most {settings.max_characters} characters here.", param=where)
    return notes


def chosen_stacks(served: Mapping[str, ServedStack], names: list[str] | None) -> list[ServedStack]:
    """Return the classifiers that a request names, each once; all where it names none.

    Raises
    ------
    ApiError
        A name that is none of a classifier. The message does not repeat it.
    """
    if names is None:
        stacks = [stack for stack in served.values() if stack.task is not None]
        if not stacks:
            raise ApiError(404, "No classifier is served here.", param="tasks")
        return stacks
    stacks = []
    for place, name in enumerate(names):
        stack = served.get(name)
        if stack is None or stack.task is None:
            what = "no such task is served here" if stack is None else "it answers questions: use /v1/chat/completions"
            raise ApiError(404, f"tasks.{place}: {what}; GET /v1/tasks lists what is.", param=f"tasks.{place}")
        if stack not in stacks:
            stacks.append(stack)
    return stacks


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await work as long as the client is there; what nobody waits for gives its place free.

    Raises
    ------
    ApiError
        The client has gone away; nobody reads the answer.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "The client has gone away.")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def model_of(shared: SharedBase) -> Model:
    """Return what an answer says of the base."""
    return Model(base=shared.base.name, fingerprint=shared.model_fingerprint)
