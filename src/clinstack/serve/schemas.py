"""The API's requests and answers. Their JSON Schema is the server's OpenAPI document; clients may rely on it.

What a client cannot send is said here as exactly as JSON Schema can, so that a program that reads the document knows
beforehand what is refused. The limits that a server is started with are added by `clinstack.serve.app`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    WithJsonSchema,
)

from clinstack.evaluate.calibration import Method
from clinstack.tasks import Kind

DISCLAIMER = (
    "Research software. An aid for people who know its limits; not a medical device, and no replacement for clinicians."
)
"""Stands in every answer and on the page."""

DEFAULT_TOP = 20
"""Classes of a multilabel task that an answer lists when a request does not say how many."""


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# The bound inside the validator, else it is missing in the JSON Schema.
Positive = Annotated[int, Field(strict=True, ge=1), BeforeValidator(_whole)]
"""An integer as JSON Schema means it: 4.0 is one, "4" and true are none."""
NoteText = Annotated[str, StringConstraints(min_length=1)]
NoteId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127}$")]
"""Stands in the audit log as it is: a pattern that no sentence of a note matches."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


# ---------------------------------------------------------------------- POST /v1/predict


class Note(_Request):
    """A note, with a name that comes back in the answer and stands in the audit log."""

    id: NoteId = Field(description="Yours; no name of a patient. It is written to the audit log as it is.")
    text: NoteText


class _Predict(_Request):
    # One mistake is enough to refuse a list; of a million the messages alone would fill the memory.
    tasks: Annotated[list[str], Field(min_length=1, fail_fast=True)] | None = Field(
        default=None, description="Names from GET /v1/tasks; null: every classifier."
    )
    calibration: Method | None = Field(
        default=None,
        description="null: isotonic where the stack has a fit, else none. temperature and isotonic need one.",
    )
    top: Positive | None = Field(
        default=DEFAULT_TOP,
        description="Of a multilabel task, so many classes: the most probable first. null: all, in the task's order.",
    )


class PredictOne(_Predict):
    """One note."""

    note: NoteText


class PredictMany(_Predict):
    """Several notes, as plain texts or with an id each."""

    notes: list[NoteText | Note] = Field(min_length=1, fail_fast=True)


MOST_FIELDS = 20
"""A body with more has fields that nobody knows, and would get a message for each."""


def _one_or_many(body: Any) -> str:
    if isinstance(body, dict) and len(body) > MOST_FIELDS:
        return "unknown"
    fields = body if isinstance(body, dict) else vars(body) if isinstance(body, _Predict) else {}
    return "one" if "note" in fields else "many"


PredictRequest = Annotated[
    Annotated[PredictOne, Tag("one")] | Annotated[PredictMany, Tag("many")], Discriminator(_one_or_many)
]
"""Either ``note`` or ``notes``."""


class Model(_Answer):
    """The base that all stacks stand on."""

    base: str
    fingerprint: str


class ClassScore(_Answer):
    """One class of a task for one note."""

    name: str
    logit: float = Field(description="What the head gave; of two classes, the second less the first is the score.")
    probability: float = Field(ge=0, le=1)
    interval: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        description="95 % band of the calibrated probability: what the size of the validation data leaves open."
    )
    threshold: float | None = Field(
        ge=0, le=1, description="Of decisions, chosen on validation patients, as a probability of the same calibration."
    )
    above_threshold: bool | None = Field(
        description="Whether the score is at or above the threshold; null where there is none: of several classes that "
        "exclude each other, of the first of two, of a class that validation patients do not have."
    )


class TaskPrediction(_Answer):
    """One task for one note."""

    stack: str = Field(description="Fingerprint of the stack: sha256 of its stack.json.")
    kind: Kind
    calibrated: bool
    calibration: Method
    classes: list[ClassScore]
    omitted: int = Field(ge=0, description="Less probable classes that `top` left out.")


class Prediction(_Answer):
    """All tasks for one note."""

    id: str = Field(description="As given; the note's place from 0 where none was.")
    tokens: int = Field(ge=0, description="Tokens that the model read; of several tasks, the most.")
    cut_tokens: int = Field(ge=0, description="Tokens that did not fit and were not read; of several tasks, the most.")
    tasks: dict[str, TaskPrediction]


class PredictResponse(_Answer):
    """Predictions in the order of the notes."""

    model: Model
    predictions: list[Prediction]
    disclaimer: str = DISCLAIMER


# ---------------------------------------------------------------------- GET /v1/tasks, GET /v1/models


class TaskInfo(_Answer):
    """One stack that is served."""

    name: str
    type: Literal["classifier", "instructions"]
    kind: Kind | None = Field(description="null for instructions")
    classes: list[str]
    description: str
    stack: str = Field(description="Fingerprint: sha256 of its stack.json.")
    label: str = Field(description="Its adapters, from the base upwards.")
    calibrated: bool
    max_tokens: int = Field(ge=1, description="The longest text, or the longest chunk of one.")
    synthetic: bool | None = Field(description="Whether it was trained on invented patients; null: not known.")


class TasksResponse(_Answer):
    """What is served."""

    model: Model
    tasks: list[TaskInfo]
    disclaimer: str = DISCLAIMER


class ModelInfo(_Answer):
    """A stack as OpenAI's clients list models."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(ge=0, description="Seconds since 1970 at which the server read it.")
    owned_by: Literal["clinstack"] = "clinstack"


class ModelsResponse(_Answer):
    """The instruction stacks, and the untouched base with the prompt of each, as ``NAME:base``."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


# ---------------------------------------------------------------------- PUT and DELETE /v1/stacks/{name}


class AddStack(_Request):
    """A Stack or a finished Run to serve from now on."""

    folder: Annotated[str, StringConstraints(min_length=1, max_length=1000)] = Field(
        description="Below the folder that the server was given as stacks_root; relative to it, or absolute."
    )


# ---------------------------------------------------------------------- health and errors


class Health(_Answer):
    """Nothing but whether it lives."""

    status: Literal["ok", "ready", "starting", "draining", "failed"]


class ErrorDetail(_Answer):
    """What went wrong. Never what was sent."""

    type: Literal[
        "authentication_error",
        "client_closed_request",
        "conflict",
        "forbidden",
        "internal_error",
        "invalid_request_error",
        "method_not_allowed",
        "not_found",
        "overloaded",
        "payload_too_large",
        "rate_limited",
        "request_timeout",
        "timeout",
        "unavailable",
    ]
    message: str
    param: str | None = Field(default=None, description="Where in the request, such as notes.3.text")
    code: Annotated[None, WithJsonSchema({"type": "null"})] = None


class ErrorResponse(_Answer):
    """The shape of every error, as OpenAI's clients read it."""

    error: ErrorDetail
