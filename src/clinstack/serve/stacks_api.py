"""What is served, and changing it while it runs: ``GET /v1/tasks``, ``GET /v1/models``, ``PUT /v1/stacks/{name}``."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Body, Request, Response
from fastapi import Path as InPath

from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file
from clinstack.model.lineage import is_trained_on_synthetic, stack_folder
from clinstack.serve.failures import ApiError
from clinstack.serve.observe import note_audit
from clinstack.serve.openapi import ERRORS
from clinstack.serve.predict_api import model_of
from clinstack.serve.refusals import UnknownStack
from clinstack.serve.schemas import AddStack, ModelInfo, ModelsResponse, TaskInfo, TasksResponse
from clinstack.serve.settings import ServeSettings, StackName

if TYPE_CHECKING:
    from clinstack.serve.queue import RequestQueue
    from clinstack.serve.served_stack import ServedStack

MOST_FILES = 1000
"""A Stack has a few dozen files; a folder with more is none."""


def router(queue: RequestQueue, settings: ServeSettings) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    created = int(time.time())

    @routes.get("/v1/tasks", summary="List what is served", response_model=TasksResponse, tags=["stacks"])
    async def tasks() -> TasksResponse:
        """List classifiers and instruction stacks."""
        return TasksResponse(model=model_of(queue.shared), tasks=[task_info(stack) for stack in queue.stacks.values()])

    @routes.get("/v1/models", summary="List models for chat", response_model=ModelsResponse, tags=["instructions"])
    async def models() -> ModelsResponse:
        """List the instruction stacks, and the untouched base with the prompt of each."""
        names = [stack.name for stack in queue.stacks.values() if stack.task is None]
        return ModelsResponse(
            data=[ModelInfo(id=name, created=created) for stack in names for name in (stack, f"{stack}:base")]
        )

    @routes.put(
        "/v1/stacks/{name}",
        summary="Add a stack while the server runs",
        response_model=TaskInfo,
        status_code=201,
        responses={
            200: {"model": TaskInfo, "description": "It is served already."},
            **{code: ERRORS[code] for code in (404, 409)},
        },
        tags=["stacks"],
    )
    async def add(
        name: Annotated[StackName, InPath()], body: Annotated[AddStack, Body()], request: Request, response: Response
    ) -> TaskInfo:
        """Serve a Stack or a finished Run below the server's stacks_root from now on.

        Requests that wait or come meanwhile are answered.
        """
        note_audit(request, tasks=[name])
        folder = folder_below(settings.stacks_root, body.folder)
        present = queue.stacks.get(name)
        if present is not None:
            if present.fingerprint != sha256_file(stack_folder(folder) / "stack.json"):
                raise ApiError(409, "Another stack of this name is served: DELETE it, or use a new name.", param="name")
            response.status_code = 200
            return task_info(present)
        try:
            return task_info(await queue.add(name, folder))
        except InputError as error:
            raise ApiError(409, str(error), param="folder") from None

    @routes.delete(
        "/v1/stacks/{name}",
        summary="Take a stack away while the server runs",
        status_code=204,
        responses={404: ERRORS[404]},
        tags=["stacks"],
    )
    async def remove(name: Annotated[StackName, InPath()], request: Request) -> Response:
        """Serve a stack no longer. Requests for it that were taken are answered first."""
        note_audit(request, tasks=[name])
        if settings.stacks_root is None:
            raise _closed()
        try:
            await queue.remove(name)
        except UnknownStack:
            raise ApiError(404, "No stack of this name is served.", param="name") from None
        return Response(status_code=204)

    return routes


def task_info(stack: ServedStack) -> TaskInfo:
    """Return what the API says of a stack."""
    task = stack.task
    return TaskInfo(
        name=stack.name,
        type="instructions" if task is None else "classifier",
        kind=None if task is None else task.kind,
        classes=[] if task is None else list(task.classes),
        description="" if task is None else task.description,
        stack=stack.fingerprint,
        label=stack.label,
        calibrated=bool(stack.calibration and stack.calibration.get("isotonic") is not None),
        max_tokens=stack.max_tokens,
        synthetic=is_synthetic(stack.folder),
    )


is_synthetic = cache(is_trained_on_synthetic)
"""Read once: a Stack does not change while it is served."""


def folder_below(root: Path | None, named: str) -> Path:
    """Return the Stack or Run that a client names, below the folder that the operator opened, and nothing else.

    Raises
    ------
    ApiError
        No folder is open; it is elsewhere, or leads elsewhere by ``..`` or a link; or there is none. The messages do
        not tell whether something exists outside.
    """
    if root is None:
        raise _closed()
    root = root.resolve()
    refused = ApiError(403, "folder: not below the folder that this server may open (or a link).", param="folder")
    if "\0" in named or ".." in Path(named).parts:
        raise refused
    folder = root / named
    if not folder.is_relative_to(root) or folder == root:
        raise refused
    try:
        for place in (*reversed(folder.relative_to(root).parents[:-1]), folder.relative_to(root)):
            if (root / place).is_symlink():
                raise refused
        if not folder.is_dir():
            raise ApiError(404, "folder: there is none below the folder that this server may open.", param="folder")
        inside = (folder / "stack") if (folder / "run.json").is_file() else folder
        _refuse_links(folder, inside, refused)
    except OSError:  # such as a name too long for the file system
        raise refused from None
    return folder


def _refuse_links(folder: Path, stack: Path, refused: ApiError) -> None:
    """Refuse a Stack that leads out of its folder, by a link or by what its record calls an adapter's folder."""
    if stack.is_symlink():
        raise refused
    for number, item in enumerate(stack.rglob("*")):
        if item.is_symlink() or number >= MOST_FILES:
            raise refused
    try:
        record = read_json(stack / "stack.json")
        folders = [item["folder"] for item in record["adapters"]]
        folders += [record["head"]["folder"]] if record["head"] else []
    except (OSError, ValueError, KeyError, TypeError):
        raise ApiError(404, "folder: it is neither a Stack nor a finished Run.", param="folder") from None
    if any(not isinstance(item, str) or Path(item).name != item or item == ".." for item in folders):
        raise refused


def _closed() -> ApiError:
    return ApiError(403, "Stacks cannot be changed here: the server was started without --stacks-root.")
