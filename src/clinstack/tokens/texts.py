"""Texts to what a classifier reads of them: the parts of a longer text that fit, and a report of what was cut.

::

    a text            |aaaaaaaa|bbbbbbbb|cccccccc|dd|            room of a piece: |........|

    beginning         |aaaaaaaa|
    end                                  |..cccccc|dd|
    both_ends         |aa|           and     |cccc|dd|           in one piece
    sections          the sections that matter most, whole       in one piece
    chunks            |aaaaaaaa|, |bbbbbbbb|, |cccccccc|, |dd|   a piece each

The room is what ``max_tokens`` leaves beside the suffix and the tokens that the tokenizer itself puts around a text,
which stand around every piece.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from clinstack.errors import InputError
from clinstack.model.reading import Reading
from clinstack.notes.sections.find import SectionSpan, section_map
from clinstack.notes.sections.priority import default_priority
from clinstack.tokens.documents import Tokens
from clinstack.tokens.encode import TextEncoder, own_ends
from clinstack.tokens.shorten import importance, keep_sections, kept_ranges

_BATCH = 512
"""Texts that are with the tokenizer at once; all of a large split at once would need much memory."""
_PERCENTILES = (50, 90, 95, 99, 100)


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as a classifier reads them.

    Parameters
    ----------
    pieces : list of int64 arrays
        Each at most ``max_tokens`` long, at least 1; those of a text stand together and in order.
    owners : int64 array [pieces]
        Which text a piece is of; 0, 1, 2 and so on where texts are not cut into chunks.
    cut : dict
        What was read and cut, in tokens; `CutReport` names its keys.
    cut_tokens : list of int
        Tokens of each text that no piece has.
    """

    pieces: list[Tokens]
    owners: NDArray[np.int64]
    cut: dict[str, Any]
    cut_tokens: list[int]


class Frame(NamedTuple):
    """What stands around every piece, and how many tokens of a text are between."""

    before: list[int]
    after: list[int]
    room: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, reading: Reading) -> Frame:
        """Return the tokenizer's own begin; the suffix and the tokenizer's own end; the rest of ``max_tokens``.

        Raises
        ------
        InputError
            If no token of a text has room, or chunks of this size would not move on.
        """
        before, end = own_ends(tokenizer)
        suffix: list[int] = tokenizer(reading.suffix, add_special_tokens=False)["input_ids"] if reading.suffix else []
        room = reading.max_tokens - len(before) - len(suffix) - len(end)
        if room < 1:
            what = f"suffix: it has {len(suffix)} tokens and" if suffix else "max_tokens: what stands around every text"
            raise InputError(
                f"{what} leaves no room for notes in max_tokens {reading.max_tokens}; "
                f"set max_tokens to {reading.max_tokens - room + 1} or more."
            )
        if reading.keep == "chunks" and reading.chunk_overlap >= room:
            raise InputError(
                f"chunk_overlap: {reading.chunk_overlap} tokens, but a chunk has room for {room} tokens of a note; "
                f"set chunk_overlap to {room - 1} or less."
            )
        return cls(before, [*suffix, *end], room)

    def around(self, ids: Sequence[NDArray[Any]], filler: int) -> Tokens:
        """Return a piece of these parts of a text, one after another; ``filler`` where there would be no token."""
        tokens = np.concatenate([self.before, *ids, self.after]).astype(np.int64)
        return tokens if len(tokens) else np.array([filler], dtype=np.int64)


