"""The engine ``lists``: names and places from text files that the user has, in the manner of Philter.

Philter (Norgeot et al. 2020, "Protected Health Information filter", section Methods) compares each word with lists of
names and lists of safe words. Here a word on a list counts where it is written as a name is, with a capital or in
capitals, and is on no safe list; so does a row of such words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from clinstack.errors import InputError
from clinstack.privacy.identifiers.identifier import KINDS, PLACEHOLDER, Identifier

NAME = "lists"
SAFE = "safe"
"""The file of words that are never identifiers: ``safe.txt``."""
ANY_CASE = "any-case"
"""Files whose name ends so, such as ``name.any-case.txt``, count in lower case too."""
_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
_LONGEST = 4
"""Words of one entry at most."""


class WordLists:
    """Finds the entries of lists.

    Parameters
    ----------
    folder : Path
        Text files, one entry of one to four words a line, ``#`` before a remark. The file's name is the kind:
        ``name.txt``, ``address.txt``, ``hospital.txt``; several of a kind are ``name.surnames.txt`` and so on.
        ``safe.txt`` holds words that are no identifiers even when they are on a list, such as *White* or *Bell*;
        ``<kind>.any-case.txt`` has entries that also count in lower case.

    Raises
    ------
    InputError
        If the folder has no list, a file is no text, or its name is no kind.
    """

    name = NAME

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
        self._kind: dict[tuple[str, ...], tuple[str, bool]] = {}
        safe: set[tuple[str, ...]] = set()
        for file in files:
            kind = file.name.split(".")[0]
            if kind != SAFE and (kind not in KINDS or kind == PLACEHOLDER):
                raise InputError(
                    f"{file}: its name must begin with a kind ({', '.join(KINDS[:-1])}) or be {SAFE}.txt; rename it."
                )
            for entry in _entries(file):
                if kind == SAFE:
                    safe.add(entry)
                else:
                    any_case = f".{ANY_CASE}." in file.name or self._kind.get(entry, ("", False))[1]
                    self._kind.setdefault(entry, (kind, any_case))
        for entry in safe:
            self._kind.pop(entry, None)
        if not self._kind:
            raise InputError(
                f"{folder} has no list with an entry; put text files such as name.txt there, one entry a line."
            )

    @cached_property
    def _first_words(self) -> frozenset[str]:
        return frozenset(entry[0] for entry in self._kind)

    def find(self, text: str) -> Iterator[Identifier]:
        """Yield the longest entries, by position."""
        words = [(match.start(), match.end(), match.group()) for match in _WORD.finditer(text)]
        place = 0
        while place < len(words):
            step = 1
            if _plain(words[place][2]) in self._first_words:
                for count in range(min(_LONGEST, len(words) - place), 0, -1):
                    row = words[place : place + count]
                    found = self._kind.get(tuple(_plain(word) for _, _, word in row))
                    if found and (found[1] or all(word[0].isupper() for _, _, word in row)):
                        yield Identifier(row[0][0], row[-1][1], found[0], NAME)
                        step = count
                        break
            place += step


def _plain(word: str) -> str:
    return word.casefold().replace("’", "'")


def _entries(file: Path) -> Iterator[tuple[str, ...]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{file} is no text in UTF-8 ({type(error).__name__}); save it as UTF-8.") from None
    for number, line in enumerate(lines, 1):
        words = tuple(_plain(word) for word in _WORD.findall(line.partition("#")[0]))
        if len(words) > _LONGEST:
            raise InputError(f"{file}, line {number}: an entry has {_LONGEST} words at most.")
        if words:
            yield words
