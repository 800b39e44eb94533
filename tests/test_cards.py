"""The cards of a Stack: what they say of each lineage, what they must never say, and who may write over whom."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file, write_json, write_text
from clinstack.model.cards import CARD_FILES, write_cards
from clinstack.model.cards.chai import NAMESPACE
from clinstack.model.cards.licences import base_licence
from clinstack.model.cards.names import hub_id, public_base_name
from clinstack.model.cards.tripod_items import items
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from clinstack.tasks import Task

FILES = CARD_FILES
GOLDEN = Path(__file__).parent / "golden" / "chai"
WEIGHTS = "sha256:" + "a" * 64
MORTALITY = Task("mortality", "binary", ("survived", "died"), "Death in the hospital.")
Make = Callable[..., Path]


def figure(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "interval": [low, high]}


def classifier_metrics(**changes: Any) -> dict[str, Any]:
    test = {
        "task": {"name": "mortality", "kind": "binary"},
        "primary": "auroc",
        "auroc": figure(0.81234, 0.75, 0.86),
        "auprc": figure(0.4, 0.3, 0.5),
        "rows": 1200,
        "patients": 1000,
        "per_class": [{"class": "died", "positives": 200, "counts": {"train": 600, "validation": 90, "test": 200}}],
        "threshold": {
            "rule": "f1",
            "chosen_on": "validation",
            "f1": figure(0.5, 0.4, 0.6),
            "precision": figure(0.45, 0.4, 0.5),
            "recall": figure(0.6, 0.5, 0.7),
            "specificity": figure(0.8, 0.75, 0.85),
        },
        "calibration": {"none": {name: figure(0.1, 0.05, 0.15) for name in ("ece", "slope", "intercept", "brier")}},
    }
    tokens = {"train": {"texts": 5000, "share_cut": 0.25}, "validation": {"texts": 700}, "test": {"texts": 1200}}
    return {"best_epoch": 2, "test": test | changes, "tokens": tokens}


def language_metrics() -> dict[str, Any]:
    split = {
        "split": "test",
        "notes": 120,
        "patients": 104,
        "base": {"perplexity": figure(359.7, 348.1, 371.1)},
        "adapted": {"perplexity": figure(10.78, 10.46, 11.09), "bits_per_character": figure(1.709, 1.690, 1.727)},
        "by_note_type": {"Rare kind": {"notes": 4, "patients": 4, "adapted": {"perplexity": figure(4.321, 4, 5)}}},
    }
    return {"best_epoch": 1, "test": split, "train": {**split, "split": "train"}}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes a Run with a Stack, without weights: cards read none."""

    def write(
        stage: str | None = "finetune",
        data: list[tuple[str | None, bool | None, bool | None]] | None = None,
        base: str = "meta-llama/Llama-2-7b-hf",
        metrics: Mapping[str, Any] | None = None,
        stack: Mapping[str, Any] | None = None,
        run: Mapping[str, Any] | None = None,
        prepare: str | None = None,
    ) -> Path:
        folder = tmp_path / "run" / "stack"
        task = MORTALITY if stage == "finetune" else None
        adapter = {"name": "task", "method": "lora", "trainable": True, "folder": "task", "weights": WEIGHTS}
        record: dict[str, Any] = {
            "format_version": 1,
            "clinstack": "0.1.0",
            "base": {"id": base, "fingerprint": "sha256:" + "b" * 64, "dtype": "bfloat16", "quantize": "none"},
            "adapters": [{**adapter, "parent": "sha256:" + "b" * 64, "stacked_on": {}, "verified": True}],
            "head": {"folder": "task", "weights": WEIGHTS} if task else None,
            "task": task.to_dict() if task else None,
            "max_tokens": 512,
            "keep": "beginning",
            "probe": [[0.0]],
        }
        if data is not None:
            keys = ("source", "synthetic", "openly_publishable")
            record["data"] = [
                {**dict(zip(keys, item, strict=True)), "prepare": prepare, "stage": stage} for item in data
            ]
        write_json(folder / "stack.json", record | dict(stack or {}))
        if stage is None:
            return folder
        facts = {
            "format_version": 1,
            "status": "done",
            "stage": stage,
            "label": "lora",
            "task": task.name if task else None,
            "synthetic": False,
            "starts": 1,
            "seconds": {"total": 1234.5},
            "versions": {"clinstack": "0.1.0", "torch": "2.13.0"},
            "hardware": {"machine": "x86_64", "cores": 16, "accelerator": "NVIDIA H100"},
            "seeds": {"training": 3},
            "inputs": {"/home/alice/notes/train.parquet": "sha256:1"},
            "stack": {"trainable_parameters": 1000, "parameters": 9000, "adapters": [{"weights": WEIGHTS}]},
            "finished": "2026-11-28T01:02:03+00:00",
        }
        write_json(folder.parent / "run.json", facts | dict(run or {}))
        recipe = {
            "stage": stage,
            "run": "/home/alice/runs/x",
            "dtype": "bfloat16",
            "adapters": [{"name": "task", "path": None, "method": "lora", "rank": 8, "alpha": 16}],
            "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.0002},
            "examples" if stage == "finetune" else "notes": "/home/alice/notes/examples/mortality",
        }
        write_text(folder.parent / "recipe.yaml", yaml.safe_dump(recipe))
        found = metrics if metrics is not None else classifier_metrics() if task else language_metrics()
        write_json(folder.parent / "metrics.json", found)
        return folder

    return write