@dataclass
class CutReport:
    """What was read and cut, counted text by text; numbers and names of sections only.

    `to_dict` has ``texts`` and ``texts_cut``; ``read``: tokens of all pieces, with what stands around them and what
    chunks share; ``cut``: tokens of the texts that no piece has, and ``share_cut`` of all tokens of the texts;
    ``lengths``: percentiles of the texts' lengths in tokens before the cut; with known sections ``cut_by_section``,
    where the key ``""`` is what has no section's name; with whole sections ``notes_cut_inside_a_section``, texts whose
    most important section alone was too long; with chunks ``chunks``: how many texts were read in so many.
    """

    reading: Reading
    lengths: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    by_section: Counter[str] = field(default_factory=Counter)
    knows_sections: bool = False
    cut_inside: int = 0
    chunks: Counter[int] = field(default_factory=Counter)

    def note(self, length: int, cut: int, pieces: int) -> None:
        """Count one text: its tokens, those that were cut, and the pieces it was read in."""
        self.lengths.append(length)
        self.cuts.append(cut)
        self.chunks[pieces] += 1

    def to_dict(self, pieces: Sequence[Tokens]) -> dict[str, Any]:
        """Return the report."""
        report: dict[str, Any] = {
            "texts": len(self.lengths),
            "texts_cut": sum(cut > 0 for cut in self.cuts),
            "read": sum(map(len, pieces)),
            "cut": sum(self.cuts),
            "share_cut": sum(self.cuts) / max(1, sum(self.lengths)),
        }
        if self.lengths:
            values = np.percentile(self.lengths, _PERCENTILES).tolist()
            report["lengths"] = dict(zip((f"p{percent}" for percent in _PERCENTILES), values, strict=True))
        if self.knows_sections or self.reading.keep == "sections":
            report["cut_by_section"] = dict(self.by_section.most_common())
        if self.reading.keep == "sections":
            report["notes_cut_inside_a_section"] = self.cut_inside
        if self.reading.keep == "chunks":
            report["chunks"] = {str(number): self.chunks[number] for number in sorted(self.chunks)}
        return report


def cut_notes(reading: Reading, cut: Mapping[str, Any], split: str) -> list[str]:
    """Return what a person should know of the report of a split before the work goes on; nothing if nothing is cut."""
    if not cut["texts_cut"]:
        return []
    return [
        f"{split}: {cut['texts_cut']:,} of {cut['texts']:,} notes are longer than what is read (max_tokens "
        f"{reading.max_tokens}, keep {reading.keep}); {cut['share_cut']:.0%} of all tokens are cut."
    ]


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
    texts: Sequence[str],
    sections: Sequence[Sequence[SectionSpan] | None] | None = None,
) -> EncodedTexts:
    """Encode texts for a classifier.

    A text that fits is what the tokenizer makes of it by itself; ``beginning`` and ``chunks`` are its own truncation
    and its own overflowing pieces. ``both_ends`` is head and tail of Sun et al. 2019 ("How to Fine-Tune BERT for Text
    Classification?", section 5.3.1). The suffix is the last part of the text of every piece.

    Parameters
    ----------
    sections : sequence, optional
        The sections of each text, which cover it, or None where nobody looked. For ``sections`` they are looked for;
        else they only tell in the report what was cut, where the tokenizer is a fast one.

    Raises
    ------
    InputError
        If the suffix leaves no room for the text, or chunks of this size would not move on.
    """
    return NoteEncoder(tokenizer, reading).encode(texts, sections)


