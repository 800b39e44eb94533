"""Cleaning of notes: the marks of de-identification and stray blanks go; words and lines stay.

The notes of a batch lie one behind the other in one buffer. What is to be done concerns blanks and line feeds only, so
the buffer is looked at as bytes: the few runs of several of them are found, and whatever of them has to go is left out
of one copy. That is several times faster than one expression after another over every note.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_BLANK, _FEED, _STAR, _OPEN, _CLOSE = b" "[0], b"\n"[0], b"*"[0], b"["[0], b"]"[0]
_ONE_BYTE = bytes.maketrans(b"\t\v\f", b" \n\n")
_SAME_LENGTH = (
    *((b"\r\n", b" \n"), (b"\r", b"\n")),
    *(
        ("\x85".encode(), b" \n"),
        ("\u2028".encode(), b"  \n"),
        ("\u2029".encode(), b"  \n"),
        ("\u00a0".encode(), b"  "),
    ),
)
"""Offsets of notes stay true: a blank too many goes later, beside a line feed or another blank."""


def clean_texts(texts: pa.Array) -> pa.Array:
    """Clean an Arrow array of notes.

    Every kind of line break becomes one line feed, NUL bytes go, the brackets of placeholders ("[**", "**]") go and
    their words stay, runs of blanks shrink to one blank, blanks around line breaks go, more than one blank line becomes
    one, and nothing blank stays at either end. Cleaning twice changes nothing.

    Parameters
    ----------
    texts : pyarrow.Array
        Of strings; nulls stay null.

    Returns
    -------
    pyarrow.Array
        Of ``large_string``, of the same length.
    """
    values = pc.cast(texts, pa.large_string())
    if values.offset:
        # Its bitmap of nulls would begin in the middle of a byte.
        values = values.take(pa.array(np.arange(len(values))))
    if pc.any(pc.match_substring(values, "\0")).as_py():
        values = pc.replace_substring(values, "\0", "")
    offsets = np.frombuffer(values.buffers()[1], np.int64)[: len(values) + 1]
    if not len(values) or offsets[-1] == offsets[0]:
        return values
    data = values.buffers()[2].to_pybytes()[offsets[0] : offsets[-1]]
    offsets = offsets - offsets[0]
    for found, instead in _SAME_LENGTH if not data.isascii() else _SAME_LENGTH[:2]:
        if found in data:
            data = data.replace(found, instead)
    if any(character in data for character in (b"\t", b"\v", b"\f")):
        data = data.translate(_ONE_BYTE)
    bytes_ = np.frombuffer(data, np.uint8).copy()
    _blank_marks(bytes_, offsets)
    kept = _shrink_runs(bytes_, offsets)
    if kept is not None:
        gone = np.flatnonzero(~kept)
        bytes_ = bytes_[kept]
        offsets = offsets - np.searchsorted(gone, offsets)
    buffers = [values.buffers()[0], pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(bytes_)]
    return pa.Array.from_buffers(pa.large_string(), len(values), buffers, values.null_count)


def clean_text(text: str) -> str:
    """Clean one note; see `clean_texts`."""
    return str(clean_texts(pa.array([text], pa.large_string()))[0])


def _blank_marks(bytes_: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
    """Overwrite "[**" and "**]" with blanks, which shrink to one later."""
    stars = bytes_ == _STAR
    pairs = np.flatnonzero(stars[:-1] & stars[1:])
    if not pairs.size:
        return
    begins = np.zeros(len(bytes_) + 2, bool)
    begins[offsets] = True
    one_note = ~begins[pairs + 1]
    opening = one_note & ~begins[pairs] & (bytes_[pairs - 1] == _OPEN)
    behind = np.minimum(pairs + 2, len(bytes_) - 1)
    closing = one_note & ~begins[pairs + 2] & (bytes_[behind] == _CLOSE)
    # "[**]" and "[***]" open and have no stars left to close with.
    closing &= ~opening
    closing[1:] &= ~(opening[:-1] & (pairs[1:] == pairs[:-1] + 1))
    for chosen, shifts in ((opening, (-1, 0, 1)), (closing, (0, 1, 2))):
        for shift in shifts:
            bytes_[pairs[chosen] + shift] = _BLANK


def _shrink_runs(bytes_: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Write what a run of blanks and line feeds becomes over its beginning; return the mask of bytes that stay.

    A run at either end of a note becomes nothing, one without a line feed a blank, one with a line feed this line feed,
    one with several two of them.
    """
    white = bytes_ == _BLANK
    white |= bytes_ == _FEED
    both = white[:-1] & white[1:]
    inner = offsets[(offsets > 0) & (offsets < len(bytes_))]
    both[inner - 1] = False
    pairs = np.flatnonzero(both)
    new = np.ones(len(pairs), bool)
    new[1:] = pairs[1:] != pairs[:-1] + 1
    begins = pairs[new]
    ends = pairs[np.append(new[1:], True)] + 1 if len(pairs) else pairs
    # Blanks that stand alone matter at the ends of a note only.
    filled = offsets[:-1][offsets[1:] > offsets[:-1]]
    last = offsets[1:][offsets[1:] > offsets[:-1]] - 1
    alone = np.unique(np.concatenate([filled[white[filled]], last[white[last]]]))
    if len(begins):
        place = np.searchsorted(begins, alone, side="right") - 1
        alone = alone[(place < 0) | (alone > ends[np.maximum(place, 0)])]
    if not len(begins) and not len(alone):
        return None
    kept = np.ones(len(bytes_), bool)
    kept[alone] = False
    if len(begins):
        lengths = ends - begins + 1
        shift = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        members = np.arange(int(lengths.sum())) + np.repeat(begins - shift, lengths)
        feeds = np.add.reduceat((bytes_[members] == _FEED).astype(np.int64), shift)
        bounds = np.zeros(len(bytes_) + 1, bool)
        bounds[offsets] = True
        outer = bounds[begins] | bounds[ends + 1]
        kept[members] = False
        bytes_[begins] = np.where(feeds > 0, _FEED, _BLANK)
        kept[begins] = ~outer
        two = begins[(feeds > 1) & ~outer] + 1
        bytes_[two] = _FEED
        kept[two] = True
    return kept
