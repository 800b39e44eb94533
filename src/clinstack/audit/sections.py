"""The sections of ``audit.json``: who makes each, what of the audit is said in words, and what it came to.

A section has ``tested``, ``why`` where it was not, figures, and ``findings``; see `clinstack.privacy.verdict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from clinstack import __version__
from clinstack.files import sha256_file
from clinstack.model.data_lineage import data_of
from clinstack.model.lineage import read_stack_record
from clinstack.model.privacy_lineage import privacy_of
from clinstack.privacy.finding_names import membership_name
from clinstack.privacy.verdict import overall, sentence
from clinstack.recipe.audit import ATTACKS, AttackName, AuditRecipe

if TYPE_CHECKING:
    from clinstack.audit.target import AuditTarget
    from clinstack.run import Run

Attack = Callable[["AuditTarget", AuditRecipe, "Run"], dict[str, Any]]
FORMAT_VERSION = 1
_ITEMS = {"notes": "notes", "answers": "answers", "scores": "examples"}
_SIDES = {"members": "training", "non_members": "held-out"}
_NEVER_TESTED = (
    "attribute inference",
    "attackers with gradients",
    "the stack merged or combined with others",
)
"""What no attack here is; said in every report, behind what each section says of itself."""


def attack_of(name: AttackName) -> Attack:
    """Return the function of an attack; imported when it is done, for each needs its own libraries."""
    if name == "canaries":
        from clinstack.audit.canaries import audit_canaries

        return audit_canaries
    if name == "membership":
        from clinstack.audit.membership import audit_membership

        return audit_membership
    from clinstack.audit.extraction import audit_extraction

    return audit_extraction


def untested(recipe: AuditRecipe, name: AttackName) -> dict[str, Any] | None:
    """Return the section of an attack that the recipe leaves out; None where it is to be done."""
    if name in recipe.attacks:
        return None
    return {"tested": False, "why": "left out of the recipe's attacks", "findings": []}


def report_of(target: AuditTarget, recipe: AuditRecipe, sections: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return ``audit.json``: what was audited, every figure, and the verdict.

    Nothing in it depends on time, machine, or how often the audit was started.
    """
    findings = {name: section["findings"] for name, section in sections.items() if section["tested"]}
    verdict = overall(findings)
    did = tested(target, sections)
    did_not = not_tested(target, sections)
    return {
        "format_version": FORMAT_VERSION,
        "clinstack": __version__,
        "synthetic": target.files.synthetic,
        "verdict": verdict,
        "sentence": sentence(verdict, findings, did, did_not),
        "tested": did,
        "not_tested": did_not,
        "findings": [{"attack": name, **item} for name, items in findings.items() for item in items],
        "thresholds": recipe.thresholds.model_dump(),
        "stack": _stack(target),
        "data": _data(target),
        "privacy": _privacy(target),
        "seeds": recipe.seeds_by_use,
        "max_notes": recipe.max_notes,
        "sections": dict(sections),
    }


