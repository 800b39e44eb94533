"""The tables of an audit's page: what was audited, on what data, and what each attack came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from clinstack.model.privacy_lineage import TrainingPrivacy, privacy_sentence
from clinstack.privacy.finding_names import membership_name
from clinstack.report.audit_figures import title
from clinstack.report.tables.cells import MISSING, Cell, Table, count, figure

_SIDES = {"members": "Training patients", "non_members": "Held-out patients"}
_SPECIAL = {"tpr": "TPR", "auroc": "AUROC", "min": "Min-K%++"}


def stack_table(report: Mapping[str, Any]) -> Table:
    """Return what was audited: base, adapters in order, their hashes, how they were trained."""
    stack = report["stack"]
    what = {"notes": "the losses of notes", "answers": "the losses of answers", "scores": "a classifier's scores"}
    rows = [
        ("Stack", [Cell(stack["label"], _hash(stack["fingerprint"], "stack.json"))]),
        ("Attacked through", [Cell(what[stack["kind"]], stack["task"] or "")]),
        ("Base", [Cell(_name(stack["base"]["id"]), _hash(stack["base"]["fingerprint"], "fingerprint"))]),
    ]
    for place, adapter in enumerate(stack["adapters"], 1):
        lies_on = "" if adapter.get("verified", True) else "; what it lies on is not verified"
        text = f"{adapter['name']}: {adapter['method']}, {'trainable' if adapter['trainable'] else 'frozen'}{lies_on}"
        rows.append((f"Adapter {place}", [Cell(text, _hash(adapter["weights"], "weights"))]))
    training = stack["training"]
    if training is not None:
        steps = "" if training["max_steps"] is None else f", at most {training['max_steps']:,} steps"
        epochs = f"{training['epochs']:,} epoch{'s' * (training['epochs'] != 1)}"
        text = f"{training['stage']}: {epochs}{steps}, learning rate {training['learning_rate']:g}"
        rows.append(("Training", [Cell(text, f"finished {training['finished']}" if training["finished"] else "")]))
    rows.append(("Differential privacy", [Cell(_privacy(report["privacy"]))]))
    return Table("stack", "What was audited", "", ["", ""], rows, words=True)


def data_table(report: Mapping[str, Any]) -> Table:
    """Return the data with their hashes, and how they are known to be what was trained on."""
    data = report["data"]
    recorded = (
        "recorded: the Run was trained on exactly these files"
        if data["recorded"]
        else "the word of whoever asked: no record says that these were trained on"
    )
    rows = [
        ("Folder", [Cell(_name(data["folder"]), recorded)]),
        ("Members", [Cell(f"notes of the {data['members']} patients")]),
        ("Others", [Cell(f"notes of the {data['non_members']} patients, who were held out")]),
    ]
    rows += [(_name(name), [Cell(value)]) for name, value in data["files"].items()]
    if data["prepare"] is not None:
        rows.append(("prepare.json", [Cell(data["prepare"])]))
    for number, source in enumerate(data["lineage"] or (), 1):
        may = {True: "may be published", False: "may not be published openly", None: "unknown whether publishable"}
        text = f"{source['source'] or 'unknown'} ({source['stage']}): {may[source['openly_publishable']]}"
        rows.append((f"Lineage {number}", [Cell(text)]))
    return Table("data", "The data", "Hashes of the files that were read.", ["", ""], rows, words=True)


def membership_table(section: Mapping[str, Any]) -> Table:
    """Return the figures of each membership attack."""
    rows = []
    for name, attack in section["attacks"].items():
        cells = [figure(attack["auroc"]), figure(attack["auroc_joint"])]
        cells += [figure(attack[rate]) for rate in ("tpr_at_1_percent", "tpr_at_0.1_percent")]
        rows.append((title(membership_name(name)), cells))
    sides = "; ".join(
        f"{whose.lower()}: {section[key]['notes']:,} of {section[key]['patients']:,}" for key, whose in _SIDES.items()
    )
    note = (
        f"0.5 is an AUROC of guessing, 0.010 and 0.001 are rates of guessing. Small: 95 % intervals over patients; the "
        f"joint ones hold for all attacks together. {sides[:1].upper() + sides[1:]}."
    )
    columns = ["Attack", "AUROC", "AUROC, joint", "TPR at 1 % FPR", "TPR at 0.1 % FPR"]
    return Table("membership-table", "Membership attacks", note, columns, rows)


def membership_sentences(section: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know beside the figures."""
    what = [f"{title(membership_name(name))}: {attack['what']}." for name, attack in section["attacks"].items()]
    return [*what, section["split_check"]["why"], *section["remarks"]]


def canaries_table(section: Mapping[str, Any]) -> Table:
    """Return mean exposure by how often canaries were planted."""
    groups = [("Controls, never", section["controls"], section["of_controls"])]
    groups += [
        ("Once" if one["repetitions"] == 1 else f"{one['repetitions']} times", one["canaries"], one)
        for one in section["by_repetition"]
    ]
    keys = ("exposure", "bound", "base_exposure")
    rows = [(name, [count(number), *(figure(one[key], 2) for key in keys)]) for name, number, one in groups]
    note = (
        "Mean exposure in bits, small its 95 % interval; by chance what nobody planted has "
        f"{section['null']:.2f} bits. "
        f"Each secret was ranked among {section['others']:,} others or more; the ranks alone show the bound."
    )
    columns = ["Planted", "Canaries", "Exposure", "Bound", "Base alone"]
    return Table("canaries-table", "Exposure of canaries", note, columns, rows)


def extraction_table(section: Mapping[str, Any]) -> Table:
    """Return the shares of prefixes that were continued verbatim, by the stack, its base, and a reference."""
    rows: list[tuple[str, list[Cell]]] = []
    groups: dict[int, str] = {}
    for length, figures in section["by_length"].items():
        groups[len(rows)] = f"{length} tokens"
        for side, whose in _SIDES.items():
            of_models = figures["verbatim"][side]
            cells = [count(figures["prompts"][side]), figure(of_models["adapter"]), figure(of_models["base"])]
            cells += [figure(of_models.get("reference")), figure(figures["in_no_other_patient"][side])]
            rows.append((whose, cells))
        excess = figures["in_no_other_patient"]["excess"]
        rows.append(("Excess of training", [Cell(MISSING)] + [Cell("")] * 3 + [figure(excess, signed=True)]))
    note = (
        "Share of prefixes of a note that a model continues with the note's own tokens, greedily. Last column: of "
        "these only such that stand in no other patient's text; the excess of training patients over held-out ones is "
        "judged."
    )
    columns = ["Whose prefixes", "Prefixes", "Stack", "Base alone", "Reference", "In nobody else's text"]
    return Table("extraction-table", "Verbatim continuations", note, columns, rows, groups=groups)


def _privacy(entries: Sequence[Mapping[str, Any]] | None) -> str:
    return privacy_sentence(None if entries is None else [TrainingPrivacy.from_dict(entry) for entry in entries])


def _hash(value: Any, what: str) -> str:
    return f"{what} {value}"


def _name(path: str) -> str:
    """Return the last part of an absolute path: the way to it is that machine's business."""
    pure = PurePath(path)
    return pure.name if pure.is_absolute() else str(path)
