"""What README, checklist and CHAI card say in common, so that they never say different things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from clinstack.model.base import EMBEDDED_FOLDERS
from clinstack.model.cards.facts import StackFacts
from clinstack.model.cards.figures import SMALLEST, figures_of, groups_of, patients_of
from clinstack.model.cards.names import public_base_name
from clinstack.model.privacy_lineage import TrainingPrivacy, privacy_of, privacy_sentence

OPEN = "Open: a person fills this in"
NOT_A_DEVICE = "Research software: an aid for people who know the data, not a medical device."
METHODS = {
    "lora": "LoRA",
    "dora": "DoRA",
    "rslora": "rsLoRA",
    "adalora": "AdaLoRA",
    "adaption_prompt": "adaption prompt",
    "prefix": "prefix tuning",
    "prompt": "prompt tuning",
    "p_tuning": "P-tuning",
    "full": "all weights",
}
STAGES = {
    "pretrain": "continued pretraining on notes",
    "finetune": "fine-tuning on a task",
    "instruct": "instruction tuning on questions and answers about notes",
    "align": "preference alignment (DPO and its kin)",
}
SOURCES = {
    "mimic3": "MIMIC-III",
    "mimic4": "MIMIC-IV",
    "fhir": "FHIR resources",
    "table": "a hospital's own tables",
    "oracle": "questions about the synthetic cohort, answered by its rules",
    "asclepius": "Asclepius' synthetic notes and instructions",
    "preferences": "pairs of a preferred and a rejected answer",
}
_SHAPES = ("mimic3", "mimic4", "fhir", "table")
"""Sources whose tables the synthetic cohort can have."""


def what_it_is(facts: StackFacts) -> str:
    """Say what the stack is in one sentence."""
    levels = " and ".join(
        f"`{adapter.name}` ({METHODS.get(adapter.method, adapter.method)}, "
        f"{'trained' if adapter.trainable else 'frozen'} in the last training)"
        for adapter in facts.adapters
    )
    on = f"the base `{facts.base}` with {levels} on it" if levels else f"the base `{facts.base}`, frozen"
    if facts.task is not None:
        does = f"a {facts.task.kind} classifier of clinical notes for the task `{facts.task.name}`"
        told = f" ({facts.task.description.rstrip('.')})" if facts.task.description else ""
        return f"It is {does}{told}: {on}, and a head for {len(facts.task.classes)} classes."
    if facts.prompt is not None:
        return f"It is a language model that answers questions about clinical notes: {on}."
    return f"It is a language model for clinical notes: {on}."


def trained_how(facts: StackFacts) -> str:
    """Say what the Run did."""
    if facts.stage is None:
        return "How it was trained is unknown: its Run is not beside it."
    done = STAGES.get(facts.stage, facts.stage)
    return f"It was made by {done}; no patient is in more than one of training, validation and test."


def population(facts: StackFacts) -> str:
    """Say whose notes it has read."""
    sources = [source for source in facts.data if source.source is not None]
    if not sources:
        return "unknown: stack.json does not say whose notes it was trained on"
    if facts.synthetic:
        shapes = list(dict.fromkeys(SOURCES[str(source.source)] for source in sources if source.source in _SHAPES))
        return "invented patients" + (f" in the shape of {', '.join(shapes)}" if shapes else "")
    names = dict.fromkeys(SOURCES.get(str(source.source), str(source.source)) for source in sources)
    return f"patients of {', '.join(names)}"


def may_be_published(facts: StackFacts) -> str:
    """Say whether the weights may be published."""
    against = sorted({str(source.source) for source in facts.data if source.openly_publishable is False})
    if against:
        names = ", ".join(SOURCES.get(name, name) for name in against)
        return (
            f"Not to be published openly: it was trained on {names}, whose data use agreement does not let weights "
            "that have read it be published. Share it with people under the same agreement, such as by PhysioNet."
        )
    if facts.publishable:
        return "Its data allow publishing it: nobody in them exists."
    return (
        "It is not known whether its data allow publishing it. Who answers for the data decides; until then it is not "
        "to be published."
    )


def synthetic_warning(facts: StackFacts) -> str | None:
    """Warn of results that mean nothing; None where they may."""
    if facts.synthetic:
        return "Trained on synthetic data: neither its outputs nor its figures say anything about medicine."
    if any(source.synthetic for source in facts.data):
        return "Partly trained on synthetic data, whose patients do not exist."
    return None


def base_data(facts: StackFacts) -> str:
    """Say what the base was trained on, as far as clinstack knows."""
    name = str(facts.record["base"]["id"])
    if name in EMBEDDED_FOLDERS:
        return "public-domain English novels; no medicine (its README.md in the package)"
    return "unknown here: see what its developers say"


def base_licence(facts: StackFacts) -> str:
    """Say the base's licence and how it is known."""
    licence = facts.licence
    return f"{licence.name} ({licence.evidence})"