MIMIC = [("mimic3", False, False)]
COHORT = [("mimic3", True, True)]


def text_of(folder: Path, name: str = "README.md") -> str:
    return (folder / name).read_text(encoding="utf-8")


def hub_data(folder: Path) -> Any:
    """Return the metadata of README.md as the hub's own library reads it."""
    return ModelCard(text_of(folder)).data


def test_metadata_as_the_hub_reads_it(make: Make) -> None:
    folder = make(data=COHORT)
    assert {path.name for path in write_cards(folder).paths} == set(FILES)
    data = hub_data(folder)
    assert data.base_model == "meta-llama/Llama-2-7b-hf"
    assert data.to_dict()["base_model_relation"] == "adapter"
    assert (data.license, data.library_name, data.pipeline_tag, data.language) == (
        "llama2",
        "peft",
        "text-classification",
        "en",
    )
    assert {"clinstack", "lora", "mortality", "synthetic-data"} <= set(data.tags)
    assert data.datasets is None  # the cohort is on no hub
    measured = {result.metric_name: result for result in data.eval_results}
    auroc = measured["AUROC"]
    assert (auroc.metric_type, auroc.metric_value) == ("roc_auc", 0.81234)
    assert auroc.metric_args == {"interval": [0.75, 0.86], "level": 0.95}
    assert "of a synthetic" not in auroc.dataset_name
    assert "synthetic cohort" in auroc.dataset_name


def test_a_language_model_has_perplexity_before_and_after(make: Make) -> None:
    folder = make("pretrain", COHORT, base="embedded")
    write_cards(folder)
    text = text_of(folder)
    data = hub_data(folder)
    assert (data.pipeline_tag, data.base_model, data.license) == ("text-generation", None, "apache-2.0")
    assert "| perplexity on test notes, the base, before | 359.7 | 348.1 to 371.1 |" in text
    assert "| perplexity on training notes, after | 10.8 | 10.5 to 11.1 |" in text
    assert "Rare kind" not in text


@pytest.mark.parametrize(
    ("data", "licence", "said"),
    [
        (MIMIC, "other", "Not to be published openly: it was trained on MIMIC-III"),
        ([*COHORT, *MIMIC], "other", "Not to be published openly: it was trained on MIMIC-III"),
        (COHORT, "llama2", "Trained on synthetic data: neither its outputs nor its figures say anything"),
        ([("table", False, None)], "unknown", "It is not known whether its data allow publishing it"),
        (None, "unknown", "It is not known whether its data allow publishing it"),
    ],
)
def test_lineage_of_the_data(make: Make, data: Any, licence: str, said: str) -> None:
    folder = make(data=data)
    write_cards(folder)
    text = text_of(folder)
    assert said in text
    assert hub_data(folder).license == licence
    chai = read_json(folder / "chai.json")["AppliedModelCard"]
    assert ("Not to be published openly" in chai["ReleaseInfo"]["GlobalAvailability"]) == (licence == "other")


