"""The page of an audit, ``audit.html``: one file without a network, for a screen and for paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clinstack import __version__
from clinstack.files import write_text
from clinstack.privacy.finding_names import finding_name
from clinstack.report.audit_figures import areas_figure, exposure_figure, roc_figure
from clinstack.report.audit_tables import (
    canaries_table,
    data_table,
    extraction_table,
    membership_sentences,
    membership_table,
    stack_table,
)
from clinstack.report.collect import EMBEDDED
from clinstack.report.figures.canvas import Drawing
from clinstack.report.pages import Section, template_environment
from clinstack.report.tables.cells import MISSING, interval, number

FILE = "audit.html"


@dataclass(frozen=True)
class AuditPage:
    """What the template shows."""

    title: str
    caveat: str
    banner: str
    verdict: str
    sentences: Sequence[str]
    findings: Sequence[Mapping[str, str]]
    drawings: Sequence[Drawing]
    not_tested: Sequence[str]
    sections: Sequence[Section]
    command: str
    facts: Sequence[tuple[str, str]]


def write_audit_page(folder: Path, report: Mapping[str, Any], record: Mapping[str, Any]) -> Path:
    """Write ``audit.html``.

    Parameters
    ----------
    folder : Path
        The audit's Run, with the tables of the attacks.
    report : mapping
        What ``audit.json`` holds.
    record : mapping
        The Run's ``run.json``: versions and hardware.
    """
    template = template_environment().get_template("audit.html.j2")
    text = template.render(page=audit_page(folder, report, record), version=__version__)
    write_text(folder / FILE, text)
    return folder / FILE


def audit_page(folder: Path, report: Mapping[str, Any], record: Mapping[str, Any]) -> AuditPage:
    """Put the page together; see `write_audit_page`."""
    caveat = _caveat(report)
    drawings = (
        areas_figure(report, caveat),
        roc_figure(folder, report, caveat),
        exposure_figure(report, caveat),
    )
    name = report["stack"]["label"]
    return AuditPage(
        title=f"Leak audit of {name}",
        caveat=caveat,
        banner=_banner(report),
        verdict=report["verdict"],
        sentences=_paragraphs(report["sentence"]),
        findings=[_finding(item) for item in report["findings"]],
        drawings=[drawing for drawing in drawings if drawing is not None],
        not_tested=[f"{item[:1].upper()}{item[1:]}." for item in report["not_tested"]],
        sections=_sections(report),
        command=_command(report, folder),
        facts=_facts(report, record),
    )


def _sections(report: Mapping[str, Any]) -> list[Section]:
    sections = report["sections"]
    result = [Section("audited", "What was audited", (), (stack_table(report), data_table(report)))]
    membership, canaries, extraction = (sections[name] for name in ("membership", "canaries", "extraction"))
    if membership["tested"]:
        table = membership_table(membership)
        result.append(Section("membership", "Membership", membership_sentences(membership), (table,)))
    if canaries["tested"]:
        result.append(Section("canaries", "Canaries", canaries.get("remarks", ()), (canaries_table(canaries),)))
    if extraction["tested"]:
        table = extraction_table(extraction)
        result.append(Section("extraction", "Extraction", extraction.get("remarks", ()), (table,)))
    return result


def _finding(item: Mapping[str, Any]) -> dict[str, str]:
    value, ends = item["value"], item["interval"]
    return {
        "name": finding_name(item["name"]),
        "value": MISSING if value is None else number(value),
        "interval": "" if ends is None or None in ends else interval(ends),
        "threshold": f"{item['threshold']:g}",
        "verdict": item["verdict"],
        "why": item.get("why") or "",
    }


def _paragraphs(sentence: str) -> list[str]:
    """Return the sentence in paragraphs, as its parts begin."""
    for begin in ("Tested:", "Not tested:", "Nothing was tested.", "A clean verdict", "Whoever has", "An inconclusive"):
        sentence = sentence.replace(f" {begin}", f"\n{begin}")
    return sentence.split("\n")


def _caveat(report: Mapping[str, Any]) -> str:
    parts = ["synthetic patients"] * report["synthetic"] + ["toy base model"] * _is_toy(report)
    return ", ".join(parts).capitalize()


def _is_toy(report: Mapping[str, Any]) -> bool:
    return report["stack"]["base"]["id"] in EMBEDDED


def _banner(report: Mapping[str, Any]) -> str:
    what = ["the patients are invented"] * report["synthetic"] + ["the base model is a toy"] * _is_toy(report)
    if not what:
        return ""
    return (
        f"Here {' and '.join(what)}. This page shows what an audit looks like; it is no evidence about a model of real "
        "notes."
    )


def _command(report: Mapping[str, Any], folder: Path) -> str:
    stack = report["stack"]["run"] or report["stack"]["folder"]
    return f"clinstack audit {stack}\n# or, with every setting as it was: clinstack audit {folder}/recipe.yaml"


def _facts(report: Mapping[str, Any], record: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("Audited", str(record["created"]))]
    for key, title in (("versions", "Software"), ("hardware", "Machine")):
        facts.append((title, ", ".join(f"{name} {value}" for name, value in record.get(key, {}).items())))
    facts.append(("Seeds", ", ".join(f"{name} {value}" for name, value in report["seeds"].items())))
    most = "all" if report["max_notes"] is None else f"{report['max_notes']:,}"
    facts.append(("Notes of each side at most", most))
    return facts
