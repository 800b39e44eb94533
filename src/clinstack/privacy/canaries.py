"""Canaries: invented identifiers and sentences, each a secret from a space of known size behind a text of its own.

::

    prefix (known to who asks)             secret (drawn from a space of known size)
    "Fernholt pharmacy record number"      "4821093"                                     10 000 000
    "Alderwick clinic telephone"           "617-555-0142"                                 8 000 000
    "Mossford ward contact"                "Marta Ellery, born 1947-03-12"               52 596 000
    "At Elmbury hospice they say"          "seven amber lanterns guard crooked bells"   127 401 984

Every canary has a prefix of its own, so that what a model remembers of one says nothing of another. A control is
invented alike and never planted: among others of its space its secret has no reason to be likelier than any other.

After Carlini et al. 2019, "The Secret Sharer: Evaluating and Testing Unintended Memorization in Neural Networks",
section 4.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from math import prod
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.files import read_json, write_json
from clinstack.recipe.canaries import CanariesRecipe

FORMAT_VERSION = 1
FILE = "canaries.json"
KINDS = ("record_number", "telephone", "name_born", "sentence")

_BEGINNINGS = (
    "Alder", "Ash", "Birch", "Bram", "Cobble", "Dun", "Elm", "Fern", "Gorse", "Hazel", "Heath", "Juniper", "Kestrel",
    "Larch", "Linden", "Maple", "Moss", "Oak", "Pine", "Reed", "Rowan", "Thistle", "Willow", "Yarrow",
)  # fmt: skip
_ENDINGS = ("bury", "combe", "dale", "ford", "ham", "holt", "mere", "stead", "thorpe", "ton", "wick", "worth")
_UNITS = ("clinic", "hospice", "laboratory", "office", "pharmacy", "practice", "station", "ward")
_FIRST_NAMES = (
    "Ada", "Agnes", "Albert", "Alma", "Anton", "Arthur", "Beatrice", "Bernard", "Bruno", "Cecil", "Clara", "Conrad",
    "Dora", "Edgar", "Edith", "Elias", "Emil", "Esther", "Felix", "Flora", "Gerald", "Greta", "Hannah", "Harold",
    "Ida", "Irving", "Judith", "Julius", "Klara", "Leo", "Lydia", "Magnus", "Marta", "Nora", "Oscar", "Paula",
    "Ralph", "Selma", "Theo", "Vera",
)  # fmt: skip
_LAST_NAMES = (
    "Abbot", "Alden", "Amory", "Ashby", "Barlow", "Beckett", "Bellamy", "Birch", "Blythe", "Bowen", "Brandt", "Briggs",
    "Calder", "Carver", "Chase", "Colby", "Corwin", "Dalton", "Denby", "Draper", "Drake", "Ellery", "Emerson", "Farrow",
    "Fenton", "Fisk", "Garner", "Gates", "Giles", "Hale", "Harlan", "Hollis", "Ingram", "Jarvis", "Kemp", "Kendall",
    "Lathrop", "Lind", "Lowell", "Marsh", "Mercer", "Monroe", "Nash", "Norwood", "Osborn", "Paxton", "Peyton", "Quill",
    "Ramsey", "Rigby", "Sayer", "Sewell", "Stroud", "Tabor", "Thorne", "Upton", "Vance", "Webb", "Whitby", "Yates",
)  # fmt: skip
_NUMBERS = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "twenty", "thirty",
    "forty", "fifty", "sixty",
)  # fmt: skip
_ADJECTIVES = (
    "amber", "broken", "copper", "crooked", "dusty", "frozen", "gentle", "golden", "hollow", "humble", "ivory", "lazy",
    "lonely", "marble", "painted", "nimble", "purple", "quiet", "restless", "rusty", "silver", "stubborn", "velvet",
    "wooden",
)  # fmt: skip
_NOUNS = (
    "anchors", "bells", "bridges", "candles", "chimneys", "drums", "engines", "feathers", "gardens", "hammers",
    "kettles", "ladders", "lanterns", "mirrors", "needles", "orchards", "pianos", "ribbons", "saddles", "sparrows",
    "towers", "umbrellas", "violins", "wagons",
)  # fmt: skip
_VERBS = (
    "admire", "answer", "borrow", "bury", "carry", "chase", "collect", "copy", "count", "envy", "fear", "follow",
    "forget", "guard", "guide", "hide", "ignore", "imitate", "paint", "polish", "praise", "repair", "trust", "visit",
)  # fmt: skip
_FIRST_DAY = date(1940, 1, 1)
_DAYS = (date(2000, 1, 1) - _FIRST_DAY).days


@dataclass(frozen=True)
class _Space:
    """The secrets of a kind, numbered.

    Parameters
    ----------
    behind : str
        Joins a place and a unit to the prefix; ``{}`` is the place with its unit.
    parts : tuple of int
        How many values each part of a secret has.
    write : callable
        Makes the secret of one value for each part.
    """

    behind: str
    parts: tuple[int, ...]
    write: Callable[..., str]

    @property
    def size(self) -> int:
        return prod(self.parts)

    def secret(self, number: int) -> str:
        values = []
        for size in reversed(self.parts):
            number, value = divmod(number, size)
            values.append(value)
        return self.write(*reversed(values))


_SPACES: dict[str, _Space] = {
    "record_number": _Space("{} record number", (10_000_000,), lambda number: f"{number:07d}"),
    # 555 is no exchange of its own in North America, so that hardly anybody has such a number.
    "telephone": _Space("{} telephone", (800, 10_000), lambda area, line: f"{area + 200}-555-{line:04d}"),
    "name_born": _Space(
        "{} contact",
        (len(_FIRST_NAMES), len(_LAST_NAMES), _DAYS),
        lambda first, last, day: (
            f"{_FIRST_NAMES[first]} {_LAST_NAMES[last]}, born {(_FIRST_DAY + timedelta(days=day)).isoformat()}"
        ),
    ),
    "sentence": _Space(
        "At {} they say",
        (len(_NUMBERS), len(_ADJECTIVES), len(_NOUNS), len(_VERBS), len(_ADJECTIVES), len(_NOUNS)),
        lambda number, one, things, verb, other, objects: (
            f"{_NUMBERS[number]} {_ADJECTIVES[one]} {_NOUNS[things]} {_VERBS[verb]} "
            f"{_ADJECTIVES[other]} {_NOUNS[objects]}"
        ),
    ),
}


@dataclass(frozen=True)
class Canary:
    """A text that is planted, or would be.

    Parameters
    ----------
    name : str
        Such as ``canary-003``, ``control-003``.
    kind : str
        One of `KINDS`.
    prefix, secret : str
        A blank stands between them.
    repetitions : int
        In how many notes, or answers, it is planted; 0 for a control, which never is.
    """

    name: str
    kind: str
    prefix: str
    secret: str
    repetitions: int

    @property
    def text(self) -> str:
        """What is planted: a sentence."""
        return f"{self.prefix} {self.secret}."

    @property
    def space(self) -> int:
        """How many secrets of this kind there are."""
        return space_size(self.kind)

    def others(self, count: int, seed: int) -> list[str]:
        """Return other secrets of the same space, all different, drawn by ``seed`` and the canary's name.

        All there are, where there are not more than ``count``.
        """
        space = _SPACES[self.kind]
        if count >= space.size - 1:
            return [secret for secret in map(space.secret, range(space.size)) if secret != self.secret]
        drawn = random.Random(f"{seed}:{self.name}:{self.prefix}").sample(range(space.size), count + 1)
        return [secret for secret in map(space.secret, drawn) if secret != self.secret][:count]


def space_size(kind: str) -> int:
    """Return how many secrets of a kind there are."""
    return _SPACES[kind].size


def invent(recipe: CanariesRecipe) -> tuple[list[Canary], list[Canary]]:
    """Return the canaries that are planted and the controls that are not: a function of the recipe alone.

    Repetition counts and kinds take turns, so that each count has as many of each kind as can be.
    """
    draw = random.Random(f"canaries:{recipe.seed}")
    places = [f"{beginning}{ending} {unit}" for beginning in _BEGINNINGS for ending in _ENDINGS for unit in _UNITS]
    chosen = draw.sample(places, 2 * recipe.count)
    counts = recipe.sorted_repetitions
    made: list[Canary] = []
    for number, place in enumerate(chosen):
        planted, own = number < recipe.count, number % recipe.count
        kind = KINDS[own // len(counts) % len(KINDS)]
        space = _SPACES[kind]
        name = f"{'canary' if planted else 'control'}-{own:03d}"
        secret = space.secret(draw.randrange(space.size))
        made.append(Canary(name, kind, space.behind.format(place), secret, counts[own % len(counts)] if planted else 0))
    return made[: recipe.count], made[recipe.count :]


@dataclass(frozen=True)
class Placing:
    """One copy of a canary.

    Parameters
    ----------
    where : str
        The note's id, or the example's.
    secret_tokens, trained_tokens : int
        Tokens of the secret there, and how many of them receive loss in the training.
    """

    where: str
    secret_tokens: int
    trained_tokens: int


@dataclass(frozen=True)
class PlantedCanaries:
    """What ``canaries.json`` in a Run holds. Canaries are invented, so their text may stand there.

    Parameters
    ----------
    seed : int
    repetitions : tuple of int
    places_in : {"notes", "answers"}
    keeps_length : bool
        Whether the notes lost at their end what the canary added.
    planted, controls : tuple of Canary
    placings : dict of str to tuple of Placing
        By the name of each planted one.
    """

    seed: int
    repetitions: tuple[int, ...]
    places_in: str
    keeps_length: bool
    planted: tuple[Canary, ...]
    controls: tuple[Canary, ...]
    placings: dict[str, tuple[Placing, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of ``canaries.json``."""
        key = "note_id" if self.places_in == "notes" else "example_id"
        return {
            "format_version": FORMAT_VERSION,
            "seed": self.seed,
            "repetitions": list(self.repetitions),
            "places_in": self.places_in,
            "keeps_length": self.keeps_length,
            "spaces": {kind: space_size(kind) for kind in KINDS},
            "canaries": [
                {
                    **asdict(canary),
                    "places": [
                        {
                            key: placing.where,
                            "secret_tokens": placing.secret_tokens,
                            "trained_tokens": placing.trained_tokens,
                        }
                        for placing in self.placings[canary.name]
                    ],
                }
                for canary in self.planted
            ],
            "controls": [asdict(canary) for canary in self.controls],
        }


