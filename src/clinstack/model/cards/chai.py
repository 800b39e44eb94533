"""The Applied Model Card of the Coalition for Health AI: ``chai.json``, and ``chai.xml`` for what reads their schema.

The keys, their order and their nesting are those of the coalition's schema v0.2
(https://github.com/coalition-for-health-ai/mc-schema, v0.2/schema.xsd), which is XML; the JSON is the same tree. The
schema calls itself a draft. Every text that it asks for is there: what nobody knows is marked open.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

from clinstack.model.cards import sentences
from clinstack.model.cards.facts import StackFacts
from clinstack.model.cards.figures import SMALLEST, Figure, figures_of, groups_of, patients_of, shown_count
from clinstack.model.cards.sentences import NOT_A_DEVICE, OPEN
from clinstack.model.cards.training import training_rows
from clinstack.privacy.finding_names import finding_name

NAMESPACE = "https://mc.chai.org/v0.2/schema.xsd"
ROOT = "AppliedModelCard"
_NOT_MEASURED = {"Label": "Not measured", "ValueJson": "null"}


def applied_model_card(facts: StackFacts) -> dict[str, Any]:
    """Return the tree below ``AppliedModelCard``."""
    audit = sentences.audited(facts)
    metrics = figures_of(facts.metrics)
    return {
        "BasicInfo": {
            "ModelName": facts.label,
            "ModelDeveloper": _said(facts, "owner"),
            "DeveloperContact": _said(facts, "contact"),
        },
        "ReleaseInfo": {
            "ReleaseStage": "Research; not released for care",
            "ReleaseDate": str(facts.run.get("finished") or "unknown")[:10],
            "ReleaseVersion": f"stack.json {facts.fingerprint}",
            "GlobalAvailability": sentences.may_be_published(facts),
            "RegulatoryApproval": f"None. {NOT_A_DEVICE}",
        },
        "ModelSummary": {
            "Summary": " ".join(
                part
                for part in (
                    sentences.what_it_is(facts),
                    sentences.trained_how(facts),
                    sentences.synthetic_warning(facts),
                )
                if part
            ),
            "Keywords": {"Keyword": _keywords(facts)},
        },
        "UsesAndDirections": {
            "IntendedUseAndWorkflow": sentences.intended_use(facts),
            "PrimaryIntendedUsers": sentences.intended_users(facts),
            "HowToUse": "README.md beside this card says how to open it and what to give it.",
            "TargetedPatientPopulation": facts.answers.get("patient_population")
            or f"{OPEN} (`patient_population` in card.yaml). Trained on {sentences.population(facts)}.",
            "CautionedOutOfScopeSettings": "; ".join(sentences.out_of_scope(facts)) + ".",
        },
        "Warnings": {
            "KnownRisksAndLimitations": " ".join(
                line if line.endswith(".") else f"{line}." for line in sentences.limits(facts)
            ),
            "KnownBiasesOrEthicalConsiderations": _said(facts, "known_biases"),
            "ClinicalRiskLevel": _said(facts, "clinical_risk_level"),
        },
        "TrustIngredients": {
            "AISystemFacts": {
                "OutcomesAndOutputs": _outputs(facts),
                "ModelType": sentences.what_it_is(facts),
                "FoundationModels": f"{facts.base}, fingerprint {facts.record['base']['fingerprint']}; "
                f"licence: {sentences.base_licence(facts)}; trained on: {sentences.base_data(facts)}",
                "InputDataSource": "Clinical notes of the electronic health record, as text.",
                "OutputAndInputDataTypes": f"In: text of at most {facts.record['max_tokens']} tokens. "
                f"Out: {_outputs(facts)}",
                "DevelopmentDataCharacterization": _data(facts),
                "BiasMitigationApproaches": _said(facts, "bias_mitigation"),
                "OngoingMaintenance": _said(facts, "maintenance"),
                "Security": " ".join(
                    [
                        "Differential privacy: " + " ".join(sentences.private_training(facts)),
                        sentences.planted(facts),
                        audit.sentence,
                    ]
                ),
                "Transparency": "README.md and TRIPOD-LLM.md beside this card; "
                + "; ".join(f"{name}: {value}" for name, value in training_rows(facts)),
            },
            "TransparencyInformation": {
                "FundingSource": _said(facts, "funding"),
                "ThirdPartyInformation": sentences.own_licence(facts),
                "StakeholdersConsulted": _said(facts, "stakeholders"),
            },
        },
        "KeyMetrics": {
            "UsefulnessUsabilityEfficacy": _metric(
                facts,
                "How well it predicts on patients that it has not seen",
                [_result(figure.name, figure) for figure in metrics if figure.split == "test"],
                "Figures of usefulness in care were not measured.",
            ),
            "FairnessEquity": _metric(
                facts,
                "How far groups of patients are from all others",
                _groups(facts),
                "A gap that does not stand after correction is no proof of equality."
                if groups_of(facts.metrics)
                else "Groups of patients were not measured.",
            ),
            "SafetyReliability": _metric(
                facts,
                "Whether it gives away what it was trained on",
                _findings(facts),
                audit.sentence,
                test_type="Attacks on the weights by `clinstack audit`",
                process="Members are training patients, non-members test patients of the same source; thresholds are "
                "in the audit's recipe.",
            ),
        },
        "Resources": {
            "PeerReviewedPublications": _said(facts, "publications"),
            "PatientConsentOrDisclosure": "Synthetic data: the patients do not exist."
            if facts.synthetic
            else _said(facts, "patient_consent"),
        },
        "Bibliography": "@article{tripodllm2025, title={The TRIPOD-LLM reporting guideline for studies using large "
        "language models}, journal={Nature Medicine}, volume={31}, pages={60--69}, year={2025}}",
    }


def chai_json(facts: StackFacts) -> dict[str, Any]:
    """Return ``chai.json``: the schema's name, and its tree."""
    return {"schema": NAMESPACE, "stack": facts.fingerprint, ROOT: applied_model_card(facts)}


