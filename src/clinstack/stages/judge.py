"""Judging answers: a language model grades them blind, in several orders; the figures say how far to believe it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from clinstack.endpoint import BUDGET_SPENT, Endpoint, Reply, Request
from clinstack.engine.progress import named_bars
from clinstack.errors import ClinstackError
from clinstack.files import replacing_file, write_json, write_text
from clinstack.judge.candidates import Candidates, candidate_files, read_candidates
from clinstack.judge.measure import judge_metrics
from clinstack.judge.orders import Presentation, presentations
from clinstack.judge.parse import parse_scores
from clinstack.judge.people import read_human_grades
from clinstack.judge.readings import Reading, scores_table
from clinstack.judge.rubric import Rubric, reminder
from clinstack.notes.read import input_hashes, is_synthetic
from clinstack.recipe import JudgeRecipe, dump_recipe
from clinstack.run import Run, open_run

SCORES_FILE = "scores.parquet"
STORE = "replies.sqlite"
Announce = Callable[[dict[str, Any], str | None], None]
"""Called with the endpoint's estimate, and a warning where text leaves the machine, before anything is sent."""


def judge(recipe: JudgeRecipe, *, fresh: bool = False, announce: Announce | None = None) -> Run:
    """Run the stage and return its finished Run.

    Every reply is kept in the store before it is used: a stage that was killed goes on without asking again.

    Raises
    ------
    InputError
        See `read_candidates`, `read_human_grades`, `Rubric.read` and `Endpoint`.
    ClinstackError
        The endpoint failed, the token budget is spent, or questions are left without a reply.
    """
    inputs = input_hashes(candidate_files(recipe))
    rubric = Rubric.read(Path(recipe.rubric) if recipe.rubric else None)
    # Before the Run is opened: what is wrong with the recipe leaves no Run of it behind.
    candidates = read_candidates(recipe)
    examples = candidates.instructions
    human = read_human_grades(Path(recipe.human), examples.example_ids, candidates.labels) if recipe.human else None
    facts = {"stage": "judge", "task": None, "synthetic": is_synthetic(Path(recipe.instructions))}
    _follow_the_endpoint(recipe)
    with open_run(recipe, {**inputs, "rubric": rubric.hash}, fresh=fresh, **facts) as run:
        if run.is_done:
            return run
        with (
            named_bars() as progress,
            Endpoint(recipe.endpoint, Path(recipe.replies or run.folder / STORE), progress) as endpoint,
            run.timed("judge"),
        ):
            questions = _Questions(recipe, rubric, candidates)
            if announce is not None:
                announce(endpoint.estimate(questions.requests(questions.all, 0)), endpoint.warning)
            readings, usage = _ask(questions, endpoint)
        table = scores_table(readings)
        with replacing_file(run.folder / SCORES_FILE) as temporary:
            pq.write_table(table, temporary)
        settings = recipe.evaluation
        metrics = judge_metrics(table, candidates.labels, settings.resamples, settings.seed, human)
        write_json(
            run.folder / "metrics.json",
            {
                "judge": {
                    "model": recipe.endpoint.model,
                    "temperature": recipe.endpoint.temperature,
                    "rubric": rubric.hash,
                    "mode": recipe.mode,
                    "answers": candidates.labels,
                    "splits": candidates.splits,
                    "not_answered_by": candidates.missing,
                    **usage,
                },
                **metrics,
            },
        )
        run.finish(label=f"judge {recipe.endpoint.model}")
        return run


@dataclass(frozen=True)
class _Questions:
    """All questions to the judge, and how each is put."""

    recipe: JudgeRecipe
    rubric: Rubric
    candidates: Candidates

    @property
    def all(self) -> list[Presentation]:
        recipe, candidates = self.recipe, self.candidates
        ids = candidates.instructions.example_ids
        return presentations(ids, candidates.labels, recipe.mode, recipe.orders, recipe.seed)

    @property
    def places(self) -> dict[str, int]:
        """Where each example stands in the instructions."""
        return {name: place for place, name in enumerate(self.candidates.instructions.example_ids)}

    def requests(self, chosen: Sequence[Presentation], attempt: int) -> Iterator[Request]:
        """Yield the requests one by one: all of them together would hold every note many times."""
        instructions, places = self.candidates.instructions, self.places
        for one in chosen:
            place = places[one.example_id]
            answers = [self.candidates.answers[label][place] for label in one.shown]
            text = self.rubric.ask(instructions.notes[place], instructions.questions[place], answers)
            if attempt:
                text += reminder(len(answers))
            key = f"judge {one.example_id} {' | '.join(one.shown)} {attempt}"
            seed = zlib.crc32(f"{self.recipe.seed} {key}".encode()) >> 1  # servers want a signed 32-bit number
            yield Request(key, (("user", text),), seed)