def test_a_stack_from_before_says_unknown(make: Make) -> None:
    folder = make(None, data=None, base="/models/of/alice/llama")
    write_cards(folder)
    text = text_of(folder)
    for said in (
        "How it was trained is unknown",
        "Unknown: `run.json` is not beside the stack.",
        "unknown: look it up",
        "Unknown: nothing is recorded of differential privacy, so take it as not private.",
        "Unknown: nothing is recorded of held-out patients.",
        "`stack.json` records no data",
        "Not audited",
    ):
        assert said in text
    counts = read_json(folder / "tripod-llm.json")["counts"]
    assert counts["open"] > counts["answered"]


def test_a_run_of_other_weights_is_not_believed(make: Make) -> None:
    folder = make(data=COHORT, run={"stack": {"adapters": [{"weights": "sha256:other"}]}})
    write_cards(folder)
    assert "0.812" not in text_of(folder)


@pytest.mark.parametrize("stage", ["finetune", "pretrain"])
def test_nothing_that_must_not_leave_is_in_a_card(make: Make, stage: str) -> None:
    metrics = classifier_metrics() if stage == "finetune" else language_metrics()
    metrics["test"]["subgroups"] = {
        "groups": [
            {"attribute": "ethnicity", "group": "TINYGROUP", "patients": "<10", "why": "fewer than 10 patients"},
            {"attribute": "ethnicity", "group": "TINYGROUP", "patients": 4, "auroc": figure(0.9191, 0.9, 0.93)},
        ],
    }
    metrics["per_note"] = [{"note_id": "NOTE-77", "patient_id": "PATIENT-77", "text": "zebra quartz lantern"}]
    run = {"predictions": [{"patient_id": "PATIENT-77"}], "error": "zebra quartz lantern"}
    folder = make(stage, MIMIC, base="/home/alice/models/Llama-2-7b", metrics=metrics, run=run)
    write_cards(folder)
    for name in FILES:
        text = text_of(folder, name)
        for marker in ("/home", "alice", "TINYGROUP", "0.919", "zebra", "PATIENT-77", "NOTE-77", str(folder.parent)):
            assert marker not in text, (name, marker)
    assert "`Llama-2-7b`" in text_of(folder)
    assert hub_data(folder).base_model is None


def test_small_cells_are_hidden(make: Make) -> None:
    few = [{"class": "died", "positives": 6, "counts": {"train": 40, "validation": 4, "test": 6}}]
    folder = make(data=MIMIC, metrics=classifier_metrics(per_class=few))
    write_cards(folder)
    text = text_of(folder)
    assert "| validation | hidden | <10 | 700 |" in text
    assert "| train | 4,960 | 40 | 5,000 |" in text
    assert "Recall, precision, specificity and F1 are not shown" in text
    assert "| recall" not in text
    folder = make(data=MIMIC)
    write_cards(folder)
    assert (
        "| recall (sensitivity) at the threshold chosen on validation patients | 0.600 | 0.500 to 0.700 |"
        in text_of(folder)
    )
    folder = make(data=MIMIC, metrics=classifier_metrics(patients=6))
    write_cards(folder)
    assert "Measured on fewer than 10 patients: not shown." in text_of(folder)
    assert all("0.812" not in text_of(folder, name) for name in FILES)


