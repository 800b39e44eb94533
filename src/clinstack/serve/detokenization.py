"""An answer's tokens as text, piece by piece: what is shown never changes when more comes.

::

    tokens        ▁Caf  0xC3  0xA9  ▁
    shown         "Caf"   ·   "é"   ·       the first byte of a letter waits for the others, a blank for what follows

All pieces together are the text that `clinstack.engine.generation.generate` gives: without special tokens, and without
blanks at its ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"
"""Stands for bytes that are no letter, or not yet."""


class AnswerText:
    """The text of one answer while its tokens come.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    stop : sequence of str
        The text ends before the first of these.

    Attributes
    ----------
    is_stopped : bool
        Whether one of them came.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._window: list[int] = []
        self._read = 0
        self._held = ""
        self._has_begun = False
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Return the text that is certain now and was not before."""
        if self.is_stopped:
            return ""
        # Of the tokens before, only those of the last piece: a tokenizer's blank before a word depends on whether
        # something stands before it.
        self._window.append(token)
        new = self._unread()
        if new.endswith(_INCOMPLETE):
            return ""
        if new:
            self._window = self._window[self._read :]
            self._read = len(self._window)
        return self._show(new)

    def end(self) -> str:
        """Return what was held back, when no token comes any more."""
        if self.is_stopped:
            return ""
        shown = self._show(self._unread())
        last = "" if self.is_stopped else self._held.rstrip()
        self._held = ""
        return shown + last

    def _unread(self) -> str:
        """Return the text of the tokens behind the last piece."""
        text, before = self._decode(self._window), self._decode(self._window[: self._read])
        if text.startswith(before):
            return text[len(before) :]
        # Where letters are spelled as bytes, one byte too many makes a whole run of them unreadable: what was shown of
        # it stands.
        return self._decode(self._window[self._read :])

    def _decode(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _show(self, new: str) -> str:
        """Return the new text without what may yet turn out to be a stop, or a blank at the end."""
        text = self._held + new
        place = min((found for found in map(text.find, self._stop) if found >= 0), default=None)
        if place is not None:
            self.is_stopped = True
            certain, self._held = text[:place].rstrip(), ""
        else:
            length = min(len(text) - self._begun_stop(text), len(text.rstrip()))
            # A blank before the beginning of a stop waits with it.
            length = len(text[:length].rstrip())
            certain, self._held = text[:length], text[length:]
        if not self._has_begun:
            certain = certain.lstrip()
            self._has_begun = bool(certain)
        return certain

    def _begun_stop(self, text: str) -> int:
        """Return how many of the last characters may be the beginning of a stop."""
        lengths = (
            length
            for stop in self._stop
            for length in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:length])
        )
        return max(lengths, default=0)