def _ask(questions: _Questions, endpoint: Endpoint) -> tuple[list[Reading], dict[str, Any]]:
    """Put every question, and again where the reply cannot be read; return the readings, and what replies came to."""
    asked = questions.all
    recipe = questions.recipe
    grades: list[list[int] | None] = [None] * len(asked)
    replied, times = [False] * len(asked), [0] * len(asked)
    failures: dict[str, int] = {}
    models: set[str] = set()
    tokens = [0, 0]
    waiting = list(range(len(asked)))
    for attempt in range(1 + recipe.retries_on_parse):
        if not waiting:
            break
        requests = questions.requests([asked[place] for place in waiting], attempt)
        title = "Judging" if attempt == 0 else f"Judging again, what could not be read ({attempt})"
        unread = []
        for place, reply in zip(waiting, endpoint.ask(requests, title, total=len(waiting)), strict=True):
            times[place] += 1
            if reply.text is None:
                failures[_reason(reply)] = failures.get(_reason(reply), 0) + 1
                continue
            models.add(reply.model)
            tokens = [tokens[0] + reply.prompt_tokens, tokens[1] + reply.completion_tokens]
            replied[place] = True
            grades[place] = parse_scores(reply.text, len(asked[place].shown))
            if grades[place] is None:
                unread.append(place)
        waiting = unread
    _check_failures(failures, len(asked), recipe)
    places, examples = questions.places, questions.candidates.instructions
    readings = [
        Reading(
            one,
            examples.patient_ids[places[one.example_id]],
            examples.tasks[places[one.example_id]],
            grades[at],
            replied[at],
            times[at],
        )
        for at, one in enumerate(asked)
    ]
    usage = {"answered_as": sorted(models), "prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return readings, usage


def _reason(reply: Reply) -> str:
    return reply.failure or "no text"


def _check_failures(failures: dict[str, int], questions: int, recipe: JudgeRecipe) -> None:
    if not failures:
        return
    if failures.get(BUDGET_SPENT):
        raise ClinstackError(
            f"endpoint.token_budget: the {recipe.endpoint.token_budget:,} tokens are spent, and "
            f"{failures[BUDGET_SPENT]:,} questions are not asked yet. Raise it, and the same command goes on."
        )
    count, reason = sum(failures.values()), max(failures, key=lambda name: failures[name])
    if count >= questions or not recipe.allow_unanswered:
        raise ClinstackError(
            f"{count:,} of {questions:,} questions got no reply (mostly: {reason}). The same command asks them again; "
            "with allow_unanswered=true their scores are null, and counted."
        )


_SERVICE = ("model", "temperature", "max_tokens")
"""What of an endpoint decides a reply; the rest says where it is, how fast and for how much."""


def _follow_the_endpoint(recipe: JudgeRecipe) -> None:
    """Let a Run go on when its server moved to another port, or its limits or its budget changed.

    None of these changes a reply, and a Run that had to begin anew for them would pay for every reply again. So the
    resolved recipe takes the new values; any other change is refused by `open_run`.
    """
    path = Path(recipe.run) / "recipe.yaml"
    if not path.is_file() or not (path.parent / "run.json").is_file():
        return
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return  # open_run says what is wrong with it
    now = yaml.safe_load(dump_recipe(recipe))
    if isinstance(before, dict) and before != now and _deciding(before) == _deciding(now):
        write_text(path, dump_recipe(recipe))


def _deciding(values: dict[str, Any]) -> dict[str, Any]:
    endpoint = values.get("endpoint")
    result = {key: value for key, value in values.items() if key not in {"endpoint", "run", "allow_unanswered"}}
    if isinstance(endpoint, dict):
        result["endpoint"] = {key: endpoint.get(key) for key in _SERVICE}
    return result