def test_groups_and_their_gaps(make: Make) -> None:
    groups = [
        {
            "attribute": "sex",
            "group": "F",
            "patients": 400,
            "auroc": figure(0.7, 0.6, 0.8),
            "gaps": {"auroc": {**figure(-0.15, -0.25, -0.05), "holds": True}},
            "predicted_minus_observed": figure(0.04, 0.01, 0.07),
        },
        {"attribute": "sex", "group": "M", "patients": 20, "predicted_minus_observed": figure(0.01, -0.02, 0.05)},
        {"attribute": "insurance", "group": "Private", "patients": "hidden", "auroc": figure(0.8, 0.7, 0.9)},
        {"attribute": "insurance", "group": "Self Pay", "patients": "<10", "why": "fewer than 10 patients"},
    ]
    folder = make(data=MIMIC, metrics=classifier_metrics(subgroups={"groups": groups}))
    write_cards(folder)
    text = text_of(folder)
    assert "| sex | F | 400 | 0.700 (0.600 to 0.800) | -0.150 (-0.250 to -0.050) \\* | 0.040 (0.010 to 0.070) |" in text
    assert "| sex | M | 20 | unknown | unknown | 0.010 (-0.020 to 0.050) |" in text
    assert "| insurance | Private | hidden | 0.800 (0.700 to 0.900) | unknown | unknown |" in text
    assert "Self Pay" not in text
    assert "1 more groups are too small" in text
    fairness = read_json(folder / "chai.json")["AppliedModelCard"]["KeyMetrics"]["FairnessEquity"]
    values = [json.loads(result["ValueJson"]) for result in fairness["Results"]["MetricResult"]]
    assert values[1] == {"kind": "estimate_ci", "estimate": -0.15, "lower": -0.25, "upper": -0.05, "level": 95}


def test_the_audit_and_when_it_is_stale(make: Make) -> None:
    folder = make(data=COHORT)
    write_cards(folder)
    assert "> **Audit:** Not audited" in text_of(folder)
    findings = [{"name": "membership.loss.auroc", "value": 0.71, "interval": [0.66, 0.76], "threshold": 0.6}]
    audit = {"verdict": "leaking", "sentence": "Membership shows.", "date": "2026-11-28", "findings": findings}
    fingerprint = sha256_file(folder / "stack.json")
    write_json(folder / "audit.json", {**audit, "stack": {"fingerprint": fingerprint}})
    write_cards(folder)
    assert "> **Audit:** Leaking, audited 2026-11-28. It gives away what it was trained on." in text_of(folder)
    assert "| audit | Leaking, audited 2026-11-28. Membership shows. |" in text_of(folder)
    safety = read_json(folder / "chai.json")["AppliedModelCard"]["KeyMetrics"]["SafetyReliability"]
    assert safety["Results"]["MetricResult"][0]["Label"].startswith("Membership, loss: AUROC (threshold 0.6)")
    write_json(folder / "audit.json", {**audit, "verdict": "clean", "stack": {"fingerprint": fingerprint}})
    write_cards(folder)
    assert "> **Audit:**" not in text_of(folder)
    assert "| audit | Clean, audited 2026-11-28." in text_of(folder)
    write_json(folder / "audit.json", {**audit, "verdict": "clean", "stack": {"fingerprint": "sha256:0"}})
    write_cards(folder)
    assert "> **Audit:** Stale: the audit of 2026-11-28 (clean) was of other weights" in text_of(folder)


