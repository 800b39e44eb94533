"""Notes that are too long for their prompt lose their middle, section by section; the rest of the prompt stays whole.

::

    sections    | A      | B   | C         | D     | E   |       E and A stay as long as anything else can go
                                    ▲ the middle of the note
    too long by 3:       | B   | C      ...| D     | E   |       C loses its end, as much as is needed
    by more:             | B  ...              ... | E   |       C goes whole, and of D and B what is needed

A discharge summary begins with why the patient came and ends with what was found and where the patient went; what goes
first lies between. A note without known sections loses the middle of its text. ``[...]`` stands where text is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clinstack.errors import InputError
from clinstack.notes.sections.find import section_map
from clinstack.tokens.encode import TextEncoder

if TYPE_CHECKING:
    from clinstack.notes.sections.find import SectionSpan

GAP = "\n[...]\n"
"""Stands where a note lost text."""
_BATCH = 512
_PERCENTILES = (50, 90, 95, 99, 100)
_LONGEST_WORD = 40
"""A cut moves at most so many characters to stand between words."""


class Frame(NamedTuple):
    """A prompt without its note.

    Parameters
    ----------
    render : callable
        Returns the prompt's text with a note.
    room : int
        Tokens that the text may have.
    name : str
        Of the example, for messages.
    """

    render: Callable[[str], str]
    room: int
    name: str


@dataclass
class PromptReport:
    """What was read and what notes lost; numbers and names of sections only.

    `to_dict` has ``texts`` and ``texts_cut``; ``read``, the tokens of all prompts; ``cut``, tokens of the notes that no
    prompt has, and ``share_cut`` of all tokens of the notes; ``lengths``, percentiles of the prompts before the cut;
    ``cut_by_section``, where the key ``""`` is what has no section's name.
    """

    lengths: list[int] = field(default_factory=list)
    note_tokens: int = 0
    cut: int = 0
    texts_cut: int = 0
    by_section: Counter[str] = field(default_factory=Counter)

    def to_dict(self, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return the report."""
        report: dict[str, Any] = {
            "texts": len(self.lengths),
            "texts_cut": self.texts_cut,
            "read": sum(map(len, prompts)),
            "cut": self.cut,
            "share_cut": self.cut / max(1, self.note_tokens),
        }
        if self.lengths:
            values = np.percentile(self.lengths, _PERCENTILES).tolist()
            report["lengths"] = dict(zip((f"p{percent}" for percent in _PERCENTILES), values, strict=True))
        report["cut_by_section"] = dict(self.by_section.most_common())
        return report


def cut_prompts(report: Mapping[str, Any], split: str, max_tokens: int) -> list[str]:
    """Return what a person should know of the report of a split before the work goes on; nothing if nothing is cut."""
    if not report["texts_cut"]:
        return []
    named = [name for name in report["cut_by_section"] if name][:3]
    most = f", most of them in {', '.join(named)}" if named else ""
    return [
        f"{split}: {report['texts_cut']:,} of {report['texts']:,} notes are longer than their prompt has room for "
        f"(max_tokens {max_tokens}) and lose their middle: {report['share_cut']:.0%} of all tokens of notes{most}."
    ]


def fit_notes(
    encoder: TextEncoder,
    frames: Sequence[Frame],
    notes: Sequence[str],
    sections: Sequence[Sequence[SectionSpan] | None] | None,
    report: PromptReport,
) -> list[list[int]]:
    """Return the tokens of each prompt, with as much of its note as fits.

    Raises
    ------
    InputError
        If a prompt does not fit even without its note.
    """
    result: list[list[int]] = []
    for start in range(0, len(notes), _BATCH):
        part = slice(start, start + _BATCH)
        known = [None] * len(notes[part]) if sections is None else sections[part]
        result += _fit_batch(encoder, frames[part], notes[part], known, report)
    return result


def _fit_batch(
    encoder: TextEncoder,
    frames: Sequence[Frame],
    notes: Sequence[str],
    sections: Sequence[Sequence[SectionSpan] | None],
    report: PromptReport,
) -> list[list[int]]:
    encoded = _ids(encoder, [frame.render(note) for frame, note in zip(frames, notes, strict=True)])
    empty = _ids(encoder, [frame.render("") for frame in frames])
    waiting: dict[int, _LongNote] = {}
    for place, (frame, ids, without) in enumerate(zip(frames, encoded, empty, strict=True)):
        report.lengths.append(len(ids))
        report.note_tokens += max(0, len(ids) - len(without))
        if len(ids) > frame.room:
            if len(without) > frame.room:
                raise InputError(
                    f"example {frame.name}: its question and what stands around it have {len(without)} tokens and "
                    f"there is room for {frame.room} beside the answer; raise max_tokens, or drop the example."
                )
            waiting[place] = _LongNote(encoder, notes[place], sections[place], len(ids) - frame.room)
    long = dict(waiting)
    while waiting:
        again = _ids(encoder, [frames[place].render(note.kept()) for place, note in waiting.items()])
        for (place, note), ids in zip(waiting.items(), again, strict=True):
            encoded[place] = ids
            note.excess += max(0, len(ids) - frames[place].room)
        waiting = {place: note for place, note in waiting.items() if len(encoded[place]) > frames[place].room}
    for note in long.values():
        lost = note.lost()
        report.texts_cut += 1
        report.cut += lost.total()
        report.by_section.update(lost)
    return encoded


