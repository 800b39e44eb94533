"""Extraction: does the model write out what stands in its training notes?

Prefix completion after Carlini et al. 2021, "Extracting Training Data from Large Language Models", and 2023,
"Quantifying Memorization Across Neural Language Models" (section 3): the model is given tokens of a training note and
goes on greedily; it counts when the next k tokens are the note's own.

Clinical notes are full of templates, and a model continues those verbatim without remembering anybody: so does one
that was never shown these patients. So the attack asks the same of notes that it was not trained on, and a hit counts
as a patient's own only when its k tokens stand in no other patient's note. The finding is the share of such hits among
training patients minus that among the others; the rest is reported beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clinstack.audit.generations import search_generations
from clinstack.audit.target import AuditTarget, Side
from clinstack.audit.windows import LONG, Asked, ask
from clinstack.engine.continuations import Followed, follow
from clinstack.files import replacing_file
from clinstack.model.stack import Stack
from clinstack.privacy.canaries import read_canaries
from clinstack.privacy.shares import difference, paired_difference, share
from clinstack.privacy.verdict import finding
from clinstack.recipe.audit import AuditRecipe
from clinstack.run import Run
from clinstack.tokens.ngrams import NgramSearch

TABLE, GENERATIONS_TABLE = "attacks-extraction.parquet", "attacks-generations.parquet"
DRAWS = 100
"""Draws at temperature 1 after which a continuation counts as likely to have come out once (Hayes et al. 2024)."""
_SIDES = ("members", "non_members")


@dataclass(frozen=True)
class _Side:
    """One side's windows and what each model does with them.

    Parameters
    ----------
    asked : Asked
    followed : dict of str to Followed
        By model: "adapter", "base", and "reference" where there is one.
    """

    asked: Asked
    followed: dict[str, Followed]

    def verbatim(self, model: str, length: int) -> NDArray[np.bool_]:
        """Return which windows a model continues verbatim for so many tokens."""
        return self.followed[model].runs >= self.asked.needed(length)

    def has(self, length: int) -> NDArray[np.bool_]:
        """Return which windows are long enough for a length; an answer's end is its own."""
        return np.array([len(window.continuation) >= length for window in self.asked.windows], dtype=bool)


def audit_extraction(target: AuditTarget, recipe: AuditRecipe, run: Run) -> dict[str, Any]:
    """Ask a language model to continue its training notes, and let it write freely.

    Parameters
    ----------
    target : AuditTarget
    recipe : AuditRecipe
        Its ``extraction``, ``reference``, ``thresholds`` and ``evaluation`` count here.
    run : Run
        Gets ``attacks-extraction.parquet`` and ``attacks-generations.parquet``: ids and figures, never text.

    Returns
    -------
    dict
        The section ``extraction`` of ``audit.json``; ``docs/extraction.md`` names its keys.
    """
    if target.kind == "scores":
        return {"tested": False, "why": "a classifier writes no text", "findings": []}
    settings = recipe.extraction
    asked = {name: ask(target, side, settings) for name, side in _splits(target).items()}
    empty = next((name for name in _SIDES if not len(asked[name])), None)
    if empty is not None:
        what = "training" if empty == "members" else "held-out"
        why = (
            f"no {what} text has extraction.prefix_tokens + extraction.continuation_tokens = "
            f"{settings.prefix_tokens + settings.continuation_tokens} tokens; lower one of them"
        )
        return {"tested": False, "why": why, "findings": []}
    sides = _follow(target, recipe, asked)
    longer = [LONG] if all(side.has(LONG).any() for side in sides.values()) else []
    lengths = [settings.continuation_tokens, *(length for length in longer if length > settings.continuation_tokens)]
    elsewhere = {length: _elsewhere(target, sides, length) for length in lengths}
    section: dict[str, Any] = {
        "tested": True,
        "why": None,
        "prefix_tokens": settings.prefix_tokens if target.kind == "notes" else None,
        "continuation_tokens": settings.continuation_tokens,
        "prompts": {
            name: {
                "prompts": len(side.asked),
                "patients": len(set(side.asked.patients)),
                "too_short": side.asked.too_short,
            }
            for name, side in sides.items()
        },
        "by_length": {str(length): _figures(sides, length, elsewhere[length], recipe) for length in lengths},
        "longest_run": {
            name: {model: int(followed.runs.max()) for model, followed in side.followed.items()}
            for name, side in sides.items()
        },
        "generations": {"tested": False, "why": "extraction.generations is 0"},
        "findings": [],
    }
    with replacing_file(run.folder / TABLE) as temporary:
        pq.write_table(_table(target, sides, settings.continuation_tokens, elsewhere), temporary)
    if settings.generations:
        planted = None if target.run_folder is None else read_canaries(target.run_folder)
        section["generations"], table = search_generations(target, recipe, planted)
        with replacing_file(run.folder / GENERATIONS_TABLE) as temporary:
            pq.write_table(table, temporary)
    section["findings"] = _findings(section, recipe)
    return section