def test_private_training_and_canaries(make: Make) -> None:
    folder = make(data=COHORT)
    write_cards(folder)
    assert "Not private: the training had no differential privacy." in text_of(folder)
    assert "No canaries were planted in its last training." in text_of(folder)
    private = {
        "unit": "patient",
        "epsilon": 7.98,
        "delta": 0.0001,
        "noise_multiplier": 0.9,
        "clip": 1.0,
        "accountant": "prv",
    }
    canaries = {"count": 24, "repetitions": [1, 4, 16]}
    together = {"overall": {"epsilon": 7.98, "delta": 0.0001, "how": "composed"}}
    folder = make(data=COHORT, run={"privacy": private | together, "canaries": canaries})
    write_cards(folder)
    text = text_of(folder)
    assert "Differentially private for each training patient: epsilon 7.98 at delta 0.0001" in text
    assert "for each patient epsilon 7.98, delta 0.0001, noise multiplier 0.9, gradients clipped to 1" in text
    assert "24 invented identifiers and sentences (canaries) were planted in what its last training read" in text
    assert "each 1 or 4 or 16 times" in text
    lineage = [
        {"stage": None, "adapter": "base /home/alice/bases/clinical", "private": None},
        {"stage": "finetune", "adapter": "task", "private": True, **private},
    ]
    folder = make(data=COHORT, stack={"privacy": lineage})
    write_cards(folder)
    assert "No guarantee for the stack as a whole: base clinical comes without a record of it" in text_of(folder)
    assert "task (finetune): for each patient epsilon 7.98" in text_of(folder)
    assert "/home/alice" not in text_of(folder)


def test_the_same_disk_gives_the_same_bytes(make: Make) -> None:
    folder = make(data=COHORT)
    before = (folder / "stack.json").read_bytes()
    write_cards(folder)
    first = {name: (folder / name).read_bytes() for name in FILES}
    write_cards(folder)
    assert {name: (folder / name).read_bytes() for name in FILES} == first
    assert (folder / "stack.json").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"stack.json", *FILES}


def test_what_a_person_wrote_stays(make: Make) -> None:
    folder = make(data=COHORT)
    write_cards(folder)
    rendered = text_of(folder)
    mine = rendered.replace("## Intended use", "## Intended use\n\nOur words.")
    write_text(folder / "README.md", mine)
    done = write_cards(folder)
    assert text_of(folder) == mine
    assert text_of(folder, "README.generated.md") == rendered
    assert "README.md was written by a person and stays" in done.notes[0]
    # Only other ends of lines, as some editors and Git write them: nobody's words.
    (folder / "README.md").write_bytes(rendered.replace("\n", "\r\n").encode())
    assert write_cards(folder).notes == ()
    assert text_of(folder) == rendered
    assert not (folder / "README.generated.md").exists()
    write_text(folder / "README.md", "# mine from the beginning\n")
    write_cards(folder)
    assert text_of(folder) == "# mine from the beginning\n"


def test_people_answer_what_is_open(make: Make) -> None:
    folder = make(data=MIMIC)
    write_cards(folder)
    open_before = read_json(folder / "tripod-llm.json")["counts"]["open"]
    answers = {
        "owner": "Ward 7",
        "license": "llama2",
        "tripod": {"13": "Approved by the board of the ward.", "14a": "None."},
    }
    write_text(folder / "card.yaml", yaml.safe_dump(answers))
    write_cards(folder)
    found = {item["item"]: item for item in read_json(folder / "tripod-llm.json")["items"]}
    assert (found["13"]["status"], found["13"]["from"]) == ("answered", ["card.yaml"])
    assert read_json(folder / "tripod-llm.json")["counts"]["open"] == open_before - 2
    assert "| owner | Ward 7 |" in text_of(folder)
    assert hub_data(folder).license == "llama2"
    assert read_json(folder / "chai.json")["AppliedModelCard"]["BasicInfo"]["ModelDeveloper"] == "Ward 7"
    for wrong, reason in (
        ({"ownr": "x"}, "unknown key ownr. Did you mean owner"),
        ({"tripod": {"20": "x"}}, r"unknown key tripod\.20"),
        ({"owner": ["x"]}, "owner must be a text"),
    ):
        write_text(folder / "card.yaml", yaml.safe_dump(wrong))
        with pytest.raises(InputError, match=reason):
            write_cards(folder)


