"""A chat in the terminal: questions about a note, answered by a stack, by its untouched base, or by both side by side.

Nothing is written to disk: notes, questions and answers are confidential. Every question is asked alone with the note,
as the stack was trained; earlier questions and answers are not read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from clinstack.engine.answers import context_of_base
from clinstack.errors import ClinstackError, InputError
from clinstack.model.stack import Stack
from clinstack.recipe import suggest
from clinstack.recipe.generate import DecodingRecipe
from clinstack.serve.chat_messages import EncodedQuestion, QuestionEncoder
from clinstack.serve.decoding import Answer, Decoder, DecodingRequest
from clinstack.serve.lanes import StackLanes

Who = Literal["stack", "base", "both"]
DEFAULT_NEW_TOKENS = 128
"""As `clinstack generate` has it."""
HELP = """\
/note FILE   read a note (UTF-8 text); /note alone forgets it
/base        let the untouched base answer; again: the stack
/both        let both answer side by side; again: the stack
/help        this
/quit        the end, as Control-D

Any other line is a question about the note. It is asked alone: earlier questions and answers are not read.
Control-C stops an answer. Nothing is written to disk."""
_SHOWN = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""Characters that a model may write and a terminal would obey: they are not shown."""


@dataclass
class Written:
    """An answer as it is shown.

    Parameters
    ----------
    encoded : EncodedQuestion
    answer : Answer
    text : str
        So far.
    """

    encoded: EncodedQuestion
    answer: Answer
    text: str = ""


