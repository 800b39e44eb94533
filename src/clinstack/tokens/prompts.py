"""Prompts: how a note and a question become tokens. One function for training and for generation.

::

    prompt  = begin  system  [shots]  note  question  cue          encode_prompts
    answer  =                                          text  end   encode_answers
              ───────────────── read ─────────────── │ ── trained ──

A prompt and its answer are tokenised apart from each other, so no token lies across the border, and what the model
reads before its first answer token is the same in training and in generation, to the last token. (The published code
of Asclepius trains on a prompt that ends in a line end and generates from one with a space before it.) A long note
loses its middle; see `clinstack.tokens.prompt_fit`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from clinstack.errors import InputError
from clinstack.recipe.prompt import PromptRecipe
from clinstack.tokens.encode import TextEncoder, document_ends
from clinstack.tokens.prompt_fit import Frame, PromptReport, fit_notes, shorten

if TYPE_CHECKING:
    from clinstack.notes.instructions import Instructions
    from clinstack.notes.sections.find import SectionSpan

Shot = tuple[str, str, str]
"""A solved example: note, question, answer."""
_SYSTEM = (
    "You are a careful clinical assistant. Answer the question from the note alone. "
    "If the note does not say it, say that the note does not say it."
)
_BUILT_IN: dict[str, tuple[str | None, str, str]] = {
    "clinstack": (_SYSTEM, "### Note\n{note}\n\n### Question\n{question}", "\n\n### Answer\n"),
    # The training text of starmpcc/Asclepius, src/instruction_ft.py, to the letter: "languge" is theirs.
    "asclepius": (
        None,
        "You are an intelligent clinical languge model.\n"
        "Below is a snippet of patient's discharge summary and a following instruction from healthcare professional.\n"
        "Write a response that appropriately completes the instruction.\n"
        "The response should provide the accurate answer to the instruction, while being concise.\n\n"
        "[Discharge Summary Begin]\n{note}\n[Discharge Summary End]\n\n"
        "[Instruction Begin]\n{question}\n[Instruction End]",
        "\n",
    ),
    "phi2": (
        None,
        "Instruct: Answer the question about the note.\n[note start]\n{note}\n[note end]\nQuestion: {question}",
        "\nOutput:",
    ),
}
"""Of each template its system text, its text, and its cue: what stands between the text and the answer."""
_FIXED: dict[str, Any] = {"date_string": "26 Jul 2024", "enable_thinking": False}
"""Values of chat templates that would otherwise make a prompt depend on the day (Llama 3), or think (Qwen 3)."""
_SENTINEL = "\u2043answer\u2043"


@dataclass(frozen=True)
class Prompt:
    """Everything that decides the text of a prompt. It belongs to a trained stack, and stands in its stack.json.

    Parameters
    ----------
    template : str
        The text with ``{note}`` and ``{question}``; in a chat the user's message.
    system : str or None
        What stands before everything; in a chat the system's message.
    cue : str
        What stands between the text and the answer; a chat template has its own instead.
    chat_template : str or None
        The chat template itself (Jinja), as the tokenizer had it; None for plain text.
    shots : tuple of (note, question, answer)
        Solved examples before the question. They are texts of notes, so `to_dict` leaves them out.
    """

    template: str
    system: str | None = None
    cue: str = ""
    chat_template: str | None = None
    shots: tuple[Shot, ...] = ()

    @classmethod
    def of(cls, recipe: PromptRecipe, tokenizer: PreTrainedTokenizerBase, shots: Sequence[Shot] = ()) -> Prompt:
        """Return what a recipe comes to with this tokenizer.

        Raises
        ------
        InputError
            If the template's file cannot be read or lacks a place, a chat template is asked for that the tokenizer
            does not have, or the shots are not as many as the recipe says.
        """
        if len(shots) != recipe.shots:
            raise InputError(f"prompt.shots: {recipe.shots} are asked for, {len(shots)} are there; lower prompt.shots.")
        system, template, cue = _read_template(recipe)
        if recipe.system is not None:
            system = recipe.system.strip() or None
        chat = None if recipe.chat_template == "never" else _chat_template(tokenizer)
        if recipe.chat_template == "always" and chat is None:
            raise InputError(
                "prompt.chat_template: the base's tokenizer has no chat template; set it to never, or take a base "
                "that was trained to chat."
            )
        prompt = cls(template.rstrip() if chat else template, system, "" if chat else cue, chat, tuple(shots))
        return prompt._with_system_where_the_chat_has_none(tokenizer)

    def _with_system_where_the_chat_has_none(self, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """Return the prompt with its system text in the user's message, where the chat template takes no system."""
        if self.chat_template is None or self.system is None:
            return self
        try:
            shows = _SENTINEL in _chat(tokenizer, replace(self, system=_SENTINEL, shots=()), "", "", None)
        except InputError:
            shows = False
        return self if shows else replace(self, system=None, template=f"{self.system}\n\n{self.template}")

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of stack.json; of the shots only how many there are, for their texts are notes."""
        return {
            "template": self.template,
            "system": self.system,
            "cue": self.cue,
            "chat_template": self.chat_template,
            "shots": len(self.shots),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], shots: Sequence[Shot] = ()) -> Prompt:
        """Return what `to_dict` wrote; shots are given anew."""
        if len(shots) != record.get("shots", 0):
            raise InputError(f"prompt: it was recorded with {record.get('shots')} shots; {len(shots)} are given.")
        names = ("template", "system", "cue", "chat_template")
        return cls(**{name: record[name] for name in names}, shots=tuple(shots))

    def text(self, tokenizer: PreTrainedTokenizerBase, note: str, question: str) -> str:
        """Return the prompt as text; a plain one without the begin token, a chat with its special tokens."""
        if self.chat_template is not None:
            return _chat(tokenizer, self, note, question, None)
        parts = [f"{self.system}\n\n"] if self.system else []
        for shot_note, shot_question, answer in self.shots:
            parts.append(f"{self._filled(shot_note, shot_question)}{self.cue}{self.lead}{answer}\n\n")
        return "".join([*parts, self._filled(note, question), self.cue])

    @property
    def lead(self) -> str:
        """What separates an answer from a prompt that ends in no blank: it belongs to the answer's first token."""
        end = f"{self.template}{self.cue}"[-1:]
        return "" if self.chat_template is not None or end.isspace() else " "

    def end_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the tokens that end an answer: the one that is trained first, then the tokenizer's end token.

        Raises
        ------
        InputError
            If there is none.
        """
        ends: list[int] = []
        if self.chat_template is not None:
            # Behind an answer stands the end of the turn, and perhaps a line end, which is not for the model to write.
            behind = _chat(tokenizer, replace(self, shots=()), "", "", _SENTINEL).rpartition(_SENTINEL)[2]
            special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
            ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
            ends += [int(token) for token in ids if token in special][:1]
        if tokenizer.eos_token_id is not None:
            ends.append(int(tokenizer.eos_token_id))
        if not ends:
            raise InputError("base: its tokenizer has no end token, so an answer would never end; take another base.")
        return list(dict.fromkeys(ends))

    def _filled(self, note: str, question: str) -> str:
        # Not str.format: notes and files may hold other braces.
        before, after = self.template.split("{note}", 1)
        return before.replace("{question}", question) + note + after.replace("{question}", question)


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts as tokens.

    Parameters
    ----------
    ids : list of list of int
        With the begin token, as far as there is one.
    report : dict
        What was read, and what the notes lost; `PromptReport` names its keys.
    """

    ids: list[list[int]]
    report: dict[str, Any]


