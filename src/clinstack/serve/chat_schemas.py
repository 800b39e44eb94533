"""What ``POST /v1/chat/completions`` takes and gives: the part of OpenAI's API that a stack can keep to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator
from pydantic_core import PydanticCustomError

from clinstack.serve.schemas import DISCLAIMER

MOST_STOPS = 4
_ONE_ANSWER = "one answer of plain text is written"
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "one answer is written; ask several times, with another seed each"),
    "best_of": ((1,), _ONE_ANSWER),
    "tools": (([],), "a stack calls no tools"),
    "tool_choice": (("none", "auto"), "a stack calls no tools"),
    "functions": (([],), "a stack calls no functions"),
    "function_call": (("none", "auto"), "a stack calls no functions"),
    "logprobs": ((False,), "log-probabilities are not given"),
    "top_logprobs": ((0,), "log-probabilities are not given"),
    "response_format": (({"type": "text"},), "answers are plain text"),
    "modalities": ((["text"],), "answers are plain text"),
    "audio": ((), "answers are plain text"),
    "logit_bias": (({},), "scores of tokens are not changed"),
    "presence_penalty": ((0,), "scores of tokens are not changed"),
    "frequency_penalty": ((0,), "scores of tokens are not changed"),
    "repetition_penalty": ((1,), "scores of tokens are not changed"),
    "min_p": ((0,), "use top_p"),
    "top_k": ((-1, 0), "use top_p"),
    "prediction": ((), _ONE_ANSWER),
    "reasoning_effort": (("none",), "a stack answers at once"),
    "verbosity": (("medium",), "max_tokens is what limits an answer"),
    "web_search_options": ((), "a stack reads the note alone"),
}
"""Parameters that would change the answer and are not there, with the values that change nothing, and what to say."""
IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
"""Parameters that change no answer. Nothing is stored, and who asks is known by the token."""


class TextPart(BaseModel):
    """A part of a message; text is all that there is."""

    model_config = ConfigDict(frozen=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] = Field(
        description="The last one, the user's, is the question. A note stands between <note> and </note>, or before "
        "the last paragraph."
    )

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    model_config = ConfigDict(frozen=True)

    include_usage: Annotated[bool, Field(strict=True)] = False


StopText = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class ChatRequest(BaseModel):
    """One question about one note. Parameters of OpenAI's that change no answer may stand in it too."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    model: Annotated[str, StringConstraints(max_length=200)] = Field(
        description="A stack's name, or NAME:base for the untouched base with the prompt of that stack."
    )
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    note: str | None = Field(default=None, description="The note, where no message has it. Not in OpenAI's API.")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="New ones; 128 when not given, at most half of what the stack reads."
    )
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="The same under its newer name."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=None, description="0, the likeliest token each time, when not given."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(
        default=None, description="The same seed draws the same answer."
    )
    stop: StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS)] | None = None
    stream: Annotated[bool, Field(strict=True)] | None = None
    stream_options: StreamOptions | None = None

    @field_validator("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", mode="before")
    @classmethod
    def _is_a_number(cls, value: Any) -> Any:
        # As JSON Schema has it: 4.0 is an integer, "4" and true are no numbers. Pydantic would take all of these, or
        # with ``strict`` not even the first.
        if isinstance(value, (bool, str)):
            raise PydanticCustomError("number", "Input should be a number")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that the answer ends before."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def others(self) -> Mapping[str, Any]:
        """What else the request has."""
        return self.model_extra or {}


class AnswerMessage(BaseModel):
    """What was written."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The one answer."""

    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length"] = Field(
        description="stop: the model ended the answer, or a stop came; length: max_tokens were written."
    )
    logprobs: None = None


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    note_tokens_cut: int = Field(description="Tokens of the note that did not fit and were not read: its middle.")
    messages_ignored: int = Field(description="Earlier messages that were not read.")


class ChatCompletion(BaseModel):
    """An answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str = Field(description="Of the stack: sha256 of its stack.json.")
    choices: list[Choice]
    usage: Usage
    disclaimer: str = DISCLAIMER