def own_licence(facts: StackFacts) -> str:
    """Say the licence of the weights."""
    said = facts.answers.get("license")
    bound = "The base's licence holds for what is built on it"
    bound += ", and the data's terms too." if facts.publishable is not True else "."
    return f"{said}, as its owner says. {bound}" if said else f"{OPEN} (`license` in card.yaml). {bound}"


def private_training(facts: StackFacts) -> list[str]:
    """Say what is promised of the whole stack, and of each training in its lineage what it cost."""
    entries = [_named(entry) for entry in privacy_of(facts.record) or ()]
    of_run = facts.run.get("privacy")
    if not entries and isinstance(of_run, Mapping):
        known = {key: of_run.get(key) for key in _COSTS}
        entries = [TrainingPrivacy(facts.stage, facts.label, True, **known)]
    if entries:
        return [privacy_sentence(entries), *(_cost(entry) for entry in entries if entry.private)]
    if not facts.run:
        return ["Unknown: nothing is recorded of differential privacy, so take it as not private."]
    parents = len(facts.adapters) > 1
    more = " Of the trainings of its parents nothing is recorded." if parents else ""
    return [f"Not private: the training had no differential privacy.{more}"]


_COSTS = ("unit", "epsilon", "delta", "noise_multiplier", "clip", "accountant", "overall")


def _named(entry: TrainingPrivacy) -> TrainingPrivacy:
    """Return an entry without the place that a base has on this machine."""
    if not entry.adapter.startswith("base "):
        return entry
    return replace(entry, adapter=f"base {public_base_name(entry.adapter.removeprefix('base '))}")


def _cost(entry: TrainingPrivacy) -> str:
    numbers = (
        ("epsilon", entry.epsilon),
        ("delta", entry.delta),
        ("noise multiplier", entry.noise_multiplier),
        ("gradients clipped to", entry.clip),
    )
    said = [f"{name} {value:.3g}" if value is not None else f"{name} unknown" for name, value in numbers]
    said.append(f"accountant {entry.accountant or 'unknown'}")
    where = entry.adapter if entry.stage is None else f"{entry.adapter} ({entry.stage})"
    return f"{where}: for each {entry.unit or 'unknown unit'} {', '.join(said)}."


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def planted(facts: StackFacts) -> str:
    """Say whether canaries were planted in the training notes."""
    found = facts.run.get("canaries")
    parents = " What its parents' trainings read is not known here." if len(facts.adapters) > 1 else ""
    if not found:
        return f"No canaries were planted in its last training.{parents}" if facts.run else _NO_RUN
    often = " or ".join(str(number) for number in found.get("repetitions", [])) or "an unknown number of"
    return (
        f"{found.get('count')} invented identifiers and sentences (canaries) were planted in what its last training "
        f"read, each {often} times. It may repeat them; they belong to nobody.{parents}"
    )


_NO_RUN = "Unknown: its Run is not beside it."


@dataclass(frozen=True)
class AuditFacts:
    """What the audit came to.

    Parameters
    ----------
    verdict : str
        ``clean``, ``leaking``, ``inconclusive``, ``stale`` or ``not audited``.
    sentence : str
        All that is to be said of it.
    short : str
        The same for the head of a page.
    """

    verdict: str
    sentence: str
    short: str