def test_every_item_is_answered_from_a_file_or_left_to_a_person(make: Make) -> None:
    rows = items()
    assert len(rows) == len({item.number for item in rows}) == 49
    assert {re.match(r"\d+", item.number)[0] for item in rows} == {str(number) for number in range(1, 20)}  # type: ignore[index]
    for stage in ("finetune", "pretrain"):
        folder = make(stage, MIMIC)
        write_cards(folder)
        found = read_json(folder / "tripod-llm.json")
        assert sum(found["counts"].values()) == 49
        for item in found["items"]:
            if item["status"] == "answered":
                assert item["answer"], item
                assert item["from"], item
            elif item["status"] == "answered in part":
                assert item["answer"], item
                assert item["from"], item
                assert item["remains"], item
            else:
                assert item["answer"] is None, item
                assert item["remains"], item
            assert f"| {item['item']} | " in text_of(folder, "TRIPOD-LLM.md")
    by_number = {item["item"]: item for item in found["items"]}
    assert by_number["6e"]["status"] == "not applicable"  # of classifiers
    assert by_number["13"]["status"] == "open"


XS = "{http://www.w3.org/2001/XMLSchema}"


def faults(element: Element, declared: Element, types: dict[str, Element]) -> list[str]:
    """Return what an element has against the schema, of which this reads what CHAI's uses: sequences and strings."""
    kind = declared.get("type", "").removeprefix("mc:")
    if kind == "xs:string":
        return [f"{element.tag}: not a string"] if len(element) else []
    complex_type = types[kind] if kind else declared.find(f"{XS}complexType")
    assert complex_type is not None
    (sequence,) = complex_type
    found, left = [], [(child.tag.removeprefix(f"{{{NAMESPACE}}}"), child) for child in element]
    repeats = sequence.get("maxOccurs") == "unbounded"
    for part in sequence:
        name = part.get("name") or ""
        least = int(part.get("minOccurs", 1)) if not repeats else 0
        most = len(left) if repeats or part.get("maxOccurs") == "unbounded" else 1
        count = 0
        while name and left and left[0][0] == name and count < most:
            found += faults(left.pop(0)[1], part, types)
            count += 1
        if count < least:
            found.append(f"{element.tag}: {name} is missing")
    return found + [f"{element.tag}: {name} is not expected" for name, _ in left]


@pytest.fixture(scope="module")
def check() -> Callable[[Element], list[str]]:
    root = ElementTree.parse(GOLDEN / "schema.xsd").getroot()
    types = {item.get("name", ""): item for item in root.findall(f"{XS}complexType")}
    declared = root.find(f"{XS}element")
    assert declared is not None
    return lambda element: faults(element, declared, types)


@pytest.mark.parametrize(("stage", "data"), [("finetune", MIMIC), ("pretrain", COHORT), (None, None)])
def test_chai_is_valid_by_the_coalitions_schema(
    make: Make, check: Callable[[Element], list[str]], stage: str, data: Any
) -> None:
    folder = make(stage, data)
    write_cards(folder)
    root = ElementTree.parse(folder / "chai.xml").getroot()
    assert root.tag == f"{{{NAMESPACE}}}AppliedModelCard"
    assert check(root) == []
    card = read_json(folder / "chai.json")["AppliedModelCard"]

    def same(element: Any, value: Any) -> None:
        if isinstance(value, Mapping):
            names = [child.tag.removeprefix(f"{{{NAMESPACE}}}") for child in element]
            flat = [(key, item) for key, one in value.items() for item in (one if isinstance(one, list) else [one])]
            assert names == [key for key, _ in flat]
            for child, (_, item) in zip(element, flat, strict=True):
                same(child, item)
        else:
            assert (element.text or "") == value

    same(root, card)
    # The schema does refuse: a card without its risks, one in another order, and one with what it does not know.
    warnings = root.find(f"{{{NAMESPACE}}}Warnings")
    assert warnings is not None
    risks = warnings[0]
    warnings.remove(risks)
    assert check(root) == [f"{warnings.tag}: KnownRisksAndLimitations is missing"]
    warnings.append(risks)
    assert len(check(root)) == 2
    ElementTree.SubElement(root, "Praise").text = "the best"
    assert f"{root.tag}: Praise is not expected" in check(root)