def write_canaries(folder: Path, planted: PlantedCanaries) -> None:
    """Write ``canaries.json`` of a Run; one that an earlier start of the Run wrote must say the same.

    Raises
    ------
    InputError
        If it does not: then the Run would go on with other canaries than it began with.
    """
    path = folder / FILE
    record = planted.to_dict()
    if path.is_file():
        if read_json(path) == record:
            return
        raise InputError(
            f"{path}: this start would plant other canaries than the one that began the Run; pass --fresh to begin "
            "anew (what is there is deleted), or name another run."
        )
    write_json(path, record)


def read_canaries(folder: Path) -> PlantedCanaries | None:
    """Read ``canaries.json`` of a Run; None where there is none.

    Raises
    ------
    InputError
        If it is damaged, or of another format.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        if record["format_version"] != FORMAT_VERSION:
            raise InputError(f"{path}: format version {record['format_version']}; this clinstack reads 1.")
        key = "note_id" if record["places_in"] == "notes" else "example_id"
        places = {item["name"]: item.pop("places") for item in record["canaries"]}
        return PlantedCanaries(
            record["seed"],
            tuple(record["repetitions"]),
            record["places_in"],
            record["keeps_length"],
            _checked(record["canaries"]),
            _checked(record["controls"]),
            {
                name: tuple(Placing(one[key], one["secret_tokens"], one["trained_tokens"]) for one in found)
                for name, found in places.items()
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}); take the file as the Run wrote it.") from None


def _checked(items: Sequence[dict[str, Any]]) -> tuple[Canary, ...]:
    canaries = tuple(Canary(**item) for item in items)
    for canary in canaries:
        if canary.kind not in _SPACES:
            raise ValueError(canary.kind)
    return canaries
