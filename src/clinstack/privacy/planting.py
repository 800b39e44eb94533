"""Where canaries stand: which notes or answers, at which place of the text, and that each of them is trained on.

A copy goes into a note of a patient who has no copy of the same canary, and a note has one canary at most. Of the
note's text the canary is a line, or a sentence, of its own. Notes that are not touched stay memory-mapped; those that
are get tokenised anew and lie over the others, so that the tokens on disk stay free of canaries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clinstack.errors import InputError
from clinstack.privacy.canaries import Canary
from clinstack.tokens.documents import Documents

Encode = Callable[[Sequence[str]], Sequence[NDArray[Any]]]
"""Texts to token ids, without special tokens."""
_BOUNDARY = re.compile(r"\n+|(?<=[.!?]) +(?=[A-Z])")
_TRIES = 8
"""Places of one text that are tried, before another note is."""


class Span(NamedTuple):
    """Where a canary stands among the tokens of its text: ``[first, stop)``, its secret ``[secret, stop)``."""

    first: int
    secret: int
    stop: int


class Change(NamedTuple):
    """A text with a canary in it.

    Parameters
    ----------
    canary : Canary
    tokens : integer array
        Of the whole text.
    span : Span
    """

    canary: Canary
    tokens: NDArray[Any]
    span: Span


@dataclass(frozen=True)
class Reach:
    """Which tokens of notes receive loss in a training.

    Parameters
    ----------
    context : int
        Tokens in a row; a longer note goes on in another row.
    before, after : int
        Begin and end tokens around each note.
    cuts : bool
        Whether what is beyond the first row is left out (the layout ``padded``).
    segments : int64 array [notes + 1] or None
        Where the rows of each note begin in ``read``; None where all that is laid out is read.
    read : bool array or None
        Whether the training comes to that row of that note before it ends.
    """

    context: int
    before: int
    after: int
    cuts: bool
    segments: NDArray[np.int64] | None = None
    read: NDArray[np.bool_] | None = None

    @property
    def keeps_length(self) -> bool:
        """Whether a note must stay as long as it is, because other lengths would change which rows are read."""
        return self.read is not None

    def trains(self, note: int, span: Span, tokens: int) -> bool:
        """Whether a canary stands in one row that is trained on, with its prefix before it in the same row.

        Parameters
        ----------
        note : int
        span : Span
        tokens : int
            Of the note as it is planted, without begin and end tokens.
        """
        if self.cuts:
            tokens = min(tokens, self.context - self.before - self.after)
        # A token is predicted in the row of the token before it; the first one of a note is not.
        first, last = self.before + span.first, self.before + span.stop - 1
        if span.stop > tokens or self.before + span.secret < 1:
            return False
        row = first // self.context
        if row != (last - 1) // self.context:
            return False
        if self.read is None or self.segments is None:
            return True
        place = int(self.segments[note]) + row
        return place < int(self.segments[note + 1]) and bool(self.read[place])


def find_span(encode: Encode, text: str, first: int, canary: Canary, tokens: NDArray[Any]) -> Span:
    """Return where a canary that begins at a character of a text stands among the text's tokens.

    A token that holds characters of the prefix and of the secret counts as the secret's.
    """
    secret = first + len(canary.prefix)
    stop = secret + 1 + len(canary.secret)
    starts = encode([text[:first].rstrip(" "), text[:secret], text[:stop]])
    begin, middle, end = (common_beginning(part, tokens) for part in starts)
    # The secret's last token may reach beyond the secret.
    return Span(begin, middle, end if end == len(starts[2]) else end + 1)


def common_beginning(one: ArrayLike, other: ArrayLike) -> int:
    """Return how many tokens two texts begin with alike."""
    one, other = np.asarray(one), np.asarray(other)
    length = min(len(one), len(other))
    differs = np.flatnonzero(one[:length] != other[:length])
    return int(differs[0]) if len(differs) else length


def put_into(text: str, canary: Canary, place: int) -> tuple[str, int]:
    """Return a text with a canary, and at which character it begins; ``place`` is one of `boundaries`."""
    before, after = text[:place], text[place:]
    if not after:
        lead = before + ("" if not before or before.endswith("\n") else "\n")
        return f"{lead}{canary.text}", len(lead)
    between = "\n" if not before or before.endswith("\n") else " "
    return f"{before}{canary.text}{between}{after}", len(before)


def boundaries(text: str) -> list[int]:
    """Return the characters of a text where a line or a sentence begins, and its end."""
    return sorted({0, len(text), *(match.end() for match in _BOUNDARY.finditer(text))})


def plant(
    canaries: Sequence[Canary],
    owners: NDArray[np.int64],
    eligible: NDArray[np.bool_],
    change: Callable[[Mapping[int, Canary]], Iterable[tuple[int, Change | None]]],
    seed: int,
    unit: str,
) -> dict[int, Change]:
    """Choose a note for each copy of each canary.

    Parameters
    ----------
    canaries : sequence of Canary
    owners : int64 array [notes]
        A number for each note's patient.
    eligible : bool array [notes]
        Which may be chosen.
    change : callable
        Gets a canary for each of some notes, and yields each note with its change; None where no place of the note is
        trained on. The note is then not chosen again.
    seed : int
    unit : str
        What a note is called in messages: "notes" or "answers".

    Returns
    -------
    dict of int to Change
        By note.

    Raises
    ------
    InputError
        If there are too few notes or patients; with what fits.
    """
    check_room(canaries, owners, eligible, unit)
    free = eligible.copy()
    queue = np.random.default_rng([seed, 1]).permutation(np.flatnonzero(eligible))
    done: dict[int, Change] = {}
    has: dict[str, set[int]] = {canary.name: set() for canary in canaries}
    # The most repeated first: they need the most patients.
    order = sorted(canaries, key=lambda canary: (-canary.repetitions, canary.name))
    waiting = {canary.name: canary.repetitions for canary in order}
    while any(waiting.values()):
        queue = queue[free[queue]]
        chosen: dict[int, Canary] = {}
        for canary in order:
            if not waiting[canary.name]:
                continue
            taken = set(has[canary.name])
            for note in map(int, queue):
                if waiting[canary.name] == 0:
                    break
                if free[note] and (owner := int(owners[note])) not in taken:
                    taken.add(owner)
                    chosen[note], free[note] = canary, False
                    waiting[canary.name] -= 1
            if waiting[canary.name]:
                _say_short(canaries, canary, waiting[canary.name], unit)
        for note, found in change(chosen):
            canary = chosen[note]
            if found is None:
                waiting[canary.name] += 1
            else:
                done[note] = found
                has[canary.name].add(int(owners[note]))
    return done


def check_room(canaries: Sequence[Canary], owners: NDArray[np.int64], eligible: NDArray[np.bool_], unit: str) -> None:
    """Refuse canaries for which there are too few notes or patients.

    Raises
    ------
    InputError
        With the number that fits.
    """
    notes, patients = int(eligible.sum()), len(np.unique(owners[eligible]))
    most = max(canary.repetitions for canary in canaries)
    if most > patients:
        raise InputError(
            f"canaries: each copy of a canary needs a training patient of its own, and {most} copies need {most}; "
            f"{patients} have {unit} that are long enough and read in training. Set canaries.repetitions to at most "
            f"{patients}."
        )
    copies = sum(canary.repetitions for canary in canaries)
    if copies > notes:
        fits = notes * len(canaries) // copies
        raise InputError(
            f"canaries: {len(canaries)} canaries have {copies} copies, one for each of {copies} {unit}, and there are "
            f"{notes} of training patients that are long enough and read in training. At most {fits} canaries fit; "
            "plant so many, or repeat them less (canaries.repetitions)."
        )


def _say_short(canaries: Sequence[Canary], canary: Canary, missing: int, unit: str) -> None:
    copies = sum(one.repetitions for one in canaries)
    raise InputError(
        f"canaries: {missing} of {canary.repetitions} copies of a canary find no place: in the other {unit} every "
        "place is cut off, split over two rows, or not read before training ends, or the patient has a copy already. "
        f"{copies} copies are asked for: plant fewer canaries, repeat them less (canaries.repetitions), raise context "
        "or max_tokens, or train longer (training.max_steps)."
    )


def place_in_text(
    text: str, canary: Canary, encode: Encode, fits: Callable[[Span, int], bool], draw: np.random.Generator
) -> Change | None:
    """Return a text with a canary at a boundary drawn by ``draw`` at which it is trained on; None where there is none.

    Parameters
    ----------
    text : str
    canary : Canary
    encode : callable
    fits : callable
        Gets the canary's span and the number of tokens of the whole, and says whether it is trained on.
    draw : numpy.random.Generator
    """
    places = boundaries(text)
    for place in draw.permutation(places)[:_TRIES].tolist():
        planted, first = put_into(text, canary, place)
        tokens = encode([planted])[0]
        span = find_span(encode, planted, first, canary, tokens)
        if fits(span, len(tokens)):
            return Change(canary, tokens, span)
    return None


def laid_over(documents: Documents, changed: Mapping[int, NDArray[Any]]) -> Documents:
    """Return documents of which some have other tokens, which lie in memory; nothing else is copied."""
    if not changed:
        return documents
    places = np.array(sorted(changed), dtype=np.int64)
    texts = [changed[place] for place in places.tolist()]
    count = np.array([len(tokens) for tokens in texts], dtype=np.int64)
    shard, offset, counts = documents.shard.copy(), documents.offset.copy(), documents.count.copy()
    shard[places], offset[places], counts[places] = len(documents.shards), np.cumsum(count) - count, count
    return replace(
        documents, shards=(*documents.shards, np.concatenate(texts)), shard=shard, offset=offset, count=counts
    )