def test_chai_is_valid_for_an_independent_reader(make: Make) -> None:
    etree: Any = pytest.importorskip("lxml.etree", reason="lxml reads schemas; it is no dependency")

    class Local(etree.Resolver):  # type: ignore[misc]
        """Stands for the schema of signatures that CHAI's imports: no test asks the network."""

        def resolve(self, url: str, public: str, context: Any) -> Any:
            stub = (
                '<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" '
                'targetNamespace="http://www.w3.org/2000/09/xmldsig#"><xs:element name="Signature"/></xs:schema>'
            )
            return self.resolve_string(stub, context) if url.startswith("http") else None

    parser = etree.XMLParser()
    parser.resolvers.add(Local())
    schema = etree.XMLSchema(etree.parse(GOLDEN / "schema.xsd", parser))
    folder = make(data=MIMIC)
    write_cards(folder)
    assert schema.validate(etree.parse(folder / "chai.xml")), schema.error_log


def test_what_was_read_of_the_notes_is_kept(make: Make, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    patients = {"train": 700, "validation": 9, "test": 200}
    write_json(
        notes / "prepare.json",
        {"source": "mimic3", "counts": {"patients": patients, "examples": {"mortality": patients}}},
    )
    cohort = {
        "measures": {"age": {"train": {"known": 700, "median": 64.9, "p25": 56.6, "p75": 75.4}, "test": {"known": 5}}},
        "categories": {
            "sex": [{"value": "M", "train": 400, "validation": "<10", "test": "hidden", "all": 500}],
            "ethnicity": [{"value": "VERYRARE", "train": "<10", "validation": 0, "test": "<10", "all": "<10"}],
        },
    }
    write_json(notes / "datasheet.json", {"small_cells": 10, "counts": {"patients": patients}, "cohort": cohort})
    folder = make(data=MIMIC, prepare=sha256_file(notes / "prepare.json"))
    recipe = yaml.safe_load(text_of(folder.parent, "recipe.yaml"))
    recipe["examples"] = str(notes / "examples" / "mortality")
    write_text(folder.parent / "recipe.yaml", yaml.safe_dump(recipe))
    write_cards(folder)
    text = text_of(folder)
    assert "Patients of the last training: 700 train, <10 validation, 200 test." in text
    assert "| age, median (quartiles) | 65 (57 to 75) | unknown | unknown |" in text
    assert "| sex: M | 400 | <10 | hidden |" in text
    assert all("VERYRARE" not in text_of(folder, name) for name in FILES)
    (notes / "prepare.json").unlink()  # the Notes stay behind where the stack goes
    write_cards(folder)
    assert text_of(folder) == text
    record = read_json(folder / "stack.json")
    write_json(folder / "stack.json", {**record, "max_tokens": 99})
    write_cards(folder)
    assert "Patients of the last training" not in text_of(folder)  # another stack: its Notes are not known


def test_a_sheet_that_hides_nothing_is_not_quoted(make: Make, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    write_json(notes / "prepare.json", {"source": "mimic3", "counts": {}})
    rows = [{"value": "M", "train": 400, "validation": 3, "test": 90, "all": 493}]
    write_json(notes / "datasheet.json", {"small_cells": 1, "cohort": {"categories": {"sex": rows}}})
    folder = make("pretrain", MIMIC, prepare=sha256_file(notes / "prepare.json"))
    recipe = yaml.safe_load(text_of(folder.parent, "recipe.yaml"))
    write_text(folder.parent / "recipe.yaml", yaml.safe_dump({**recipe, "notes": str(notes)}))
    write_cards(folder)
    assert "sex: M" not in text_of(folder)


def test_licences_of_bases(tmp_path: Path) -> None:
    assert base_licence("embedded").identifier == "apache-2.0"
    assert base_licence("meta-llama/Llama-3.1-8B-Instruct").identifier == "llama3.1"
    assert base_licence("google/gemma-2-9b-it").identifier == "gemma"
    # A name that only begins like a known one, and weights that only look like some: never guessed.
    for name in ("meta-llama/Llama-2-7b-hf-mine", "someone/Llama-2-7b-hf", "google/gemma-scope-2b"):
        assert base_licence(name).name == "unknown: look it up"
    folder = tmp_path / "base"
    write_json(folder / "config.json", {"model_type": "gemma"})
    assert not base_licence(str(folder)).is_known
    write_text(folder / "LICENSE", "LLAMA 2 COMMUNITY LICENSE AGREEMENT\nLlama 2 Version Release Date: July 18, 2023")
    assert base_licence(str(folder)).to_dict() == {
        "identifier": "llama2",
        "name": "Llama 2 Community License",
        "evidence": "LICENSE of the base",
    }
    write_text(folder / "README.md", "---\nlicense: other\nlicense_name: ward-terms\n---\n# A base\n")
    assert (base_licence(str(folder)).identifier, base_licence(str(folder)).name) == ("other", "ward-terms")
    write_text(folder / "README.md", "---\nlicense: [damaged\n---\n")
    assert base_licence(str(folder)).identifier == "llama2"


def test_names_of_bases_have_no_paths(tmp_path: Path) -> None:
    (tmp_path / "my-base").mkdir()
    assert public_base_name(str(tmp_path / "my-base")) == "my-base"
    assert public_base_name("/home/alice/models/llama") == "llama"
    assert public_base_name("C:\\Users\\alice\\llama") == "llama"
    assert public_base_name("~/models/bases/llama") == "llama"
    assert public_base_name("google/gemma-2b") == hub_id("google/gemma-2b") == "google/gemma-2b"
    cached = "/home/alice/.cache/huggingface/hub/models--google--gemma-2b/snapshots/9cf48e52"
    assert public_base_name(cached) == hub_id(cached) == "google/gemma-2b"
    assert hub_id("embedded") is None


@pytest.mark.parametrize("label", ["head", "lora", "clinical-frozen", "clinical-frozen+lora"])
def test_the_code_of_the_readme_opens_the_whole(
    tiny_base: Path,
    mortality: Task,
    perturbed: Callable[..., Stack],
    table3: dict[str, list[AdapterRecipe]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    label: str,
) -> None:
    built = perturbed(Stack.build(str(tiny_base), table3[label], mortality))
    built.save(tmp_path / "stack")
    write_cards(tmp_path / "stack")
    blocks = re.findall(r"```python\n(.*?)```", text_of(tmp_path / "stack"), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path / "stack")
    built.eval()
    tokens = torch.arange(3, 13)[None]
    mask = torch.ones_like(tokens)
    for code in blocks:
        assert str(tiny_base) not in code
        here = code.replace("'where the base is on your machine'", repr(str(tiny_base)))
        names: dict[str, Any] = {}
        exec(compile(here.replace("base = 'tiny'", f"base = {str(tiny_base)!r}"), "README.md", "exec"), names)
        with torch.no_grad():
            wanted = built.logits(tokens, mask)
            if "stack" in names:
                names["stack"].eval()
                found = names["stack"].logits(tokens, mask)
            else:
                found = names["model"](input_ids=tokens, attention_mask=mask).logits
        assert torch.allclose(found, wanted, atol=1e-5)


def test_a_card_that_cannot_be_written(make: Make) -> None:
    folder = make(data=COHORT)
    (folder / "chai.json").mkdir()
    with pytest.raises(InputError, match=r"chai\.json: the card cannot be written \(Is a directory\)"):
        write_cards(folder)


def test_the_verb(make: Make) -> None:
    folder = make(data=COHORT)
    result = CliRunner().invoke(app, ["card", str(folder.parent), "--json"], catch_exceptions=False)
    line = json.loads(result.stdout.splitlines()[-1])
    assert [Path(path).name for path in line["paths"]] == list(FILES)
    assert sum(line["tripod_llm"].values()) == 49
    write_text(folder / "README.md", "mine")
    shown = CliRunner().invoke(app, ["card", str(folder)], catch_exceptions=False).stdout
    assert "README.md was written by a person and stays" in shown
    assert "README.generated.md" in shown