@dataclass(frozen=True)
class EncodedPairs:
    """Prompts and their answers as tokens; each answer ends with the end token."""

    prompts: EncodedPrompts
    answers: list[list[int]]

    def __len__(self) -> int:
        return len(self.answers)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    notes: Sequence[str],
    questions: Sequence[str],
    room: int | Sequence[int],
    sections: Sequence[Sequence[SectionSpan] | None] | None = None,
    names: Sequence[str] | None = None,
) -> EncodedPrompts:
    """Encode prompts, for training and for generation alike.

    Plain text begins with the begin token that a document in pretraining has; a chat template says its own.

    Parameters
    ----------
    notes, questions : sequence of str
    room : int, or a sequence of int
        Tokens that each prompt may have, with everything around the note.
    sections : sequence, optional
        The sections of each note, or None where nobody looked; they are looked for in notes that are too long.
    names : sequence of str, optional
        The example ids, for messages.

    Raises
    ------
    InputError
        If a prompt does not fit even without its note.
    """
    rooms = [room] * len(notes) if isinstance(room, int) else list(room)
    encoder = TextEncoder(tokenizer)
    before = [] if prompt.chat_template is not None else document_ends(tokenizer)[0]
    prompt = _with_short_shots(encoder, prompt, min(rooms, default=0))
    frames = [
        Frame(
            partial(prompt.text, tokenizer, question=question),
            size - len(before),
            names[place] if names is not None else f"number {place + 1}",
        )
        for place, (question, size) in enumerate(zip(questions, rooms, strict=True))
    ]
    report = PromptReport()
    ids = fit_notes(encoder, frames, notes, sections, report)
    encoded = [[*before, *found] for found in ids]
    return EncodedPrompts(encoded, report.to_dict(encoded))


