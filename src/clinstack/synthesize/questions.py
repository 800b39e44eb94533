"""Questions about notes and their answers: which request follows from which reply.

note 1 ─▶ question 1 ─▶ … lag … ─▶ answer 1
note 2 ─▶   question 2 ─▶ … lag … ─▶ answer 2      a question may show earlier questions of its task,
note 3 ─▶     question 3 ─▶ … lag … ─▶ answer 3    those at least `lag` places before
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from clinstack.endpoint import Reply, Request
from clinstack.recipe.synthesize import SynthesizeInstructionsRecipe
from clinstack.synthesize.gates import speaks_of_a_model, without_thoughts
from clinstack.synthesize.prompts import joint_digest, read_seeds, read_template
from clinstack.synthesize.seeds import Examples, request_seed, shown, task_of

_LABEL = re.compile(r"^\s*(?:question|instruction)\s*:\s*", re.IGNORECASE)
_QUOTES = {'"': '"', "“": "”"}


@dataclass(frozen=True)
class Note:
    """A note to ask about."""

    note_id: str
    patient_id: str
    text: str


@dataclass
class Item:
    """A question to be, and what became of it.

    Parameters
    ----------
    place : int
        In the order of the notes.
    key : str
        Becomes the example's id.
    note : Note
    task : str
    question, answer : str
        Empty until they are known.
    model : str
        That answered.
    seed : int
        Sent with the request for the answer.
    """

    place: int
    key: str
    note: Note
    task: str
    question: str = ""
    answer: str = ""
    model: str = ""
    seed: int = 0
    question_known: bool = False
    cut_off: bool = False


class Prompts:
    """The two prompts and the seed questions, ours or a user's.

    Raises
    ------
    InputError
        If a file is missing or wrong.
    """

    def __init__(self, folder: str | None) -> None:
        self.question = read_template(folder, "question.txt")
        self.answer = read_template(folder, "answer.txt")
        self.seeds, seeds_digest = read_seeds(folder)
        self.digests = {
            self.question.name: self.question.digest,
            self.answer.name: self.answer.digest,
            "seeds.txt": seeds_digest,
        }
        self.digest = joint_digest(*self.digests.values())


class Conversation:
    """Makes the requests for questions and answers, and takes the replies, which come in the order of the requests.

    Parameters
    ----------
    recipe : SynthesizeInstructionsRecipe
    prompts : Prompts
    notes : iterable of Note
        Read lazily; only those that are being asked about are in memory.
    has : callable
        Whether the store has the reply to a request.

    Attributes
    ----------
    counts : Counter
        Items, and why some came to nothing: ``note``, ``question_failed``, ``question_length``, ``question_phrases``,
        ``answer_failed``.
    """

    def __init__(
        self,
        recipe: SynthesizeInstructionsRecipe,
        prompts: Prompts,
        notes: Iterable[Note],
        has: Callable[[Request], bool],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._recipe = recipe
        self._prompts = prompts
        self._notes = notes
        self._has = has
        self._examples = Examples(prompts.seeds, recipe.seed, recipe.earlier, recipe.lag)
        self._open: dict[str, Item] = {}
        self._questions_known = 0

    def requests(self) -> Iterator[Request | None]:
        """Yield the requests; None while one depends on a reply that was not taken yet."""
        lag = self._recipe.lag
        waiting: deque[Item] = deque()
        for item in self._items():
            while self._questions_known <= item.place - lag:
                yield None
            yield self.question_request(item)
            waiting.append(item)
            while waiting[0].place <= item.place - lag:
                yield from self._answer_request(waiting.popleft())
        for item in waiting:
            while not item.question_known:
                yield None
            yield from self._answer_request(item)

    def take(self, reply: Reply) -> Item | None:
        """Take a reply; return the item if it has its answer now."""
        item = self._open.pop(reply.key)
        if reply.key.endswith("/question"):
            self._take_question(item, reply)
            return None
        if reply.failure is not None:
            self.counts["answer_failed"] += 1
            return None
        item.answer = without_thoughts(reply.text)
        item.cut_off = reply.is_cut_off
        item.model = reply.model
        return item

    def item(self, key: str) -> Item:
        """Return the item that a request under way is for."""
        return self._open[key]

    def question_request(self, item: Item) -> Request:
        """Return the request for a question.

        Where an earlier start could not show some of the earlier questions, since they had failed, and was answered,
        its request is used again: what was paid for is not asked anew when a failed question comes after all.
        """
        seeds, earlier = self._examples.draw(item.place, item.task)
        key = f"{item.key}/question"
        self._open[key] = item

        def request(some: list[str]) -> Request:
            prompt = self._prompts.question.fill(note=item.note.text, task=item.task, examples=shown([*seeds, *some]))
            seed = request_seed(self._recipe.seed, key)
            return Request(key, (("user", prompt),), seed, self._recipe.question_tokens)

        variants = [request(earlier), *(request(some) for some in _smaller(earlier))]
        return next((variant for variant in variants if self._has(variant)), variants[0])

    def answer_request(self, item: Item) -> Request:
        """Return the request for an answer."""
        key = f"{item.key}/answer"
        item.seed = request_seed(self._recipe.seed, key)
        prompt = self._prompts.answer.fill(note=item.note.text, question=item.question)
        return Request(key, (("user", prompt),), item.seed, self._recipe.answer_tokens)

    def _items(self) -> Iterator[Item]:
        place = 0
        for note in self._notes:
            usable = not (self._recipe.gates.phrases and speaks_of_a_model(note.text))
            for number in range(1, self._recipe.questions_per_note + 1):
                self.counts["items"] += 1
                if not usable:
                    self.counts["note"] += 1
                    continue
                task = task_of(self._recipe.seed, place)
                self._examples.add(place, task)
                yield Item(place, f"{note.note_id}-{number}", note, task)
                place += 1

    def _answer_request(self, item: Item) -> Iterator[Request]:
        if item.question:
            request = self.answer_request(item)
            self._open[request.key] = item
            yield request

    def _take_question(self, item: Item, reply: Reply) -> None:
        self._questions_known += 1
        item.question_known = True
        question = clean_question(without_thoughts(reply.text))
        gates = self._recipe.gates
        if reply.failure is not None:
            self.counts["question_failed"] += 1
        elif reply.is_cut_off or not gates.min_question_words <= len(question.split()) <= gates.max_question_words:
            self.counts["question_length"] += 1
        elif gates.phrases and speaks_of_a_model(question):
            self.counts["question_phrases"] += 1
        else:
            item.question = question
            self._examples.answer(item.place, question)


def clean_question(reply: str) -> str:
    """Return a question without a label before it and quotation marks around it, which models like to add."""
    question = _LABEL.sub("", reply.strip())
    if len(question) > 1 and _QUOTES.get(question[0]) == question[-1]:
        question = question[1:-1].strip()
    return question


def _smaller(questions: list[str]) -> Iterator[list[str]]:
    """Yield the shorter lists that are left when some of the questions are missing."""
    for pattern in range(2 ** len(questions) - 2, -1, -1) if len(questions) <= 4 else ():
        yield [question for place, question in enumerate(questions) if pattern >> place & 1]
