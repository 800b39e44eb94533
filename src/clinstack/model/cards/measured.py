"""Sections of a README.md on training, results, groups of patients and privacy; an export has them too."""

from __future__ import annotations

from collections.abc import Mapping

from clinstack.model.cards import sentences
from clinstack.model.cards.facts import AUDIT_FILE, StackFacts
from clinstack.model.cards.figures import (
    SMALLEST,
    Figure,
    Group,
    figures_of,
    groups_of,
    hides_decisions,
    patients_of,
    shown_count,
    written,
)
from clinstack.model.cards.markdown import table
from clinstack.model.cards.training import training_rows

_FITS = ("none", "temperature", "isotonic")
_CALIBRATION = {"ece": "ECE", "slope": "slope", "intercept": "intercept", "brier": "Brier score"}


def training_section(facts: StackFacts) -> str:
    """Return the recipe's numbers, time and machine."""
    rows = training_rows(facts)
    body = table(("setting", "value"), rows) if rows else "Unknown: `run.json` is not beside the stack."
    return f"## Training\n\n{sentences.trained_how(facts)}\n\n{body}"


def results_section(facts: StackFacts) -> str:
    """Return the figures of the test patients with their intervals."""
    found = figures_of(facts.metrics)
    if not found:
        few = patients_of(facts.metrics)
        why = (
            f"Measured on fewer than {SMALLEST} patients: not shown."
            if few is not None and few < SMALLEST
            else "Unknown: nothing is recorded of held-out patients."
        )
        return f"## Results\n\n{why}"
    test = facts.metrics["test"]
    count = test.get("rows", test.get("notes", test.get("examples", test.get("pairs"))))
    unit = "notes" if "rows" in test or "notes" in test else "examples" if "examples" in test else "pairs"
    of = f"{shown_count(count)} {unit} of {shown_count(patients_of(facts.metrics))} test patients"
    said = sentences.synthetic_warning(facts) if facts.synthetic else None
    fits = {figure.key: figure for figure in found if figure.key.split(".")[0] in _FITS}
    hidden = None
    if hides_decisions(facts.metrics):
        hidden = (
            f"Recall, precision, specificity and F1 are not shown: fewer than {SMALLEST} patients of one kind could be "
            "worked out from them."
        )
    return "\n\n".join(
        part
        for part in (
            "## Results",
            f"On {of}, whom no training and no choice has seen. Intervals: 95 %, over patients.",
            said,
            table(
                ("figure", "value", "95 % interval"),
                [
                    (figure.name, written(figure.value), "unknown" if figure.interval is None else figure.between)
                    for figure in found
                    if figure.key not in fits
                ],
            ),
            hidden,
            _calibration(fits),
        )
        if part
    )


def _calibration(fits: Mapping[str, Figure]) -> str | None:
    rows = [
        (
            "not calibrated" if method == "none" else method,
            *(fits[f"{method}.{key}"].text if f"{method}.{key}" in fits else "unknown" for key in _CALIBRATION),
        )
        for method in dict.fromkeys(key.split(".")[0] for key in fits)
    ]
    if not rows:
        return None
    said = "Calibration: a slope of 1 and an intercept of 0 are ideal; the fits are of validation patients."
    return said + "\n\n" + table(("probabilities", *_CALIBRATION.values()), rows)


def groups_section(facts: StackFacts) -> str:
    """Return the figures by groups of patients, and the gaps between them."""
    found = groups_of(facts.metrics)
    if found is None:
        return "## Groups of patients\n\nNot measured: differences between groups are unknown."
    groups, left_out = found
    hidden = (
        f" {left_out} more groups are too small to be shown (fewer than {SMALLEST} patients, or too few of a class)."
    )
    if not groups:
        return "## Groups of patients\n\n" + (hidden.strip() if left_out else "No table says which groups there are.")
    columns = [
        ("AUROC (95 % interval)", [group.auroc for group in groups]),
        ("gap to all others (95 % interval)", [group.gap for group in groups]),
        ("predicted minus observed (95 % interval)", [group.excess for group in groups]),
    ]
    known = [(name, figures) for name, figures in columns if any(figure is not None for figure in figures)]
    rows = [
        (
            group.attribute.replace("_", " "),
            group.name,
            shown_count(group.patients) if isinstance(group.patients, int) else group.patients,
            *(_group_figure(figures[place], group) for _, figures in known),
        )
        for place, group in enumerate(groups)
    ]
    said = "\\* stands after correction for all gaps that were measured. One that does not is no proof of equality."
    few = f" Unknown: fewer than {SMALLEST} patients of a class in the group."
    return "\n\n".join(
        [
            "## Groups of patients",
            table(("attribute", "group", "patients", *(name for name, _ in known)), rows),
            said + (few if any("unknown" in row for row in rows) else "") + (hidden if left_out else ""),
        ]
    )


def _group_figure(figure: Figure | None, group: Group) -> str:
    if figure is None:
        return "unknown"
    return figure.text + (" \\*" if figure is group.gap and group.holds else "")


def privacy_section(facts: StackFacts) -> str:
    """Return what is known of differential privacy, canaries and the audit."""
    audit = sentences.audited(facts)
    private, *costs = sentences.private_training(facts)
    return "\n\n".join(
        [
            "## Privacy",
            table(
                ("question", "answer"),
                [
                    ("differential privacy", private),
                    *(("", cost) for cost in costs),
                    ("canaries", sentences.planted(facts)),
                    ("audit", audit.sentence),
                ],
            ),
            f"The audit's summary is `{AUDIT_FILE}` beside this file."
            if audit.verdict not in ("not audited",)
            else "No attack was tried on it. That says nothing about what an attack would find.",
        ]
    )
