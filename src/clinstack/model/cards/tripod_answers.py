"""What a Run answers to each item of TRIPOD-LLM, one short function an item; what only people know is not here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from clinstack.model.cards import sentences
from clinstack.model.cards.answers import ANSWERS_FILE
from clinstack.model.cards.facts import StackFacts
from clinstack.model.cards.figures import SMALLEST, figures_of, groups_of, patients_of, shown_count
from clinstack.model.cards.training import training_rows
from clinstack.tasks import Task

Status = Literal["answered", "answered in part", "open", "not applicable"]
STATUSES: tuple[Status, ...] = ("answered", "answered in part", "open", "not applicable")


@dataclass(frozen=True)
class Answer:
    """What is said to an item.

    Parameters
    ----------
    status : {"answered", "answered in part", "open", "not applicable"}
    text : str
        The answer; empty where it is open.
    sources : tuple of str
        Files that it comes from.
    remains : str
        What a person adds, or why it does not apply.
    """

    status: Status
    text: str = ""
    sources: tuple[str, ...] = ()
    remains: str = ""


OPEN = {
    "2": "A person writes the abstract.",
    "3a": "A person says why it was made, for which use in health care, and what there was before.",
    "5c": "A person gives the dates; those of de-identified notes are moved, and clinstack does not read them.",
    "7e": "A person says what it was compared with; `clinstack report` has differences between Runs.",
    "14a": "A person names the funding.",
    "14b": "A person declares conflicts of interest.",
    "14e": "A person says how the data can be had.",
    "16c": "A person compares them; README.md has groups of patients by split where a data sheet does.",
    "19c": "A person describes them.",
    "7b": "A person says what the measures mean in use; nothing of it was measured.",
    "14c": "A person names the protocol, or says that there is none.",
    "14d": "A person names the registration, or says that there is none.",
    "15": "A person says how patients and the public took part, or that they did not.",
    "19a": "A person interprets the results.",
    "19g": "A person names the next steps.",
}


def _outcome_of(task: Task) -> str:
    return (task.description or task.name).rstrip(".")


def _title(facts: StackFacts) -> Answer:
    outcome = "" if facts.task is None else f" Outcome: {_outcome_of(facts.task)}."
    text = f"{sentences.what_it_is(facts)} Population: {sentences.population(facts)}.{outcome}"
    return Answer("answered in part", text, ("stack.json",), "A person chooses the title.")


def _meant_for(facts: StackFacts) -> Answer | None:
    text = f"{sentences.intended_use(facts)} Users: {sentences.intended_users(facts)}"
    said = facts.answers.get("intended_use") and facts.answers.get("patient_population")
    if said:
        return Answer("answered", f"{text} Patients: {facts.answers.get('patient_population')}", (ANSWERS_FILE,))
    return Answer("answered in part", text, ("stack.json",), "A person says at which point of whose care.")


def _aims(facts: StackFacts) -> Answer | None:
    if facts.stage is None:
        return None
    text = f"{sentences.trained_how(facts)} Evaluated on patients of the same source; no external validation."
    return Answer("answered in part", text, ("run.json",), "A person states the aims of the study.")


def _sources(facts: StackFacts) -> Answer | None:
    if not facts.record.get("data"):
        return None
    said = "; ".join(source.sentence.replace("`", "") for source in facts.data)
    text = f"The base: {sentences.base_data(facts)}. Then: {said}. Evaluation data: the test patients of the last."
    return Answer("answered in part", text, ("stack.json",), "A person says why these data were taken.")


def _described(facts: StackFacts) -> Answer | None:
    cohort = facts.cohort
    if cohort is None or not (cohort.patients or cohort.rows):
        return None
    said = []
    if cohort.patients:
        said.append("Patients: " + ", ".join(f"{count} {split}" for split, count in cohort.patients.items()))
    if cohort.rows:
        said.append("examples: " + ", ".join(f"{count} {split}" for split, count in cohort.rows.items()))
    if cohort.age:
        median = cohort.age.get("train") or next(iter(cohort.age.values()))
        said.append(f"age {median[0]:.0f} (quartiles {median[1]:.0f} to {median[2]:.0f})")
    if cohort.categories:
        said.append(f"by {', '.join(cohort.categories)} in README.md")
    remains = "A person adds countries and languages of the texts, and what else describes them."
    return Answer("answered in part", "; ".join(said) + ".", ("prepare.json", "datasheet.json"), remains)


def _prepared(facts: StackFacts) -> Answer | None:
    tokens = (facts.metrics.get("tokens") or {}).get("train") or {}
    if not tokens or facts.cohort is None:
        return None
    text = "One builder prepared the Notes of all patients alike; what it left out is counted in their DATASHEET.md."
    if isinstance(tokens.get("share_cut"), (int, float)):
        text += f" At most {facts.record['max_tokens']} tokens were read: {tokens['share_cut']:.0%} of tokens were cut."
    return Answer(
        "answered in part",
        text,
        ("metrics.json", "prepare.json"),
        "A person says whether texts differ by site or group.",
    )


def _unbalanced(facts: StackFacts) -> Answer | None:
    if facts.task is None or not facts.recipe:
        return None
    weights = facts.recipe.get("class_weights", "none")
    loss = (facts.recipe.get("loss") or {}).get("name", "cross_entropy")
    text = (
        f"Class weights: {weights}; loss: {loss}. Examples that were left out are counted in attrition.json, by step."
    )
    if facts.cohort is not None and facts.cohort.minimum_count and facts.task.kind == "multilabel":
        text += f" Codes of fewer than {facts.cohort.minimum_count} admissions are no classes."
    return Answer("answered", text, ("recipe.yaml",))


def _named(facts: StackFacts) -> Answer:
    base = str(facts.record["base"]["fingerprint"])
    text = f"{facts.label}, stack.json {facts.fingerprint[:19]}, on the base {facts.base}, fingerprint {base[:19]}"
    if facts.run.get("finished"):
        return Answer(
            "answered", f"{text}. Last trained {str(facts.run['finished'])[:10]}.", ("stack.json", "run.json")
        )
    return Answer("answered in part", f"{text}.", ("stack.json",), "A person says when it was last trained.")


def _developed(facts: StackFacts) -> Answer | None:
    rows = training_rows(facts)
    if not rows:
        return None
    said = "; ".join(f"{name}: {value}" for name, value in rows)
    return Answer("answered", f"{said}. The whole recipe is recipe.yaml of the Run.", ("recipe.yaml", "run.json"))


def _generated(facts: StackFacts) -> Answer:
    if facts.task is not None:
        return Answer("not applicable", remains="It writes no text: a head reads the base's last state.")
    if facts.prompt is None:
        return Answer(
            "not applicable", remains="No text was generated in its Run; losses of given texts were measured."
        )
    text = "The prompt is in stack.json and README.md."
    return Answer("answered in part", text, ("stack.json",), "Settings of generation are in the Run of `generate`.")


def _output(facts: StackFacts) -> Answer:
    if facts.task is None:
        return Answer(
            "answered", "Text, as log probabilities of the next token; nothing is done to it.", ("stack.json",)
        )
    which = "a sigmoid of each logit" if facts.task.kind == "multilabel" else "the logits' softmax"
    after = " Calibrated by what calibration.json has." if facts.calibrated else " Not calibrated."
    text = f"A logit for each of {len(facts.task.classes)} classes; probabilities are {which}.{after}"
    return Answer("answered", text, ("stack.json",))


def _classified(facts: StackFacts) -> Answer | None:
    assert facts.task is not None
    decided = (facts.metrics.get("test") or {}).get("threshold")
    if not decided:
        return None
    text = f"Kind: {facts.task.kind}. Thresholds by the rule {decided.get('rule')}"
    text += f", on {decided['chosen_on']} patients." if "chosen_on" in decided else "."
    if facts.calibrated:
        text += " Temperature and isotonic calibration were fitted on the validation patients."
    return Answer("answered in part", text, ("metrics.json",), "A person says why this classification.")


def _performance(facts: StackFacts) -> Answer | None:
    found = figures_of(facts.metrics)
    if not found:
        few = patients_of(facts.metrics)
        if few is not None and few < SMALLEST:
            return Answer("open", remains=f"Measured on fewer than {SMALLEST} patients: not shown here.")
        return None
    said = "; ".join(f"{figure.name} {figure.text}" for figure in found)
    return Answer("answered", f"{said}. Intervals: 95 %, over patients.", ("metrics.json",))


def _quality(facts: StackFacts) -> Answer | None:
    found = [figure for figure in figures_of(facts.metrics) if figure.split == "test"]
    if not found:
        return None
    text = "; ".join(f"{figure.name} {figure.text}" for figure in found) + "."
    return Answer(
        "answered in part", text, ("metrics.json",), "Answers that were generated are measured by `generate`."
    )


def _outcome(facts: StackFacts) -> Answer | None:
    if not facts.run:
        return None
    outcome = "the next token of a note" if facts.task is None else _outcome_of(facts.task)
    if facts.prompt is not None:
        outcome = "the answer to a question about a note"
    version = (facts.run.get("versions") or {}).get("clinstack", "unknown")
    text = (
        f"Outcome: {outcome}. Predictions are computed by clinstack {version} from these weights, by no closed model. "
    )
    text += "Measures: metrics.json of the Run."
    return Answer("answered", text, ("stack.json", "run.json"))


def _not_judged(facts: StackFacts) -> Answer | None:
    if not facts.run:
        return None
    return Answer(
        "not applicable", remains="Nothing in its Run was judged by people; `clinstack judge` has Runs of its own."
    )


def _compared(facts: StackFacts) -> Answer | None:
    if "base" in (facts.metrics.get("test") or {}):
        text = "With its own base, before training, on the same notes."
        return Answer("answered in part", text, ("metrics.json",), "Other comparisons are in `clinstack report`.")
    return None


def _labelled(facts: StackFacts) -> Answer | None:
    last = facts.data[-1].source
    if facts.task is not None and last in ("mimic3", "mimic4"):
        return Answer("not applicable", remains="Nobody labelled texts: labels come from the tables of the admission.")
    if facts.stage == "pretrain":
        return Answer("not applicable", remains="No labels were used.")
    if last == "oracle":
        return Answer(
            "not applicable", remains="Nobody labelled texts: answers follow from the synthetic cohort's tables."
        )
    return None


def _prompts(facts: StackFacts) -> Answer | None:
    if facts.prompt is None:
        return Answer("not applicable", remains="It is given no prompt.")
    text = "The prompt's whole text is in stack.json and README.md."
    return Answer("answered in part", text, ("stack.json",), "A person says how it was designed and chosen.")


def _prompt_data(facts: StackFacts) -> Answer | None:
    return None if facts.prompt is not None else Answer("not applicable", remains="It is given no prompt.")


def _tuned(facts: StackFacts) -> Answer:
    if facts.stage not in ("instruct", "align") and facts.prompt is None:
        return Answer("not applicable", remains="There was no instruction tuning and no alignment.")
    text = f"Instructions: {'; '.join(source.sentence.replace('`', '') for source in facts.data)}. Prompt: stack.json."
    return Answer("answered in part", text, ("stack.json",), "A person says who evaluated, and with what interface.")


def _took(facts: StackFacts) -> Answer | None:
    found = sentences.compute(facts)
    return None if found is None else Answer("answered", f"Measured: {found}.", ("run.json",))


def _ethics(facts: StackFacts) -> Answer | None:
    if facts.synthetic:
        return Answer("not applicable", remains="Synthetic data: the patients do not exist.")
    return Answer("open", remains="A person names the board, and consent or its waiver.")


def _funding(facts: StackFacts) -> Answer | None:
    said = facts.answers.get("funding")
    return Answer("answered", said, (ANSWERS_FILE,)) if said else None


def _data_access(facts: StackFacts) -> Answer | None:
    if not facts.record.get("data"):
        return None
    by = {
        "mimic3": "MIMIC-III: PhysioNet, for credentialed users who signed its data use agreement",
        "mimic4": "MIMIC-IV: PhysioNet, for credentialed users who signed its data use agreement",
        "asclepius": "Asclepius: the Hugging Face hub, starmpcc/Asclepius-Synthetic-Clinical-Notes",
    }
    invented = "the synthetic cohort: `clinstack prepare cohort` makes it anew from its seed"
    said = dict.fromkeys(
        invented if source.synthetic and source.source in ("mimic3", "mimic4", "oracle") else by.get(str(source.source))
        for source in facts.data
    )
    if None in said:
        return None
    return Answer("answered", "; ".join(str(text) for text in said) + ".", ("stack.json",))


def _code(facts: StackFacts) -> Answer:
    version = (facts.run.get("versions") or {}).get("clinstack") or facts.record.get("clinstack")
    text = f"clinstack {version}, Apache License 2.0; recipe.yaml of the Run replays it."
    return Answer("answered", text, ("run.json" if facts.run else "stack.json",))


def _flow(facts: StackFacts) -> Answer | None:
    if facts.cohort is None or not facts.cohort.patients:
        return None
    text = f"{_described(facts).text if _described(facts) else ''} "  # type: ignore[union-attr]
    text += "Each step with what it kept is in attrition.json of the Notes; labels by split are in README.md."
    return Answer("answered in part", text.strip(), ("prepare.json",), "A person adds the follow-up time.")


def _characteristics(facts: StackFacts) -> Answer | None:
    if facts.cohort is None or not facts.cohort.categories:
        return None
    text = f"README.md has age and {', '.join(facts.cohort.categories)} by split, small counts hidden."
    return Answer("answered in part", text, ("datasheet.json",), "A person adds sites and key dates.")


def _analyses(facts: StackFacts) -> Answer | None:
    test = facts.metrics.get("test") or {}
    count = test.get("rows", test.get("notes", test.get("examples", test.get("pairs"))))
    if not isinstance(count, int) or patients_of(facts.metrics) is None:
        return None
    text = f"Test: {shown_count(count)} rows of {shown_count(patients_of(facts.metrics))} patients."
    if facts.task is not None:
        text += " Rows of each class and split are in README.md; small counts are hidden."
    return Answer("answered", text, ("metrics.json",))


def _updated(facts: StackFacts) -> Answer | None:
    found = [adapter.name for adapter in facts.adapters if not adapter.trainable]
    if not found:
        return Answer("not applicable", remains="It was trained once.") if facts.run else None
    text = f"Of an earlier training and frozen since: {', '.join(found)}."
    return Answer("answered in part", text, ("stack.json",), "Results of the earlier training are in its own Run.")


def _limits(facts: StackFacts) -> Answer:
    text = " ".join(line if line.endswith(".") else f"{line}." for line in sentences.limits(facts))
    return Answer("answered in part", text, ("stack.json", "metrics.json"), "A person discusses what they mean.")


def _difficulties(facts: StackFacts) -> Answer | None:
    said = facts.answers.get("known_biases")
    if said:
        return Answer("answered", said, (ANSWERS_FILE,))
    if groups_of(facts.metrics) is None:
        return None
    text = "Performance by groups of patients is in README.md."
    return Answer("answered in part", text, ("metrics.json",), "A person says who is not represented, and why.")


def _use(facts: StackFacts) -> Answer:
    text = f"{sentences.intended_use(facts)} Not for: {'; '.join(sentences.out_of_scope(facts))}."
    return Answer("answered in part", text, ("stack.json",), "A person says how people watch over it in use.")


def _poor_input(facts: StackFacts) -> Answer | None:
    text = f"A note longer than {facts.record['max_tokens']} tokens is cut; rows without text are left out and counted."
    return Answer("answered in part", text, ("stack.json",), "A person says how poor notes are noticed in use.")


def _users(facts: StackFacts) -> Answer | None:
    text = sentences.intended_users(facts)
    return Answer("answered in part", text, ("stack.json",), "A person says what users have to know.")


KNOWN: dict[str, Callable[[StackFacts], Answer | None]] = {
    "1": _title,
    "3b": _meant_for,
    "4": _aims,
    "5a": _sources,
    "5b": _described,
    "5d": _prepared,
    "5e": _unbalanced,
    "6a": _named,
    "6b": _developed,
    "6c": _generated,
    "6d": _output,
    "6e": _classified,
    "7a": _quality,
    "7c": _outcome,
    "7d": _not_judged,
    "7e": _compared,
    "8a": _labelled,
    "8b": _labelled,
    "8c": _labelled,
    "9a": _prompts,
    "9b": _prompt_data,
    "11": _tuned,
    "12": _took,
    "13": _ethics,
    "14a": _funding,
    "14e": _data_access,
    "14f": _code,
    "16a": _flow,
    "16b": _characteristics,
    "16d": _analyses,
    "17": _performance,
    "18": _updated,
    "19b": _limits,
    "19c": _difficulties,
    "19d": _use,
    "19e": _poor_input,
    "19f": _users,
}