class NoteEncoder:
    """What `encode_texts` does, for texts that come one after another.

    What it needs of the tokenizer is made once, which takes longer than to encode a note.

    Raises
    ------
    InputError
        As `encode_texts`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, reading: Reading, encoder: TextEncoder | None = None
    ) -> None:
        self._encoder = encoder or TextEncoder(tokenizer)
        self._reading = reading
        self._frame = Frame.of(tokenizer, reading)
        begin = tokenizer.bos_token_id
        self._filler = int(begin if begin is not None else tokenizer.pad_token_id or 0)

    def encode(
        self, texts: Sequence[str], sections: Sequence[Sequence[SectionSpan] | None] | None = None
    ) -> EncodedTexts:
        """Encode texts; see `encode_texts`."""
        report = CutReport(self._reading)
        pieces: list[Tokens] = []
        owners: list[int] = []
        for start in range(0, len(texts), _BATCH):
            batch = texts[start : start + _BATCH]
            known = [None] * len(batch) if sections is None else sections[start : start + _BATCH]
            encode = _by_sections if self._reading.keep == "sections" else _by_ranges
            for place, parts in enumerate(encode(self._encoder, self._frame, report, batch, known), start):
                pieces += [self._frame.around(part, self._filler) for part in parts]
                owners += [place] * len(parts)
        return EncodedTexts(pieces, np.array(owners, dtype=np.int64), report.to_dict(pieces), report.cuts)


def _by_ranges(
    encoder: TextEncoder,
    frame: Frame,
    report: CutReport,
    texts: Sequence[str],
    sections: Sequence[Sequence[SectionSpan] | None],
) -> Iterable[list[list[NDArray[Any]]]]:
    """Yield for each text its pieces, each a list of parts of its tokens."""
    with_places = encoder.knows_places and any(spans is not None for spans in sections)
    encodings = encoder.encode(texts, places=with_places)
    for encoding, ids, spans in zip(encodings, encoder.ids(encodings), sections, strict=True):
        pieces, gap = kept_ranges(len(ids), frame.room, report.reading)
        report.note(len(ids), len(gap), len(pieces))
        if with_places and spans is not None:
            report.knows_sections = True
            if gap:
                _count_sections(report.by_section, spans, encoder.places(encoding, gap))
        yield [[ids[part.start : part.stop] for part in piece] for piece in pieces]


def _count_sections(counts: Counter[str], spans: Sequence[SectionSpan], places: NDArray[np.int64]) -> None:
    """Count tokens that begin at these characters of a text by the names of their sections."""
    which = np.searchsorted([span.start for span in spans], places, side="right") - 1
    for place, count in enumerate(np.bincount(which, minlength=len(spans)).tolist()):
        if count:
            counts[spans[place].name or ""] += count


def _by_sections(
    encoder: TextEncoder,
    frame: Frame,
    report: CutReport,
    texts: Sequence[str],
    sections: Sequence[Sequence[SectionSpan] | None],
) -> Iterable[list[list[NDArray[Any]]]]:
    """Return for each text its one piece of one part; of longer ones whole sections go, the least important first."""
    encoded = encoder.ids(encoder.encode(texts))
    long = {
        place: _Shortened(texts[place], section_map(texts[place]) if (known := sections[place]) is None else known)
        for place, ids in enumerate(encoded)
        if len(ids) > frame.room
    }
    counted = iter(encoder.ids(encoder.encode([text for item in long.values() for text in item.texts])))
    for item in long.values():
        item.choose([len(next(counted)) for _ in item.spans], frame.room)
    waiting = long
    while waiting:
        joined = encoder.ids(encoder.encode([item.joined() for item in waiting.values()]))
        for item, ids in zip(waiting.values(), joined, strict=True):
            item.ids = ids
        # Sections can have a token more together than apart.
        waiting = {
            place: item for place, item in waiting.items() if len(item.ids) > frame.room and item.drops_another()
        }
    for place, ids in enumerate(encoded):
        cut = 0
        if place in long:
            dropped = long[place].dropped(frame.room)
            report.by_section.update(dropped)
            report.cut_inside += len(long[place].ids) > frame.room
            encoded[place] = long[place].ids[: frame.room]
            cut = dropped.total()
        report.note(len(ids), cut, 1)
    return [[[ids]] for ids in encoded]


class _Shortened:
    """A text that is too long, and which of its sections stay."""

    def __init__(self, text: str, spans: Sequence[SectionSpan]) -> None:
        self.spans = spans
        self.texts = [text[span.start : span.end] for span in spans]
        self.ids: NDArray[Any] = np.empty(0, dtype=np.int64)
        self._priority = default_priority(spans)
        self._lengths: list[int] = []
        self._kept: list[int] = []

    def choose(self, lengths: list[int], room: int) -> None:
        """Choose the sections that stay by the tokens that each has."""
        self._lengths = lengths
        self._kept = keep_sections(self.spans, lengths, room, self._priority)

    def joined(self) -> str:
        return "".join(self.texts[place] for place in self._kept).strip()

    def drops_another(self) -> bool:
        """Drop the least important section that is left, unless it is the last."""
        if len(self._kept) == 1:
            return False
        order = importance(self.spans, self._priority)
        self._kept.remove(next(place for place in reversed(order) if place in self._kept))
        return True

    def dropped(self, room: int) -> Counter[str]:
        """Return how many tokens went, by the section's name."""
        counts: Counter[str] = Counter()
        for place, length in enumerate(self._lengths):
            if place not in self._kept:
                counts[self.spans[place].name or ""] += length
        if len(self.ids) > room:
            counts[self.spans[self._kept[0]].name or ""] += len(self.ids) - room
        return counts