def chai_xml(card: Mapping[str, Any]) -> str:
    """Return the tree as an instance of the schema."""
    root = ElementTree.Element(ROOT, {"xmlns": NAMESPACE})
    for name, value in card.items():
        _append(root, name, value)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _append(parent: ElementTree.Element, name: str, value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _append(parent, name, item)
        return
    element = ElementTree.SubElement(parent, name)
    if isinstance(value, Mapping):
        for key, item in value.items():
            _append(element, key, item)
    else:
        # XML has no place for control characters.
        element.text = "".join(sign for sign in str(value) if sign in "\t\n" or ord(sign) >= 32)


def _said(facts: StackFacts, key: str) -> str:
    return facts.answers.get(key) or f"{OPEN} (`{key}` in card.yaml)"


def _keywords(facts: StackFacts) -> list[str]:
    found = ["clinical notes", "language model", *(adapter.method for adapter in facts.adapters)]
    return list(dict.fromkeys([*found, *([facts.task.name] if facts.task is not None else [])]))


def _outputs(facts: StackFacts) -> str:
    if facts.task is None:
        return "Text."
    named = "codes" if facts.task.kind == "multilabel" else "classes"
    calibrated = "calibrated probabilities" if facts.calibrated else "scores that are not calibrated"
    told = facts.task.description or facts.task.name
    return f"{told.rstrip('.')}: {calibrated} of {len(facts.task.classes)} {named}."


def _data(facts: StackFacts) -> str:
    said = "; ".join(source.sentence.replace("`", "") for source in facts.data)
    if facts.cohort is None or not facts.cohort.patients:
        return f"{said}. How many patients there were is unknown here."
    counts = ", ".join(f"{count} {split}" for split, count in facts.cohort.patients.items())
    return f"{said}. Patients: {counts}."


def _metric(
    facts: StackFacts,
    goal: str,
    results: list[dict[str, str]],
    interpretation: str,
    *,
    test_type: str = "Retrospective, on held-out patients of the same source",
    process: str = "Patients are in one split only; thresholds and calibration were chosen on validation patients; "
    "intervals are bootstrapped over patients.",
) -> dict[str, Any]:
    patients = patients_of(facts.metrics)
    of = "unknown" if patients is None else f"{shown_count(patients)} test patients"
    of += f"; trained on: {sentences.population(facts)}"
    return {
        "MetricGoal": goal,
        "Results": {"MetricResult": results or [dict(_NOT_MEASURED)]},
        "Interpretation": interpretation,
        "TestType": test_type,
        "TestingDataDescription": of,
        "ValidationProcessAndJustification": process,
    }


def _result(label: str, figure: Figure) -> dict[str, str]:
    if figure.interval is None:
        value: dict[str, Any] = {"kind": "single", "value": round(figure.value, 6)}
    else:
        low, high = (round(end, 6) for end in figure.interval)
        value = {"kind": "estimate_ci", "estimate": round(figure.value, 6), "lower": low, "upper": high, "level": 95}
    return {"Label": label, "ValueJson": json.dumps(value)}


def _groups(facts: StackFacts) -> list[dict[str, str]]:
    found = groups_of(facts.metrics)
    return [
        _result(f"{what}, {group.attribute}: {group.name} ({_patients(group.patients)} patients)", figure)
        for group in (found[0] if found else [])
        for what, figure in (
            ("AUROC", group.auroc),
            ("gap of AUROC to all others", group.gap),
            ("predicted minus observed", group.excess),
        )
        if figure is not None
    ]


def _patients(count: int | str) -> str:
    return f"at least {SMALLEST}" if isinstance(count, str) else f"{count:,}"


def _findings(facts: StackFacts) -> list[dict[str, str]]:
    if sentences.audited(facts).verdict in ("not audited", "stale"):
        return []
    return list(_each_finding((facts.audit or {}).get("findings") or []))


def _each_finding(findings: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, str]]:
    for found in findings:
        value, interval = found.get("value"), found.get("interval")
        if not isinstance(value, (int, float)):
            continue
        ends = interval if isinstance(interval, (list, tuple)) and None not in interval else None
        figure = Figure("", "", "", float(value), (float(ends[0]), float(ends[1])) if ends else None)
        yield _result(
            f"{finding_name(str(found.get('name')))} (threshold {found.get('threshold')}): {found.get('verdict')}",
            figure,
        )
