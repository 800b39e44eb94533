"""README.md of a whole Stack: what it is, what it was made from, what was measured, and what is not known.

Each section is a function of its own, for the README of an export has some of them too.
"""

from __future__ import annotations

from clinstack.model.base import EMBEDDED_FOLDERS
from clinstack.model.card import asking, opening
from clinstack.model.cards import sentences
from clinstack.model.cards.facts import StackFacts
from clinstack.model.cards.figures import SMALLEST
from clinstack.model.cards.hub import metadata
from clinstack.model.cards.markdown import bullets, count, python, table
from clinstack.model.cards.measured import groups_section, privacy_section, results_section, training_section
from clinstack.model.cards.sentences import METHODS, NOT_A_DEVICE, OPEN, SOURCES
from clinstack.model.cards.training import label_rows
from clinstack.model.cards.tripod_llm import Checklist
from clinstack.model.data_lineage import DataSource
from clinstack.notes.sheet.small_cells import hide_small_cells


def stack_readme(facts: StackFacts, checklist: Checklist) -> str:
    """Return the whole README.md, with the hub's metadata."""
    parts = [
        f"---\n{metadata(facts)}\n---",
        f"# {facts.label}",
        sentences.what_it_is(facts),
        *warnings(facts),
        levels_section(facts),
        opening_section(facts),
        use_section(facts),
        data_section(facts),
        licences_section(facts),
        training_section(facts),
        results_section(facts),
        groups_section(facts),
        privacy_section(facts),
        _environment(facts),
        _reporting(checklist),
        contact_section(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def warnings(facts: StackFacts) -> list[str]:
    """Return what has to stand before everything."""
    found = []
    synthetic = sentences.synthetic_warning(facts)
    if synthetic:
        found.append(f"> **{synthetic}**")
    if facts.publishable is not True:
        found.append(f"> **{sentences.may_be_published(facts)}**")
    audit = sentences.audited(facts)
    if audit.verdict != "clean":
        found.append(f"> **Audit:** {audit.short}")
    return found


def levels_section(facts: StackFacts) -> str:
    """Return the adapters in their order, and what is frozen."""
    rows = [("0", f"`{facts.base}`", "base", "no", _short(_base_print(facts)))]
    for place, adapter in enumerate(facts.adapters, start=1):
        rows.append(
            (
                str(place),
                f"`{adapter.name}`",
                METHODS.get(adapter.method, adapter.method),
                "yes" if adapter.trainable else "no: frozen",
                _short(adapter.weights),
            )
        )
    if facts.task is not None:
        rows.append(("", "head", f"{len(facts.task.classes)} outputs", "yes", _short(facts.record["head"]["weights"])))
    said = "From below. Each belongs on what stands above it in this table, and on nothing else; `stack.json` has the"
    unknown = [adapter.name for adapter in facts.adapters if not adapter.verified]
    doubt = (
        f" Of {', '.join(f'`{name}`' for name in unknown)} it is not recorded what it was trained on."
        if unknown
        else ""
    )
    return (
        "## What it is made of\n\n"
        + table(("", "level", "method", "trained in the last training", "hash of the weights"), rows)
        + f"\n\n{said} whole hashes.{doubt}"
        + (f"\n\nThe classes, in the order of the outputs: {_classes(facts)}." if facts.task is not None else "")
    )


def _base_print(facts: StackFacts) -> str:
    return str(facts.record["base"]["fingerprint"])


def _classes(facts: StackFacts) -> str:
    assert facts.task is not None
    if facts.task.kind == "multilabel":
        return f"{len(facts.task.classes)} codes, listed in `stack.json`"
    return ", ".join(f"{number}: {name}" for number, name in enumerate(facts.task.classes))


def opening_section(facts: StackFacts) -> str:
    """Return how to open the whole, with clinstack and where that can be with the plain libraries."""
    head = facts.record.get("head") or {}
    beside = head.get("folder") == "head"
    how, code = opening(facts.adapters, facts.base, facts.task, facts.reads, head_beside=beside)
    place = "" if facts.base in EMBEDDED_FOLDERS else ", base='where the base is on your machine'"
    parts = [
        "## Opening it",
        "With clinstack, in this folder; it verifies every hash and the output that was recorded when it was saved:",
        python(
            [
                "from pathlib import Path",
                "from clinstack.model.stack import Stack",
                "",
                f"stack = Stack.load(Path('.'){place})",
            ]
        ),
    ]
    if "clinstack.model.stack" not in "\n".join(code):
        parts += [f"{how}, in this folder:", python(code)]
    else:
        parts.append(how.removesuffix("With clinstack").strip())
    if facts.prompt is not None:
        parts.append(asking(facts.prompt))
    elif facts.task is not None:
        suffix = facts.record.get("suffix")
        tail = f" After every note it was given the text {str(suffix)!r}." if suffix else ""
        parts.append(
            f"It reads at most {facts.record['max_tokens']} tokens of a note and keeps the "
            f"{str(facts.record.get('keep', 'beginning')).replace('_', ' ')} of a longer one; clinstack cuts so by "
            f"itself, plain libraries do not.{tail}"
        )
    return "\n\n".join(parts)


def use_section(facts: StackFacts) -> str:
    """Return what it is for, what not, and its limits."""
    return "\n\n".join(
        [
            "## Intended use",
            sentences.intended_use(facts),
            f"For: {sentences.intended_users(facts)} Patients: "
            f"{facts.answers.get('patient_population') or sentences.population(facts)}.",
            NOT_A_DEVICE,
            "### Not for",
            bullets(sentences.out_of_scope(facts)),
            "### Limits",
            bullets(sentences.limits(facts)),
        ]
    )


def data_section(facts: StackFacts) -> str:
    """Return what base, parents and this training read, and whether that may be published."""
    sources = [("the base", sentences.base_data(facts), "", "see its licence")]
    sources += [
        (
            source.stage or "unknown",
            "unknown" if source.source is None else SOURCES.get(source.source, f"`{source.source}`"),
            {True: "yes", False: "no", None: "unknown"}[source.synthetic],
            _may(source),
        )
        for source in facts.data
    ]
    parts = [
        "## Data it has read",
        table(("training", "data", "synthetic", "may the weights be published?"), sources),
        sentences.may_be_published(facts),
    ]
    if not facts.record.get("data"):
        parts.append(
            "`stack.json` records no data: the stack is from before clinstack did that, or was made otherwise."
        )
    cohort = facts.cohort
    if cohort is not None:
        if cohort.patients:
            parts.append(f"Patients of the last training: {_splits(cohort.patients)}.")
        if cohort.rows:
            parts.append(f"Examples: {_splits(cohort.rows)}.")
    labels = label_rows(facts)
    if labels:
        names = list(next(iter(labels.values())))
        shown = [
            hide_small_cells([[*counts.values(), sum(counts.values())]], SMALLEST, total_column=True)[0]
            for counts in labels.values()
        ]
        parts.append(
            table(
                ("split", *names, "examples"),
                [(split, *(count(cell) for cell in row)) for split, row in zip(labels, shown, strict=True)],
            )
        )
    if cohort is not None and (cohort.age or cohort.categories):
        rows: list[tuple[str, ...]] = [
            ("age, median (quartiles)", *(_age(cohort.age.get(split)) for split in ("train", "validation", "test")))
        ] * bool(cohort.age)
        rows += [
            (f"{attribute}: {row['value']}", row["train"], row["validation"], row["test"])
            for attribute, values in cohort.categories.items()
            for row in values
        ]
        parts += [
            f"Admissions of all its Notes; counts below {SMALLEST}, and those that would give one away, are hidden.",
            table(("", "train", "validation", "test"), rows),
        ]
    return "\n\n".join(parts)


def _may(source: DataSource) -> str:
    return {True: "yes", False: "**no**", None: "unknown"}[source.openly_publishable]


def _splits(counts: dict[str, str]) -> str:
    return ", ".join(f"{count} {split}" for split, count in counts.items())


def _age(values: list[float] | None) -> str:
    return "unknown" if values is None else f"{values[0]:.0f} ({values[1]:.0f} to {values[2]:.0f})"


def licences_section(facts: StackFacts) -> str:
    """Return the licences of base, data, weights and code."""
    return "## Licences\n\n" + table(
        ("of", "licence"),
        [
            (f"the base `{facts.base}`", sentences.base_licence(facts)),
            ("these weights", sentences.own_licence(facts)),
            ("the data", sentences.may_be_published(facts)),
            ("clinstack", "Apache License 2.0"),
        ],
    )


def _environment(facts: StackFacts) -> str:
    took = sentences.compute(facts)
    measured = f"{took}, as measured." if took else "Unknown."
    said = "Energy and emissions were not measured, and are not estimated."
    return f"## Environment\n\n{measured[0].upper()}{measured[1:]} {said}"


def _reporting(checklist: Checklist) -> str:
    counts = checklist.counts
    return (
        "## Reporting\n\n"
        f"[TRIPOD-LLM.md](TRIPOD-LLM.md) goes through the {sum(counts.values())} items of the TRIPOD-LLM checklist: "
        + ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        + ". `tripod-llm.json` is the same for programs. `chai.json` and `chai.xml` are an Applied Model Card of the "
        "Coalition for Health AI. What is open, people answer in `card.yaml` beside this file; `clinstack card` then "
        "renders all of them anew."
    )


def contact_section(facts: StackFacts) -> str:
    """Return who answers for it."""
    return "## Who answers for it\n\n" + table(
        ("who", "name or address"),
        [(key, facts.answers.get(key) or f"{OPEN} (`{key}` in card.yaml)") for key in ("owner", "contact")],
    )


def _short(value: str) -> str:
    return f"`{value.removeprefix('sha256:')[:12]}`"
