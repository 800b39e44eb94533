"""`clinstack chat`: what a person sees, what a script gets, and that nothing is left on disk."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.engine.answers import context_of_base
from clinstack.engine.generation import generate
from clinstack.errors import ClinstackError, InputError
from clinstack.model.stack import Stack
from clinstack.recipe import DecodingRecipe, PromptRecipe
from clinstack.serve.chat_terminal import Chat, ChatModel
from clinstack.serve.decoding import Decoder
from clinstack.tokens.prompts import Prompt, encode_prompts
from tiny_chat import LONG_NOTE, NOTE, QUESTION, offline, save_chat_stacks

NEW = 12
GREEDY = DecodingRecipe(max_new_tokens=NEW)


@pytest.fixture(scope="module")
def folders(tiny_base: Path, clinical: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_chat_stacks(tmp_path_factory.mktemp("stacks"), tiny_base, clinical)


@pytest.fixture(scope="module")
def answers(folders: dict[str, Path]) -> tuple[str, str]:
    """What the stack and its base say, on one line each."""
    texts = [offline(folders["plain"], NOTE, QUESTION, GREEDY, untouched=off)[0].text for off in (False, True)]
    return " ".join(texts[0].split()), " ".join(texts[1].split())


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> ChatModel:
    return ChatModel(Stack.load(folders["plain"]), NEW)


@pytest.fixture
def note(tmp_path: Path) -> Path:
    file = tmp_path / "note.txt"
    file.write_text(f"{NOTE}\n", encoding="utf-8")
    return file


class Typed:
    """Lines as a person types them; an exception stands for a key."""

    def __init__(self, lines: Sequence[str | type[BaseException]]) -> None:
        self._lines: Iterator[Any] = iter([*lines, EOFError])
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = next(self._lines)
        if isinstance(line, str):
            return line
        raise line


def talk(model: ChatModel, *lines: str | type[BaseException], note: str = NOTE, width: int = 100) -> tuple[str, Typed]:
    """Return what a session shows, and the prompts that it was asked with."""
    shown = io.StringIO()
    chat = Chat(model, Console(file=shown, width=width))
    chat.note = note
    typed = Typed(lines)
    chat.run(typed)
    return shown.getvalue(), typed


def words(text: str) -> str:
    return " ".join(text.split())


def test_answers_are_those_of_generate(model: ChatModel, answers: tuple[str, str]) -> None:
    shown, typed = talk(model, QUESTION, "/base", QUESTION, "/base", "")
    first, _, rest = shown.partition("tokens read")
    assert words(first).startswith(answers[0])
    assert answers[1] in words(rest)
    assert typed.prompts == ["stack> ", "stack> ", "base> ", "base> ", "stack> ", "stack> "]
    assert f"{NEW} written" in shown


def test_both_stand_side_by_side(model: ChatModel, folders: dict[str, Path], answers: tuple[str, str]) -> None:
    shown, typed = talk(model, "/both", QUESTION, width=200)
    assert typed.prompts[-1] == "both> "
    (line,) = [line for line in shown.splitlines() if "before: untouched" in line]
    assert "after: clinical" in line  # the name of the adapter
    inside = [re.split(r"│+\s*│*", line.strip("│ ")) for line in shown.splitlines() if line.startswith("│")]
    left, right = (words(" ".join(row[column] for row in inside)) for column in (0, 1))
    assert (right, left) == answers


def test_notes_come_and_go(model: ChatModel, folders: dict[str, Path], note: Path) -> None:
    missing = note.parent / "none.txt"
    latin = note.parent / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    shown, _ = talk(model, f"/note {note}", QUESTION, f"/note {missing}", f"/note {latin}", "/note", QUESTION, note="")
    assert f"a note of {len(NOTE)} characters" in shown
    assert f"{missing} cannot be read" in words(shown)
    assert "byte 3 is not UTF-8" in shown
    of_note, of_nothing = (offline(folders["plain"], text, QUESTION, GREEDY) for text in (NOTE, ""))
    for answer, prompt, _ in (of_note, of_nothing):
        assert words(answer.text) in words(shown)
        assert f"{len(prompt)} tokens read" in shown


def test_a_long_note_says_what_was_not_read(model: ChatModel, folders: dict[str, Path]) -> None:
    shown, _ = talk(model, QUESTION, note=LONG_NOTE)
    _, prompt, cut = offline(folders["plain"], LONG_NOTE, QUESTION, GREEDY)
    assert f"{len(prompt)} tokens read, {cut} of the note cut from its middle" in words(shown)


def test_keys_and_wrong_commands(model: ChatModel) -> None:
    shown, typed = talk(model, KeyboardInterrupt, "/hepl", "/help", "/quit", "never")
    assert len(typed.prompts) == 4
    assert "/quit, or Control-D, ends the chat" in shown
    assert "/hepl: no such command. Did you mean /help?" in words(shown)
    assert "Nothing is written to disk" in shown


def test_control_c_stops_the_answer_alone(model: ChatModel, answers: tuple[str, str], monkeypatch: Any) -> None:
    step, seen = Decoder.step, 0

    def interrupted(self: Decoder) -> Any:
        nonlocal seen
        seen += 1
        if seen == 4:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Decoder, "step", interrupted)
    shown, typed = talk(model, "/base", QUESTION, "/base", QUESTION)
    assert "stopped" in shown
    assert answers[0] in words(shown.partition("stopped")[2])
    assert len(typed.prompts) == 5


def test_what_a_terminal_would_obey_is_not_shown(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from clinstack.serve.decoding import Answer

    monkeypatch.setattr(Answer, "take", lambda self: "a\x1b[2Jb\x9b31m[bold]\u202e")
    shown, _ = talk(model, QUESTION)
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "a[2Jb31m[bold]" in shown


def test_a_base_alone() -> None:
    stack = Stack.build("embedded")
    shown, _ = talk(ChatModel(stack, NEW), "why?", "/both", "/base", note="pain")
    assert words(shown).count("there is the base alone") == 2
    prompt = Prompt.of(PromptRecipe(), stack.tokenizer)
    ids = encode_prompts(stack.tokenizer, prompt, ["pain"], ["why?"], context_of_base(stack) - NEW).ids
    assert words(shown).startswith(words(generate(stack, ids, GREEDY, None)[0].text))


def test_classifiers_and_answers_without_a_prompt_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="classifier for mortality"):
        ChatModel(Stack.load(folders["mortality"]))
    with pytest.raises(InputError, match="max-new-tokens"):
        ChatModel(Stack.load(folders["plain"]), 180)


def test_a_failure_is_one_line(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Decoder) -> Any:
        raise ClinstackError("memory is full")

    monkeypatch.setattr(Decoder, "step", full)
    shown, typed = talk(model, QUESTION)
    assert "memory is full" in shown
    assert len(typed.prompts) == 2


# ---------------------------------------------------------------------- the command


def test_a_script_gets_a_line_for_a_question(folders: dict[str, Path], note: Path, answers: tuple[str, str]) -> None:
    lines = f"{QUESTION}\n\n/base\n{QUESTION}\n/both\n{QUESTION}\n/hepl\n{QUESTION}\n"
    arguments = ["chat", str(folders["plain"]), "--note", str(note), "--max-new-tokens", str(NEW)]
    done = CliRunner().invoke(app, arguments, input=lines)
    assert done.stdout.splitlines() == [answers[0], answers[1], f"{answers[1]}\t{answers[0]}"]
    assert "not a medical device" in words(done.stderr)
    assert isinstance(done.exception, InputError)
    assert str(done.exception).startswith("standard input, line 7: /hepl: no such command")
    assert [file.name for file in note.parent.iterdir()] == ["note.txt"]


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "HOME": str(home), "TERM": "xterm", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clinstack", "chat", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=home,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def wait_for(self, text: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self.master, 4096).decode("utf-8", "replace")
                except OSError:
                    break
        assert text in self.shown
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


@pytest.mark.slow
def test_a_session_on_a_terminal(folders: dict[str, Path], note: Path) -> None:
    terminal = Terminal(note.parent, str(folders["plain"]), "--note", str(note), "--max-new-tokens", "150")
    try:
        terminal.wait_for("not a medical device")
        terminal.wait_for("stack> ")
        terminal.type("why?\n")
        terminal.wait_for("150 written")
        terminal.wait_for("stack> ")
        terminal.type("/both\nwhy?\n")
        terminal.wait_for("before: untouched")
        os.kill(terminal.process.pid, signal.SIGINT)
        terminal.wait_for("both> ")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
    assert [file.name for file in note.parent.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("arguments", [[], ["--note", "x"]])
def test_something_must_answer(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["chat", *arguments])
    assert isinstance(result.exception, InputError)
    assert "--base embedded" in str(result.exception)
