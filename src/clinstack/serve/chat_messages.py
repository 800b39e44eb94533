"""Messages of a chat as the note and the question that a stack was trained to read, and these as tokens.

::

    user        <note> CHIEF COMPLAINT: ... </note>   ─┐
                Why did the patient come?              ├─▶  note, question ─▶ the prompt of the stack ─▶ tokens
    assistant   Because of ...                         │    (earlier questions and answers are left out)
    user        Which drugs were given?               ─┘

A stack is trained on one note, one question, one answer. So the last message is the question, the note is the last one
between the marks, and what was said before is not read: a model that never saw a second turn would only be confused by
one. In messages without any mark the last paragraph is the question, and what stands before it the note. Tokens are
those that `clinstack generate` makes of the same note and question.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from clinstack.errors import InputError
from clinstack.recipe import PromptRecipe
from clinstack.tokens.encode import TextEncoder, document_ends
from clinstack.tokens.prompt_fit import Frame, PromptReport, fit_notes
from clinstack.tokens.prompts import Prompt

BEGIN, END = "<note>", "</note>"
"""Stand around a note in a message."""
_PARAGRAPHS = re.compile(r"(?s)(?:(.*)\n[^\S\n]*\n)?(.*)\Z")
"""What stands before the last empty line, if there is one, and what stands behind it."""


class MessageError(InputError):
    """A message that cannot become a prompt.

    Attributes
    ----------
    param : str
        Where it stands in the request.
    """

    def __init__(self, param: str, problem: str) -> None:
        super().__init__(f"{param}: {problem}")
        self.param = param


class Message(Protocol):
    """What is read of a message."""

    @property
    def role(self) -> str:
        """Whose it is."""
        ...

    @property
    def text(self) -> str:
        """The content, if it has parts, all of them."""
        ...


@dataclass(frozen=True)
class Conversation:
    """What a stack reads of messages.

    Parameters
    ----------
    note, question : str
        The note is empty where there was none.
    ignored : int
        Earlier messages that are not read.
    """

    note: str
    question: str
    ignored: int


def read_messages(messages: Sequence[Message], note: str | None = None) -> Conversation:
    """Return the note and the question of messages.

    Parameters
    ----------
    messages : sequence of Message
    note : str, optional
        The note, where the request has it apart from its messages.

    Raises
    ------
    MessageError
        If the last message is no question of the user, a mark has no counterpart, a note is given twice, or a message
        of the system says something that no stack was trained to read.
    """
    last = len(messages) - 1
    if last < 0 or messages[last].role != "user":
        raise MessageError("messages", "the last message must be the user's: it is the question")
    split = [_without_note(message, f"messages.{place}") for place, message in enumerate(messages)]
    notes = [inside for inside, _ in split if inside is not None]
    if note is not None and notes:
        raise MessageError("note", f"a message has a note between {BEGIN} and {END} too; give one of them")
    texts = [rest for _, rest in split]
    if note is None and not notes:
        notes, texts = _without_first_paragraphs(messages)
    question = texts[last].strip()
    if not question:
        raise MessageError(f"messages.{last}", "there is no question beside the note")
    found = notes[-1] if notes else ""
    return Conversation(found if note is None else note, question, sum(bool(text.strip()) for text in texts[:last]))


def _without_note(message: Message, where: str) -> tuple[str | None, str]:
    """Return what stands between the marks of a message, and its text without it.

    The last end mark counts: a note may quote one.
    """
    text = message.text
    inside: str | None = None
    if message.role != "assistant":
        start, end = text.find(BEGIN), text.rfind(END)
        if (start < 0) != (end < 0) or end < start:
            raise MessageError(where, f"it has {BEGIN} or {END} without the other; a note stands between both")
        if start >= 0:
            inside = text[start + len(BEGIN) : end].strip("\r\n")
            text = f"{text[:start]}\n{text[end + len(END) :]}"
    if message.role in ("system", "developer") and text.strip():
        raise MessageError(
            where,
            "a stack reads the system text that it was trained with and no other; leave the message out, or put the "
            f"note between {BEGIN} and {END}",
        )
    return inside, text


def _without_first_paragraphs(messages: Sequence[Message]) -> tuple[list[str], list[str]]:
    """Return the notes of unmarked messages of the user, what stands before the last paragraph, and the texts left."""
    notes, texts = [], []
    for message in messages:
        before, last = "", message.text
        if message.role == "user":
            before, last = _PARAGRAPHS.match(message.text.strip()).groups("")  # type: ignore[union-attr]
        if before.strip():
            notes.append(before.strip("\r\n"))
        texts.append(last)
    return notes, texts


@dataclass(frozen=True)
class EncodedQuestion:
    """A prompt as tokens.

    Parameters
    ----------
    ids : tuple of int
    cut : int
        Tokens of the note that the prompt does not have.
    ends : tuple of int
        Tokens that end the answer.
    """

    ids: tuple[int, ...]
    cut: int
    ends: tuple[int, ...]


class QuestionEncoder:
    """Makes prompts of one base. It may be used in another thread than the network's.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Copied: one that two threads use at once refuses to work.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        # `encode_prompts` makes one each time, which takes a second for a large vocabulary.
        self._encoder = TextEncoder(self._tokenizer)
        self._default = Prompt.of(PromptRecipe(), self._tokenizer)

    def encode(
        self, prompt: Prompt | None, note: str, question: str, max_tokens: int, new_tokens: int
    ) -> EncodedQuestion:
        """Return the prompt of a note and a question; a long note loses its middle.

        Parameters
        ----------
        prompt : Prompt or None
            The stack's; the one that `clinstack generate` gives an untouched base when None.
        max_tokens : int
            Of prompt and answer together.
        new_tokens : int
            Room for the answer.

        Raises
        ------
        InputError
            If the question does not fit even without the note; the message has numbers only.
        """
        prompt = prompt or self._default
        before = [] if prompt.chat_template is not None else document_ends(self._tokenizer)[0]
        room = max_tokens - new_tokens
        frame = Frame(partial(prompt.text, self._tokenizer, question=question), room - len(before), "")
        around = len(self._encoder.ids(self._encoder.encode([frame.render("")]))[0])
        if around > frame.room:
            raise InputError(
                f"the question and what stands around it have {around + len(before):,} tokens; the model reads and "
                f"writes {max_tokens:,} together, of which {new_tokens:,} are for the answer"
            )
        report = PromptReport()
        ids = fit_notes(self._encoder, [frame], [note], None, report)[0]
        return EncodedQuestion((*before, *ids), report.cut, tuple(prompt.end_tokens(self._tokenizer)))
