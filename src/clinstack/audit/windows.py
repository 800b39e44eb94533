"""Which pieces of notes and answers the extraction attack asks a model to continue.

::

    notes     [ begin token, prefix_tokens | up to 50 tokens ]...     every second one at the note's beginning,
              ......[ prefix_tokens | up to 50 tokens ]..........     the others somewhere in it
    answers   [ whole prompt | first 50 tokens of the answer ]

Members and non-members are drawn alike: one note of each patient first, because patients are what an interval counts.
A note's beginning is read as it was in training, so that even a model which remembers a text only from its first token
on is caught; what stands deeper in a note is asked for with less than was read before it in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clinstack.audit.target import AuditTarget, Side
from clinstack.engine.continuations import Window
from clinstack.recipe.audit import ExtractionRecipe
from clinstack.tokens.encode import document_ends

LONG = 50
"""Tokens of a continuation that are looked at where the note has them, as in Carlini et al. 2023."""
SHORTEST_ANSWER = 8
"""Tokens: a whole answer shorter than the continuation counts from here on. Of less, "yes" would be an extraction."""
_PLACES = 4
"""Of one note at most."""


@dataclass(frozen=True)
class Asked:
    """The windows of one side.

    Parameters
    ----------
    windows : list of Window
    ids, patients : list of str
        Of each the note or example, and its patient.
    starts : list of int
        Of each the token of the text at which its prefix begins; 0 in answers.
    too_short : int
        Notes or answers that have too few tokens to be asked for.
    """

    windows: list[Window]
    ids: list[str]
    patients: list[str]
    starts: list[int]
    too_short: int

    def __len__(self) -> int:
        return len(self.windows)

    def needed(self, most: int) -> NDArray[np.int64]:
        """Return how many tokens of each continuation must follow to count at a length of ``most``."""
        return np.array([min(most, len(window.continuation)) for window in self.windows], dtype=np.int64)


def ask(target: AuditTarget, side: Side, settings: ExtractionRecipe) -> Asked:
    """Draw the windows of a side, by the target's seed."""
    if target.kind == "answers":
        return _ask_answers(target, side, settings)
    return _ask_notes(target, side, settings)


def _ask_notes(target: AuditTarget, side: Side, settings: ExtractionRecipe) -> Asked:
    notes = target.all_notes(side)
    begin = document_ends(target.stack.tokenizer)[0]
    counts, prefix, least = notes.documents.count, settings.prefix_tokens, settings.continuation_tokens
    patients = notes.index["patient_id"]
    long_enough = counts >= prefix + least
    read = target.read_in_training if side == target.members_split else None
    eligible = np.flatnonzero(long_enough if read is None else long_enough & read)
    random = np.random.default_rng([target.seed, side == target.members_split])
    order = patients_first(patients.take(pa.array(eligible)), random)
    documents = notes.documents.between((), ())
    asked = Asked([], [], [], [], int((~long_enough).sum()))
    seen: set[tuple[int, int]] = set()
    for turn in range(_PLACES):
        for number, note in enumerate(eligible[order].tolist()):
            if len(asked) == settings.prompts:
                return asked
            more = max(least, LONG) if counts[note] >= prefix + LONG else least
            start = int(random.integers(int(counts[note]) - prefix - more + 1)) if (number + turn) % 2 else 0
            if (note, start) in seen:
                continue
            seen.add((note, start))
            # As in training, where the begin token stands before a note's first token and nowhere else.
            before = begin if start == 0 else []
            tokens = np.concatenate(
                [np.array(before, dtype=np.int64), documents.part(note, start, start + prefix + more)]
            )
            asked.windows.append(Window(tokens, len(before) + prefix))
            asked.ids.append(str(notes.index["note_id"][note]))
            asked.patients.append(str(patients[note]))
            asked.starts.append(start)
    return asked


def _ask_answers(target: AuditTarget, side: Side, settings: ExtractionRecipe) -> Asked:
    rows = target.all_instructions[side]
    random = np.random.default_rng([target.seed, side == target.members_split])
    chosen = rows.chosen(patients_first(pa.array(rows.patient_ids), random)[: settings.prompts].tolist())
    pairs = target.encode(chosen)
    asked = Asked([], [], [], [], 0)
    too_short, most = 0, max(settings.continuation_tokens, LONG)
    for place, (prompt, answer) in enumerate(zip(pairs.prompts.ids, pairs.answers, strict=True)):
        text = answer[:-1][:most]  # the end token is no part of what was said
        if len(text) < min(SHORTEST_ANSWER, settings.continuation_tokens):
            too_short += 1
            continue
        asked.windows.append(Window(np.array([*prompt, *text], dtype=np.int64), len(prompt)))
        asked.ids.append(chosen.example_ids[place])
        asked.patients.append(chosen.patient_ids[place])
        asked.starts.append(0)
    return Asked(asked.windows, asked.ids, asked.patients, asked.starts, too_short)


def patients_first(patients: pa.Array | pa.ChunkedArray, random: np.random.Generator) -> NDArray[np.int64]:
    """Return the places of rows in a random order in which every patient comes once before any comes twice."""
    whole = patients.combine_chunks() if isinstance(patients, pa.ChunkedArray) else patients
    codes = whole.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    shuffled = random.permutation(len(codes))
    by_patient = shuffled[np.argsort(codes[shuffled], kind="stable")]
    sorted_codes = codes[by_patient]
    first = np.searchsorted(sorted_codes, sorted_codes, side="left")
    turn = np.empty(len(codes), dtype=np.int64)
    turn[by_patient] = np.arange(len(codes)) - first
    order: NDArray[np.int64] = shuffled[np.argsort(turn[shuffled], kind="stable")]
    return order