def encode_answers(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answers: Sequence[str]) -> list[list[int]]:
    """Encode answers, each with the end token that the prompt asks for."""
    encoder = TextEncoder(tokenizer)
    lead = "" if _begins_words_by_itself(tokenizer) else prompt.lead
    end = prompt.end_tokens(tokenizer)[0]
    encoded = encoder.ids(encoder.encode([lead + answer.strip() for answer in answers]))
    return [[*map(int, ids), end] for ids in encoded]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    instructions: Instructions,
    max_tokens: int,
    answer_tokens: int = 0,
) -> EncodedPairs:
    """Encode prompts and answers that together have at most ``max_tokens``.

    Parameters
    ----------
    answer_tokens : int
        Every prompt leaves at least this room for its answer: so a note is cut alike where the answer is known and
        where it is not, unless the answer is longer.

    Raises
    ------
    InputError
        If an answer and its question do not fit; with the example id.
    """
    answers = encode_answers(tokenizer, prompt, instructions.answers)
    rooms = [max_tokens - max(len(answer), answer_tokens) for answer in answers]
    ids = instructions.example_ids
    prompts = encode_prompts(tokenizer, prompt, instructions.notes, instructions.questions, rooms, names=ids)
    return EncodedPairs(prompts, answers)


def draw_shots(instructions: Instructions, count: int, seed: int) -> tuple[Shot, ...]:
    """Return solved examples for a prompt, drawn by ``seed`` from instructions: those of the training patients.

    Raises
    ------
    InputError
        If there are not so many.
    """
    if count > len(instructions.notes):
        raise InputError(f"prompt.shots: {count}, but there are {len(instructions.notes)} training examples.")
    order = sorted(range(len(instructions.notes)), key=lambda place: instructions.example_ids[place])
    chosen = random.Random(seed).sample(order, count)
    return tuple(
        (instructions.notes[place], instructions.questions[place], instructions.answers[place].strip())
        for place in chosen
    )


def _with_short_shots(encoder: TextEncoder, prompt: Prompt, room: int) -> Prompt:
    """Return the prompt with the notes of its shots cut, so that the note itself has at least as much room as each."""
    share = room // (len(prompt.shots) + 2)
    shots = tuple((shorten(encoder, note, share), question, answer) for note, question, answer in prompt.shots)
    return replace(prompt, shots=shots)


def _read_template(recipe: PromptRecipe) -> tuple[str | None, str, str]:
    file = recipe.file
    if file is None:
        return _BUILT_IN[recipe.template]
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"prompt.template: {file}: byte {error.start} is not UTF-8.") from None
    except OSError as error:
        raise InputError(f"prompt.template: {file} cannot be read ({error.strerror}); name a text file.") from None
    for place in ("{note}", "{question}"):
        if text.count(place) != 1:
            raise InputError(
                f"prompt.template: {file} has {place} {text.count(place)} times; it must stand in it once."
            )
    # An editor ends every file with a line end; one that the prompt should have stands before it.
    return None, text.removesuffix("\n"), ""


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template: Any = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return template or None


def _chat(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, note: str, question: str, answer: str | None) -> str:
    """Return a chat as text: up to the answer, or with it."""
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    for shot_note, shot_question, shot_answer in prompt.shots:
        messages.append({"role": "user", "content": prompt._filled(shot_note, shot_question)})
        messages.append({"role": "assistant", "content": shot_answer})
    messages.append({"role": "user", "content": prompt._filled(note, question)})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    try:
        text: Any = tokenizer.apply_chat_template(
            messages,
            chat_template=prompt.chat_template,
            tokenize=False,
            add_generation_prompt=answer is None,
            **_FIXED,
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"base: its chat template refuses the prompt ({type(error).__name__}); set prompt.chat_template: never."
        ) from None
    return str(text)


def _begins_words_by_itself(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a blank before a text, as SentencePiece does: then an answer needs none of its own."""
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    return bool(ids) and str(tokenizer.convert_ids_to_tokens(ids)[0]).startswith("\u2581")