def shorten(encoder: TextEncoder, note: str, most: int) -> str:
    """Return a note with at most ``most`` tokens, without its middle where it has more."""
    count = len(_ids(encoder, [note])[0])
    if count <= most:
        return note
    long = _LongNote(encoder, note, None, count - most)
    while (over := len(_ids(encoder, [long.kept()])[0]) - most) > 0 and long.kept():
        long.excess += over
    return long.kept()


class _LongNote:
    """A note that has ``excess`` tokens too many."""

    def __init__(self, encoder: TextEncoder, note: str, sections: Sequence[SectionSpan] | None, excess: int) -> None:
        self._note = note
        self._spans = section_map(note) if sections is None else sections
        encoding = encoder.encode([note], places=encoder.knows_places)
        count = len(encoder.ids(encoding)[0])
        # A tokenizer that cannot say where its tokens stand has them as wide as they are on average.
        self._starts: NDArray[np.int64] = (
            encoder.places(encoding[0], range(count))
            if encoder.knows_places
            else np.linspace(0, len(note), count, endpoint=False).astype(np.int64)
        )
        self.excess = excess + len(_ids(encoder, [GAP])[0])

    def kept(self) -> str:
        """Return the note without ``excess`` tokens of its middle; nothing where it has no more than that."""
        begin, end = self._gap()
        if begin == 0 and end == len(self._note):
            return ""
        return f"{self._note[:begin].rstrip()}{GAP}{self._note[end:].lstrip()}".strip()

    def lost(self) -> Counter[str]:
        """Return how many tokens went, by the section's name."""
        begin, end = self._gap()
        gone = self._starts[np.searchsorted(self._starts, begin) : np.searchsorted(self._starts, end)]
        which = np.searchsorted([span.start for span in self._spans], gone, side="right") - 1
        counts: Counter[str] = Counter()
        for place, count in enumerate(np.bincount(which, minlength=len(self._spans)).tolist()):
            if count:
                counts[self._spans[place].name or ""] += count
        return counts

    def _gap(self) -> tuple[int, int]:
        """Return which characters go."""
        count = len(self._starts)
        if self.excess >= count:
            return 0, len(self._note)
        edges = [int(np.searchsorted(self._starts, span.start)) for span in self._spans] + [count]
        begin, end = _middle(edges, self.excess)
        first = _between_words(self._note, int(self._starts[begin]), -1)
        last = len(self._note) if end == count else _between_words(self._note, int(self._starts[end]), 1)
        return first, last


def _middle(edges: Sequence[int], excess: int) -> tuple[int, int]:
    """Return which tokens of a note go, as a range of ``excess`` of them.

    Parameters
    ----------
    edges : sequence of int
        Where its sections begin, in tokens, and the number of all tokens.
    excess : int
        Fewer than all.

    Examples
    --------
    >>> _middle([0, 10, 20, 30, 40, 50], 5)  # the third section loses its end
    (25, 30)
    >>> _middle([0, 10, 20, 30, 40, 50], 15)  # it goes, and of the second one as much as is needed
    (15, 30)
    >>> _middle([0, 10, 50], 20)  # with two sections the middle of the text goes
    (15, 35)
    """
    count, last = edges[-1], len(edges) - 2
    middle = count / 2
    if last >= 2:
        lo = min(max(int(np.searchsorted(edges, middle, side="right")) - 1, 1), last - 1)
        hi, grown = lo, 0
        while edges[hi + 1] - edges[lo] < excess:
            # The neighbour that is nearer to the middle; never the first section or the last.
            ways = [(middle - edges[lo], -1)] * (lo > 1) + [(edges[hi + 1] - middle, 1)] * (hi < last - 1)
            if not ways:
                break
            grown = min(ways)[1]
            lo, hi = (lo - 1, hi) if grown < 0 else (lo, hi + 1)
        else:
            # The last that was added loses only as much as is needed, on the side of the gap.
            begin, end = edges[lo], edges[hi + 1]
            return (begin, begin + excess) if grown > 0 else (end - excess, end)
    begin = (count - excess) // 2
    return begin, begin + excess


def _between_words(text: str, place: int, step: int) -> int:
    """Return the nearest place in a direction at which no word is cut; the same one where none is near."""
    at = place
    while 0 < at < len(text) and abs(at - place) <= _LONGEST_WORD:
        if text[at - 1].isspace() or text[at].isspace():
            return at
        at += step
    return at if at in (0, len(text)) else place


def _ids(encoder: TextEncoder, texts: Sequence[str]) -> list[list[int]]:
    encoded = encoder.ids(encoder.encode(texts))
    numbers = _numbers(1 + max((int(ids.max()) for ids in encoded if len(ids)), default=0))
    return [numbers[ids].tolist() for ids in encoded]


_shared: list[NDArray[np.object_]] = [np.empty(0, dtype=object)]


def _numbers(count: int) -> NDArray[np.object_]:
    """Return the integers below ``count``, each one object however often a token occurs.

    A hundred million tokens would otherwise be as many objects of 28 bytes.
    """
    if len(_shared[0]) < count:
        _shared[0] = np.arange(2 * count).astype(object)
    return _shared[0]