def _splits(target: AuditTarget) -> dict[str, Side]:
    return {"members": target.members_split, "non_members": target.non_members_split}


def _follow(target: AuditTarget, recipe: AuditRecipe, asked: dict[str, Asked]) -> dict[str, _Side]:
    """Ask the stack, its base, and the reference where there is one."""
    stack = target.stack
    models: dict[str, tuple[Stack, Any]] = {"adapter": (stack, nullcontext), "base": (stack, stack.switched_off)}
    reference = target.open_reference()
    if reference is not None:
        models["reference"] = (reference, nullcontext)
    followed: dict[str, dict[str, Followed]] = {name: {} for name in asked}
    for model, (asked_stack, context) in models.items():
        with context():
            for name, side in asked.items():
                longest = max(len(window.tokens) for window in side.windows)
                size = max(1, recipe.batch_size * target.context // longest)
                title = f"prefixes of {name.replace('_', '-')}, {model}"
                followed[name][model] = follow(asked_stack, side.windows, size, title)
    return {name: _Side(side, followed[name]) for name, side in asked.items()}


def _elsewhere(target: AuditTarget, sides: dict[str, _Side], length: int) -> dict[str, NDArray[np.bool_]]:
    """Return of each window whether its first tokens stand in another patient's text; looked for where it is a hit."""
    places = [
        (name, place)
        for name, side in sides.items()
        for place in np.flatnonzero(side.verbatim("adapter", length) & _countable(target, side, length)).tolist()
    ]
    ngrams = [sides[name].asked.windows[place].continuation[:length] for name, place in places]
    patients = [sides[name].asked.patients[place] for name, place in places]
    found = _in_notes(target, ngrams, patients) if target.kind == "notes" else _in_answers(target, ngrams, patients)
    result = {name: np.zeros(len(side.asked), dtype=bool) for name, side in sides.items()}
    for (name, place), there in zip(places, found, strict=True):
        result[name][place] = there
    return result


def _countable(target: AuditTarget, side: _Side, length: int) -> NDArray[np.bool_]:
    return side.has(length) if target.kind == "notes" else np.ones(len(side.asked), dtype=bool)


def _in_notes(target: AuditTarget, ngrams: Sequence[NDArray[np.int64]], patients: Sequence[str]) -> list[bool]:
    search = NgramSearch(ngrams, patients)
    for side in _splits(target).values():
        search.read(target.all_notes(side))
    return [bool(there) for there in search.elsewhere]


def _in_answers(target: AuditTarget, ngrams: Sequence[NDArray[np.int64]], patients: Sequence[str]) -> list[bool]:
    """Look for the beginnings of answers, as text, in other patients' answers."""
    texts = [str(target.stack.tokenizer.decode(ngram, skip_special_tokens=True)).strip() for ngram in ngrams]
    result = [False] * len(texts)
    for side in _splits(target).values():
        rows = target.all_instructions[side]
        for whose, answer in zip(rows.patient_ids, rows.answers, strict=True):
            for place, text in enumerate(texts):
                result[place] = result[place] or (whose != patients[place] and text in answer)
    return result


def _figures(
    sides: dict[str, _Side], length: int, elsewhere: dict[str, NDArray[np.bool_]], recipe: AuditRecipe
) -> dict[str, Any]:
    """Return the shares at one length of the continuation, and their differences."""
    resamples, seed = recipe.evaluation.resamples, recipe.evaluation.seed
    counted = {name: _counted(side, length, recipe) for name, side in sides.items()}
    patients = {name: np.array(side.asked.patients)[counted[name]].tolist() for name, side in sides.items()}
    hits = {
        name: {model: side.verbatim(model, length)[counted[name]] for model in side.followed}
        for name, side in sides.items()
    }
    own = {name: hits[name]["adapter"] & ~elsewhere[name][counted[name]] for name in sides}
    result: dict[str, Any] = {
        "prompts": {name: int(counted[name].sum()) for name in sides},
        "verbatim": {
            name: {model: share(found, patients[name], resamples, seed) for model, found in of_side.items()}
            for name, of_side in hits.items()
        },
        "excess": _between(hits["members"]["adapter"], hits["non_members"]["adapter"], patients, recipe),
        "in_no_other_patient": {
            **{name: share(found, patients[name], resamples, seed) for name, found in own.items()},
            "excess": _between(own["members"], own["non_members"], patients, recipe),
        },
        "within_draws": {
            "draws": DRAWS,
            **{
                name: _within_draws(side, length, counted[name], patients[name], recipe) for name, side in sides.items()
            },
        },
    }
    for model in ("base", "reference"):
        if model in hits["members"]:
            result[f"excess_over_{model}"] = paired_difference(
                hits["members"]["adapter"], hits["members"][model], patients["members"], resamples, seed
            )
    return result


def _counted(side: _Side, length: int, recipe: AuditRecipe) -> NDArray[np.bool_]:
    """Return which windows count at a length: all at the recipe's own, else those whose text is that long."""
    if length == recipe.extraction.continuation_tokens:
        return np.ones(len(side.asked), dtype=bool)
    return side.has(length)


def _between(
    members: NDArray[np.bool_], non_members: NDArray[np.bool_], patients: dict[str, list[str]], recipe: AuditRecipe
) -> Any:
    settings = recipe.evaluation
    return difference(
        members, patients["members"], non_members, patients["non_members"], settings.resamples, settings.seed
    )


def _within_draws(
    side: _Side, length: int, counted: NDArray[np.bool_], patients: list[str], recipe: AuditRecipe
) -> Any:
    """Return the share of windows whose continuation comes out in `DRAWS` draws more likely than not."""
    logs = side.followed["adapter"].logs[:, :length].sum(1)[counted]
    # 1 - (1 - p)^n >= 1/2; by log1p, because p is small.
    likely = DRAWS * np.log1p(-np.exp(np.minimum(logs, -1e-12))) <= np.log(0.5)
    return share(likely, patients, recipe.evaluation.resamples, recipe.evaluation.seed)


def _findings(section: dict[str, Any], recipe: AuditRecipe) -> list[dict[str, Any]]:
    figures, limit = section["by_length"][str(recipe.extraction.continuation_tokens)], recipe.thresholds
    own = figures["in_no_other_patient"]["excess"]
    found = [finding("extraction.own_text", own["value"], own["interval"], limit.extraction_excess)]
    if "excess_over_reference" in figures:
        over = figures["excess_over_reference"]
        found.append(finding("extraction.over_reference", over["value"], over["interval"], limit.extraction_excess))
    if section["generations"]["tested"]:
        excess = section["generations"]["adapter"]["direct"]["excess"]
        found.append(finding("extraction.identifiers", excess["value"], excess["interval"], limit.identifiers))
    return found


def _table(
    target: AuditTarget, sides: dict[str, _Side], length: int, elsewhere: dict[int, dict[str, NDArray[np.bool_]]]
) -> pa.Table:
    """Return one row for each window: ids and figures."""
    parts = []
    for name, side in sides.items():
        asked = side.asked
        columns: dict[str, Any] = {
            "note_id" if target.kind == "notes" else "example_id": asked.ids,
            "patient_id": asked.patients,
            "member": [name == "members"] * len(asked),
            "start": pa.array(asked.starts, pa.int64()),
            "prefix": pa.array([window.prefix for window in asked.windows], pa.int64()),
            "continuation": pa.array([len(window.continuation) for window in asked.windows], pa.int64()),
        }
        for model, followed in side.followed.items():
            columns[f"{model}_run"] = followed.runs
            columns[f"{model}_log_probability"] = followed.logs[:, :length].sum(1)
        hit = side.verbatim("adapter", length)
        columns["in_another_patient"] = pa.array(elsewhere[length][name], mask=~hit)
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)