def audited(facts: StackFacts) -> AuditFacts:
    """Return the audit's verdict for this card: one of another stack.json is stale."""
    found = facts.audit
    if found is None or found.get("verdict") is None:
        said = "Not audited: nobody has measured whether it gives away what it was trained on."
        return AuditFacts("not audited", f"{said} `clinstack audit RUN-or-STACK` does.", said)
    when = str(found.get("date") or found.get("finished") or "date unknown")[:10]
    verdict, said = str(found["verdict"]), str(found.get("sentence") or "").strip()
    if audited_fingerprint(found) != facts.fingerprint:
        stale = f"Stale: the audit of {when} ({verdict}) was of other weights than these; audit the stack again."
        return AuditFacts("stale", stale, stale)
    head = f"{verdict.capitalize()}, audited {when}."
    found_leak = " It gives away what it was trained on." if verdict == "leaking" else ""
    return AuditFacts(verdict, f"{head} {said}".strip(), f"{head}{found_leak} See Privacy below.")


def audited_fingerprint(audit: Mapping[str, Any]) -> str | None:
    """Return the hash of the stack.json that an audit was of."""
    stack = audit.get("stack")
    found = stack.get("fingerprint") if isinstance(stack, Mapping) else audit.get("stack_fingerprint")
    return None if found is None else str(found)


def intended_use(facts: StackFacts) -> str:
    """Say what it is for."""
    said = facts.answers.get("intended_use")
    if said:
        return said
    if facts.task is not None:
        does = f"measuring how well notes predict `{facts.task.name}` in patients like those it was trained on"
    elif facts.prompt is not None:
        does = "answering questions about notes like those it was trained on"
    elif facts.stage == "pretrain":
        does = "a part that other stacks are built on: domain adaptation before a task"
    else:
        does = "language models for clinical notes"
    return f"Research: {does}. Whoever uses it has access to the notes by right, and reads its outputs as a hint."


def intended_users(facts: StackFacts) -> str:
    """Say for whom it is."""
    return facts.answers.get("intended_users") or "Researchers who know the data and its terms of use."


OUT_OF_SCOPE = (
    "Decisions about a patient, with or without a person in between, outside an approved study",
    "Patients, hospitals, languages and kinds of notes other than those it was trained on, unless measured there first",
    "Finding out whether a person was in the training data, or reproducing their notes",
    "Publishing it against the terms of its data",
)


def out_of_scope(facts: StackFacts) -> list[str]:
    """Say what it is not for."""
    said = facts.answers.get("out_of_scope")
    return [*OUT_OF_SCOPE, said] if said else list(OUT_OF_SCOPE)


def limits(facts: StackFacts) -> list[str]:
    """Say what limits are known of this one, from what was measured."""
    found = []
    warning = synthetic_warning(facts)
    if warning:
        found.append(warning)
    tokens = (facts.metrics.get("tokens") or {}).get("test") or {}
    if _number(tokens.get("share_cut")) and tokens["share_cut"] > 0:
        found.append(
            f"It reads at most {facts.record['max_tokens']} tokens: {tokens['share_cut']:.0%} of the test notes' "
            "tokens were cut and never read."
        )
    if facts.run and not figures_of(facts.metrics):
        few = patients_of(facts.metrics)
        found.append(
            "There are no figures of held-out patients."
            if few is None or few >= SMALLEST
            else f"It was measured on fewer than {SMALLEST} patients; such figures are not shown."
        )
    found.append("It was measured on patients of the same source alone: nothing is known of other hospitals.")
    if facts.prompt is not None:
        found.append("What it writes can be wrong or invented, and must be held against the note.")
    if facts.task is not None and not facts.calibrated:
        found.append("Its scores are not calibrated.")
    if groups_of(facts.metrics) is None:
        found.append("It was not measured by groups of patients: differences between them are unknown.")
    if any(not adapter.verified for adapter in facts.adapters):
        found.append("Of an adapter it is not known what base it was trained on.")
    return found


def compute(facts: StackFacts) -> str | None:
    """Say what time and machine the Run took, both as measured; None where no Run says."""
    seconds, hardware = facts.run.get("seconds") or {}, facts.run.get("hardware") or {}
    if not _number(seconds.get("total")):
        return None
    where = f"{hardware.get('machine', 'unknown machine')}, {hardware.get('cores', 'unknown')} CPU cores"
    card = hardware.get("accelerator", "none")
    where += ", no accelerator" if card in ("none", None) else f", {card}"
    starts = facts.run.get("starts", 1)
    often = f", in {starts} starts" if isinstance(starts, int) and starts > 1 else ""
    return f"{seconds['total']:,.0f} seconds in all{often}, on {where}"