def tested(target: AuditTarget, sections: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return what was tested, a phrase for each section."""
    describe = {"canaries": _canaries, "membership": _membership, "extraction": _extraction}
    return [describe[name](target, sections[name]) for name in ATTACKS if sections[name]["tested"]]


def not_tested(target: AuditTarget, sections: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return what was not tested: sections that could not be, what lies beneath, and what no attack here is."""
    result = [f"{name} ({_first(sections[name]['why'])})" for name in ATTACKS if not sections[name]["tested"]]
    generations = sections["extraction"].get("generations")
    if sections["extraction"]["tested"] and isinstance(generations, dict) and not generations.get("tested"):
        result.append(f"free generations ({generations.get('why')})")
    trainings = len(data_of(read_stack_record(target.stack_folder)) or ())
    if trainings > 1:
        result.append("what the adapters beneath were trained on before")
    if not target.files.recorded:
        result.append("whether these are the notes that it was trained on, which is the word of whoever asked")
    own = [phrase for name in ATTACKS for phrase in sections[name].get("not_tested", ())]
    return list(dict.fromkeys([*result, *own, *_NEVER_TESTED]))


def _first(why: str) -> str:
    """Return the first sentence of a reason, to stand inside another one; the whole is in the section."""
    return f"{why[:1].lower()}{why[1:]}".split(". ")[0].removesuffix(".")


def _canaries(target: AuditTarget, section: Mapping[str, Any]) -> str:
    often = ", ".join(str(one["repetitions"]) for one in section["by_repetition"])
    return f"exposure of {section['planted']:,} canaries planted {often} times, beside {section['controls']:,} controls"


def _membership(target: AuditTarget, section: Mapping[str, Any]) -> str:
    names = ", ".join(membership_name(name) for name in section["attacks"])
    sides = (f"{_side(target, section[name])} {what} patients" for name, what in _SIDES.items())
    return f"membership by {len(section['attacks'])} attacks ({names}) on {' and '.join(sides)}"


def _side(target: AuditTarget, counts: Mapping[str, int]) -> str:
    return f"{counts['notes']:,} {_ITEMS[target.kind]} of {counts['patients']:,}"


def _extraction(target: AuditTarget, section: Mapping[str, Any]) -> str:
    prompts = section["prompts"]["members"]
    number = prompts["prompts"] if isinstance(prompts, dict) else prompts
    text = f"extraction of {section['continuation_tokens']} tokens from {number:,} training {_ITEMS[target.kind]}"
    generations = section.get("generations")
    if isinstance(generations, dict) and generations.get("tested"):
        text += " and identifiers in free generations"
    return text


def _stack(target: AuditTarget) -> dict[str, Any]:
    record = read_stack_record(target.stack_folder)
    return {
        "folder": str(target.stack_folder),
        "run": None if target.run_folder is None else str(target.run_folder),
        "label": target.stack.label,
        "fingerprint": target.files.stack_fingerprint,
        "base": record["base"],
        "adapters": [
            {key: adapter.get(key) for key in ("name", "method", "trainable", "weights", "parent", "verified")}
            for adapter in record["adapters"]
        ],
        "task": record["task"]["name"] if record["task"] else None,
        "kind": target.kind,
        "training": _training(target),
    }


def _training(target: AuditTarget) -> dict[str, Any] | None:
    """Return how the Run was trained, as far as it bears on what is remembered."""
    recipe = target.training
    settings = getattr(recipe, "training", None)
    if recipe is None or settings is None:
        return None
    return {
        "stage": recipe.stage,
        "finished": target.run_record.get("finished"),
        **{
            name: getattr(settings, name)
            for name in ("epochs", "max_steps", "batch_size", "accumulate", "learning_rate")
        },
    }


def _data(target: AuditTarget) -> dict[str, Any]:
    prepare = next(
        (
            place / "prepare.json"
            for place in (target.data, target.data.parent.parent)
            if (place / "prepare.json").is_file()
        ),
        None,
    )
    lineage = data_of(read_stack_record(target.stack_folder))
    return {
        "folder": str(target.data),
        "recorded": target.files.recorded,
        "members": target.members_split,
        "non_members": target.non_members_split,
        "files": target.files.inputs,
        "prepare": None if prepare is None else sha256_file(prepare),
        "lineage": None if lineage is None else [source.to_dict() for source in lineage],
    }


def _privacy(target: AuditTarget) -> list[dict[str, Any]] | None:
    """Return what stack.json says of differential privacy, a training each; None where it says nothing."""
    entries = privacy_of(read_stack_record(target.stack_folder))
    return None if entries is None else [entry.to_dict() for entry in entries]


def summary_of(report: Mapping[str, Any], report_hash: str, date: str, run: str) -> dict[str, Any]:
    """Return what stands in the Stack's own folder: the verdict, and of which weights and which report it is."""
    keys = ("format_version", "clinstack", "synthetic", "verdict", "sentence", "findings", "thresholds")
    return {
        **{key: report[key] for key in keys},
        "date": date,
        "stack": {"fingerprint": report["stack"]["fingerprint"]},
        "report": {"run": run, "sha256": report_hash},
    }
