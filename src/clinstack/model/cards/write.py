"""Writing the cards beside stack.json: each file in one step, and never over what a person wrote.

A page that was rendered ends with a comment that has the hash of all above it. A README.md whose hash is another, or
that has none, is a person's: it stays, and the new page stands beside it as README.generated.md.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from clinstack.errors import InputError
from clinstack.files import write_json, write_text
from clinstack.model.cards.chai import ROOT, chai_json, chai_xml
from clinstack.model.cards.facts import TRIPOD_FILE, StackFacts, gather
from clinstack.model.cards.readme import stack_readme
from clinstack.model.cards.tripod_llm import checklist
from clinstack.model.cards.tripod_page import tripod_page

README_FILE = "README.md"
TRIPOD_PAGE = "TRIPOD-LLM.md"
CHAI_FILE = "chai.json"
CHAI_XML = "chai.xml"
CARD_FILES = (README_FILE, TRIPOD_PAGE, TRIPOD_FILE, CHAI_FILE, CHAI_XML)
"""What `write_cards` writes. They say how long a Run took, so they are not the same for two Runs of one recipe."""
_MARK = re.compile(r"\n<!-- Rendered by clinstack, sha256 of the text above: ([0-9a-f]{64}) -->\s*\Z")


@dataclass(frozen=True)
class Cards:
    """What was written.

    Parameters
    ----------
    paths : tuple of Path
    notes : tuple of str
        What a person should know.
    items : dict of str to int
        How many items of TRIPOD-LLM are answered, open, or not applicable.
    """

    paths: tuple[Path, ...]
    notes: tuple[str, ...]
    items: dict[str, int]


def write_cards(stack_folder: Path) -> Cards:
    """Render the cards of a Stack anew, from what is on disk.

    Parameters
    ----------
    stack_folder : Path
        With ``stack.json``, which is left as it is.

    Raises
    ------
    InputError
        If stack.json or ``card.yaml`` is damaged, or a card cannot be written.
    """
    facts = gather(stack_folder)
    found = checklist(facts)
    try:
        readme, note = write_page(stack_folder / README_FILE, stack_readme(facts, found))
        page, other = write_page(stack_folder / TRIPOD_PAGE, tripod_page(found))
        paths = [readme, page, *write_machine_readable(stack_folder, facts)]
    except OSError as error:
        where = error.filename2 or error.filename or stack_folder
        raise InputError(
            f"{where}: the card cannot be written ({error.strerror}); copy the stack to where you may write."
        ) from None
    return Cards(tuple(paths), tuple(text for text in (note, other) if text), found.counts)


def write_machine_readable(folder: Path, facts: StackFacts) -> list[Path]:
    """Write ``tripod-llm.json``, ``chai.json`` and ``chai.xml`` into a folder."""
    write_json(folder / TRIPOD_FILE, checklist(facts).to_dict())
    card = chai_json(facts)
    write_json(folder / CHAI_FILE, card)
    write_text(folder / CHAI_XML, chai_xml(card[ROOT]))
    return [folder / TRIPOD_FILE, folder / CHAI_FILE, folder / CHAI_XML]


def write_page(file: Path, text: str) -> tuple[Path, str | None]:
    """Write a page, or where a person's stands in its place, beside that.

    Returns
    -------
    Path
        Where it was written.
    str or None
        What a person should know.
    """
    beside = file.with_name(f"{file.stem}.generated{file.suffix}")
    if file.is_file() and not is_rendered(file.read_text(encoding="utf-8", errors="replace")):
        write_text(beside, marked(text))
        return beside, f"{file} was written by a person and stays; the new page is {beside.name}."
    write_text(file, marked(text))
    if beside.is_file() and is_rendered(beside.read_text(encoding="utf-8", errors="replace")):
        beside.unlink()
    return file, None


def marked(text: str) -> str:
    """Return a page with the comment at its end."""
    return f"{text}\n<!-- Rendered by clinstack, sha256 of the text above: {_hash(text)} -->\n"


def is_rendered(text: str) -> bool:
    """Whether a page is as it was rendered; other ends of lines are no change."""
    text = text.replace("\r\n", "\n")
    found = _MARK.search(text)
    return found is not None and _hash(text[: found.start()]) == found[1]


def _hash(text: str) -> str:
    return hashlib.sha256(text.rstrip().encode()).hexdigest()