class ChatModel:
    """A stack, or a base alone, that answers questions about notes.

    Parameters
    ----------
    stack : Stack
        A causal language model, on the device where it shall compute.
    max_new_tokens : int, optional
        Of an answer; 128, or half of what the stack reads, when not given.

    Raises
    ------
    InputError
        If it is a classifier, or leaves no room for a prompt.
    """

    def __init__(self, stack: Stack, max_new_tokens: int | None = None) -> None:
        self.stack = stack
        self._lanes = StackLanes(stack)
        self.max_tokens = stack.max_tokens if stack.adapters else context_of_base(stack)
        self.max_new_tokens = max_new_tokens or min(DEFAULT_NEW_TOKENS, self.max_tokens // 2)
        if self.max_new_tokens >= self.max_tokens:
            raise InputError(
                f"--max-new-tokens: the model reads and writes {self.max_tokens} tokens together; lower it."
            )
        self._encoder = QuestionEncoder(stack.tokenizer)

    def answer(self, note: str, question: str, who: Sequence[bool]) -> Iterator[list[Written]]:
        """Answer a question, and yield all answers after each token.

        Parameters
        ----------
        note, question : str
        who : sequence of bool
            For each answer, whether it is the untouched base's.

        Raises
        ------
        InputError
            If the question does not fit.
        ClinstackError
            If an answer could not be written, such as where memory is full.
        """
        encoded = self._encoder.encode(self.stack.prompt, note, question, self.max_tokens, self.max_new_tokens)
        settings = DecodingRecipe(max_new_tokens=self.max_new_tokens)
        # A new one each time: Control-C may have stopped the last one in the middle of a step.
        decoder = Decoder(self._lanes)
        written = [
            Written(encoded, decoder.start(DecodingRequest("", encoded.ids, encoded.ends, settings, untouched)))
            for untouched in who
        ]
        while not decoder.is_idle:
            decoder.step()
            for one in written:
                one.text += one.answer.take()
                if one.answer.problem is not None:
                    raise ClinstackError(f"chat: {one.answer.problem}.")
            yield written


class Chat:
    """One session.

    Parameters
    ----------
    model : ChatModel
    console : Console
        Where answers go.
    """

    def __init__(self, model: ChatModel, console: Console) -> None:
        self._model, self._console = model, console
        self.note = ""
        self.who: Who = "stack"

    @property
    def names(self) -> dict[Who, str]:
        """What stack and base are called."""
        stack = self._model.stack
        return {"stack": stack.label, "base": f"untouched {stack.base.name}", "both": "both"}

    def read_note(self, file: Path) -> None:
        """Ask about another note from now on.

        Raises
        ------
        InputError
            If the file cannot be read.
        """
        try:
            self.note = file.read_text(encoding="utf-8").strip("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: byte {error.start} is not UTF-8.") from None
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror}); name a text file.") from None

    # ------------------------------------------------------------------ a person

    def run(self, read_line: Callable[[str], str]) -> None:
        """Talk until the person ends it.

        Parameters
        ----------
        read_line : callable
            Shows a prompt and returns a line; EOFError ends the session.
        """
        while True:
            try:
                line = read_line(f"{self.who}> ").strip()
            except EOFError:
                self._console.print()
                return
            except KeyboardInterrupt:
                self._console.print("\n[dim]/quit, or Control-D, ends the chat.[/]")
                continue
            try:
                if line in ("/quit", "/exit"):
                    return
                if line.startswith("/"):
                    self._console.print(escape(self.command(line)), style="dim", highlight=False)
                elif line:
                    self._show(line)
            except KeyboardInterrupt:
                self._console.print("\n[dim]stopped[/]")
            except ClinstackError as error:
                self._console.print(f"[red]{escape(str(error))}[/]", highlight=False)

    def command(self, line: str) -> str:
        """Do what a line beginning with ``/`` says, and return what to tell.

        Raises
        ------
        InputError
            If it is no command, or its file cannot be read.
        """
        word, _, rest = line.partition(" ")
        if word == "/help":
            return HELP
        if word == "/note":
            if not rest.strip():
                self.note = ""
                return "no note"
            self.read_note(Path(rest.strip()).expanduser())
            return f"a note of {len(self.note):,} characters"
        if word in ("/base", "/both"):
            if not self._model.stack.adapters:
                raise InputError(f"{word}: there is the base alone; name a Stack or a Run to compare.")
            wanted: Who = "base" if word == "/base" else "both"
            self.who = "stack" if self.who == wanted else wanted
            return f"answers: {self.names[self.who] if self.who != 'both' else 'untouched base and stack'}"
        commands = ("/note", "/base", "/both", "/help", "/quit")
        raise InputError(f"{word}: no such command.{suggest(word, commands) or ' /help lists them.'}")

    def _show(self, question: str) -> None:
        began = time.monotonic()
        if self.who == "both":
            written = self._show_both(question)
        else:
            written = self._show_one(question, untouched=self.who == "base")
        seconds = time.monotonic() - began
        first = written[0].encoded
        parts = [f"{len(first.ids):,} tokens read"]
        if first.cut:
            parts.append(f"{first.cut:,} of the note cut from its middle")
        parts.append(" and ".join(f"{one.answer.tokens:,}" for one in written) + " written")
        if any(one.answer.finish == "length" for one in written):
            parts.append(f"broken off at {self._model.max_new_tokens}")
        self._console.print(f"[dim]{', '.join(parts)}; {seconds:.1f} s[/]", highlight=False)

    def _show_one(self, question: str, *, untouched: bool) -> list[Written]:
        written: list[Written] = []
        shown = 0
        try:
            for written in self._model.answer(self.note, question, [untouched]):
                text = written[0].text
                self._console.out(text[shown:].translate(_SHOWN), end="", highlight=False)
                shown = len(text)
        finally:
            self._console.print()
        return written

    def _show_both(self, question: str) -> list[Written]:
        written: list[Written] = []
        with Live(console=self._console, refresh_per_second=8) as live:
            for written in self._model.answer(self.note, question, [True, False]):
                live.update(self._side_by_side(written))
        return written

    def _side_by_side(self, written: Sequence[Written]) -> Table:
        table = Table.grid(expand=True)
        table.add_column(ratio=1)
        table.add_column(ratio=1)
        titles = (f"before: {self.names['base']}", f"after: {self.names['stack']}")
        panels = [
            Panel(Text(one.text.translate(_SHOWN)), title=Text(title), title_align="left", border_style=style)
            for one, title, style in zip(written, titles, ("dim", "cyan"), strict=True)
        ]
        table.add_row(*panels)
        return table

    # ------------------------------------------------------------------ a script

    def answer_line(self, line: str) -> str | None:
        """Return the answer to one line of a script as one line; None for a command.

        White space of an answer becomes single spaces. With ``/both`` the base's answer stands first and a tabulator
        between the two.

        Raises
        ------
        InputError
            If the line is a wrong command, or the question does not fit.
        """
        if line.startswith("/"):
            self.command(line)
            return None
        who = {"stack": [False], "base": [True], "both": [True, False]}[self.who]
        written = list(self._model.answer(self.note, line, who))[-1]
        return "\t".join(" ".join(one.text.translate(_SHOWN).split()) for one in written)
