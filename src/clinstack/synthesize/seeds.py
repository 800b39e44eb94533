"""What is drawn: the task of each question, its examples, and the seed that is sent with it.

Each draw is a function of the recipe's seed and a stable key or place, never of what came back first.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from clinstack.notes.instructions import TASKS
from clinstack.synthesize.prompts import SEEDS_SHOWN


def request_seed(seed: int, key: str) -> int:
    """Return the seed that goes with a request: 31 bits of a hash, as every server takes them."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:4], "big") >> 1


def task_of(seed: int, place: int) -> str:
    """Return the task of the question at a place.

    Each eight questions have all eight tasks, in an order drawn by the seed: the tasks are balanced to one, and further
    notes at the end change nothing before them.
    """
    block, within = divmod(place, len(TASKS))
    return random.Random(f"{seed}:tasks:{block}").sample(TASKS, len(TASKS))[within]


class Examples:
    """Draws the examples that a question prompt shows: three seeds and some earlier questions of the task.

    Parameters
    ----------
    seeds : dict of str to sequence of str
        Of each task.
    seed : int
    earlier : int
        At most so many earlier questions.
    lag : int
        Only questions at least so many places before.
    """

    def __init__(self, seeds: dict[str, tuple[str, ...]], seed: int, earlier: int, lag: int) -> None:
        self._seeds = seeds
        self._seed = seed
        self._earlier = earlier
        self._lag = lag
        self._places: dict[str, list[int]] = {task: [] for task in TASKS}
        self._questions: dict[int, str] = {}

    def add(self, place: int, task: str) -> None:
        """Say that the question at a place is of a task; places come in order, before the questions are known."""
        self._places[task].append(place)

    def answer(self, place: int, question: str) -> None:
        """Say what the question at a place is; one that failed is never said."""
        self._questions[place] = question

    def draw(self, place: int, task: str) -> tuple[list[str], list[str]]:
        """Return the seeds and the earlier questions for the question at a place.

        Drawn are places, whatever became of them: one whose question failed leaves a gap, so that no other prompt
        depends on which requests fail.
        """
        chance = random.Random(f"{self._seed}:examples:{place}")
        seeds = chance.sample(sorted(set(self._seeds[task])), SEEDS_SHOWN)
        candidates = self._until(self._places[task], place - self._lag)
        drawn = chance.sample(range(candidates), min(self._earlier, candidates))
        questions = [self._questions.get(self._places[task][index]) for index in drawn]
        return seeds, list(dict.fromkeys(question for question in questions if question is not None))

    @staticmethod
    def _until(places: Sequence[int], last: int) -> int:
        """Return how many of the ascending places are at most ``last``."""
        count = len(places)
        while count and places[count - 1] > last:
            count -= 1
        return count


def shown(questions: Sequence[str]) -> str:
    """Return examples as a list, each on one line."""
    return "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(questions, start=1))
