"""Classifiers: `clinstack finetune`, `sweep` and `study` against the published loop and what the libraries offer.

    python benchmarks/downstream.py            # everything, about 25 minutes on two cores
    python benchmarks/downstream.py --quick    # two layers, fewer notes, one task of the study: under three minutes

Everything is float32 on CPUs, one thread a process, and figures are CPU time. Each way is a process of its own; they
take turns, and a ratio is the median over turns of the ratios within a turn.

training   Notes per second of optimizer steps: a LoRA of rank 16 and a head on a random Llama (hidden 288, 6 layers,
           vocabulary 32,000), alone and on a frozen clinical LoRA. All ways read the same random batches of 16 notes;
           loss and gradients are compared before anything is timed. Padding to 512 is the published loop; the flat row
           with a dense mask is transformers' padding-free way where there is no FlashAttention. clinstack's figure is
           with the recipe's defaults, which do not compile.
frozen     Ten epochs of a head on a backbone that does not train: the whole stage, from the recipe to the saved stack,
           and the whole sweep of twenty trials, against a forward pass of the backbone for every batch of every epoch.
           Of the slow side some notes are timed in each turn, and multiplied to what it has to read: the training and
           the validation notes in every epoch, the test notes once.
study      `clinstack study demo/table3` on the synthetic cohort against the same searches by the published loop: same
           base, stacks, tasks, tokens, epochs, batches and trials; padded, nothing kept, training figures after each
           epoch, a process for each search. The clinical adapter is trained before and is in neither figure. Of each
           search the published loop does the first trial, which is multiplied: trials differ in their learning rate
           alone. The toy reads 32 tokens of a note, which nothing pads; the full run has the same with 512 too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downstream_arms import BATCH, SPECS
from downstream_frozen import BATCH as FROZEN_BATCH
from downstream_frozen import CHECK_KIND, EPOCHS, KIND, TRIALS
from turns import Process, in_turn, paired, quiet_environment

HERE = Path(__file__).resolve().parent
PARTS = ("training", "frozen", "study")
BASELINE = "padded to 512"
OWN = "clinstack"
TRAINING_NAMES = {BASELINE: "vs_pad", "dynamic padding": "vs_dynamic", "flat, dense mask": "vs_dense_mask"}
FROZEN_SPECS = {"head": "head only", "clinical-frozen": "frozen clinical LoRA"}
TOLERANCE = 1e-5
SAME = 1e-6
"""Features once or in every epoch: logits relative to the largest, and every test figure."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    layers: int = 6
    turns: int = 3
    steps: int = 2
    """Of a way in a turn."""
    quick: bool = False
    frozen_notes: tuple[int, int, int] = (480, 80, 160)
    """Of train, validation and test."""
    frozen_turns: int = 2
    slow_notes: int = 64
    """Training notes of the slow side in a turn."""
    patients: int = 400
    tasks: tuple[str, ...] = ("prolonged_ventilation", "mortality", "length_of_stay", "diagnoses", "procedures")
    rates: tuple[float, ...] = (0.001, 0.003, 0.01)
    long_tasks: tuple[str, ...] = ("mortality", "diagnoses")
    """Of the study with 512 tokens, which has one learning rate."""
    specs: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Which of the study's stacks, in the recipe's order."""
    pretrain_steps: int | None = None
    """Of the study's clinical adapter; the preset's without."""


QUICK = Plan(2, 1, 1, True, (96, 16, 32), 1, 16, 120, ("mortality",), (0.003,), specs=(1, 2), pretrain_steps=20)


@dataclass(frozen=True)
class Trained:
    """What a way did in its turn."""

    notes: int
    cpu: float
    wall: float

    @property
    def per_cpu_second(self) -> float:
        return self.notes / self.cpu


def python(script: str, *arguments: str, threads: int = 1) -> str:
    """Run a script of this folder, or a module with -m, and return what it prints."""
    command = [sys.executable, *([script] if script.startswith("-") else [str(HERE / script)]), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=quiet_environment(threads))
    if done.returncode:
        sys.exit(f"{' '.join(command[1:4])} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout


def make(work: Path, plan: Plan) -> None:
    """Write the base, the clinical adapter and the notes."""
    shape = {"hidden_size": 288, "num_hidden_layers": plan.layers, "num_attention_heads": 6, "intermediate_size": 768}
    few = {"validation": 2, "test": 2}
    frozen = dict(zip(("train", "validation", "test"), plan.frozen_notes, strict=True))
    folders = {
        "radiology": ("radiology", {"train": plan.turns * (plan.steps + 1) * BATCH, **few}),
        "admission": ("admission", {"train": plan.turns * (plan.steps + 1) * BATCH, **few}),
        KIND: ("radiology", frozen),
        CHECK_KIND: ("radiology", {"train": 2 * BATCH, "validation": BATCH, "test": BATCH}),
    }
    python("downstream_arms.py", "make", str(work), json.dumps(shape), json.dumps(folders))


def note(text: str) -> None:
    """Say how far it is."""
    print(text, file=sys.stderr)


# ---------------------------------------------------------------------- training


def training_cases(plan: Plan) -> dict[str, list[str]]:
    """Return the ways of each case; the dense mask, which is slowest, is measured on the first stack alone."""
    plain = (
        [BASELINE, "dynamic padding", OWN] if plan.quick else [BASELINE, "dynamic padding", OWN, "clinstack compiled"]
    )
    cases = {}
    for spec in SPECS[:1] if plan.quick else SPECS:
        for kind in ("radiology", "admission"):
            dense = spec == SPECS[0] and not (plan.quick and kind == "admission")
            cases[f"{spec} {kind}"] = [*plain, *(["flat, dense mask"] if dense else [])]
    return cases


def measure_training(work: Path, plan: Plan) -> tuple[list[str], dict[str, float]]:
    """Return the table's lines and the ratios."""
    cases = training_cases(plan)
    for case, ways in cases.items():
        if case.endswith("radiology"):
            spec, kind = case.split()
            told = json.loads(python("downstream_arms.py", "check", str(work), spec, kind, *ways[1:]))
            for way, difference in told.items():
                if not difference < TOLERANCE:
                    sys.exit(f"{case}, {way}: loss or a gradient differs by {difference:.1e} from padding, relative.")
            note(f"{spec}: loss and gradients of all ways are equal to {max(told.values()):.1e}, relative")
    names = sorted({way for ways in cases.values() for way in ways})
    arms = str(HERE / "downstream_arms.py")
    environment = quiet_environment(1)
    processes = {name: Process(name, [sys.executable, arms, name, str(work)], work, environment) for name in names}
    for process in processes.values():
        process.answer()  # they import, all at once
    measured: dict[str, dict[str, list[Trained]]] = {case: {way: [] for way in ways} for case, ways in cases.items()}
    try:
        for turn in range(plan.turns):
            for case, ways in cases.items():
                for way in in_turn(ways, turn):
                    told = processes[way].ask(json.dumps({"case": case, "steps": plan.steps}))
                    measured[case][way].append(Trained(told["notes"], told["cpu"], told["wall"]))
            note(f"training: turn {turn + 1} of {plan.turns}")
    finally:
        for process in processes.values():
            process.close()
    lines = ["| stack | notes | way | notes per CPU s | of padding |", "|---|---|---|--:|--:|"]
    found: dict[str, float] = {}
    for case, by_way in measured.items():
        spec, kind = case.split()
        prefix = "" if spec == SPECS[0] else "stacked_"
        for way, turns in by_way.items():
            speed = statistics.median(turn.per_cpu_second for turn in turns)
            ratio = paired(turns, by_way[BASELINE], "per_cpu_second")
            lines.append(f"| {spec} | {kind} | {way} | {speed:.2f} | {ratio:.2f} |")
            if way in TRAINING_NAMES:
                found[f"{prefix}{kind}_{TRAINING_NAMES[way]}"] = round(paired(by_way[OWN], turns, "per_cpu_second"), 2)
            elif way == "clinstack compiled":
                found[f"{prefix}{kind}_vs_pad_compiled"] = round(ratio, 2)
    for name in ("vs_dynamic", "vs_dense_mask"):
        found[name] = found.pop(f"radiology_{name}")
    return lines, found


# ---------------------------------------------------------------------- frozen


def measure_frozen(work: Path, plan: Plan) -> tuple[list[str], dict[str, float]]:
    """Return the table's lines and the ratios."""
    specs = list(FROZEN_SPECS)[1:] if plan.quick else list(FROZEN_SPECS)
    train, validation, test = plan.frozen_notes
    arms = str(HERE / "downstream_frozen.py")
    ways = ("published", "clinstack plain", OWN)
    environment = quiet_environment(1)
    processes = {name: Process(name, [sys.executable, arms, name, str(work)], work, environment) for name in ways}
    for process in processes.values():
        process.answer()
    lines = ["| stack | way | ten epochs, CPU s | 20 trials, CPU s | times faster | over 20 trials |"]
    lines.append("|---|---|--:|--:|--:|--:|")
    found: dict[str, float] = {}
    try:
        for spec in specs:
            told = processes[OWN].ask(json.dumps({"do": "check", "spec": spec}))
            if not (told["plain"] < SAME and told["table"] < SAME and told["published"] < TOLERANCE):
                sys.exit(f"{spec}: features that are kept do not bring the same logits or the same table: {told}")
            note(f"{spec}: logits and table with and without features, and of the published loop, differ by {told}")
            cpu: dict[str, list[float]] = {name: [] for name in (*ways, "sweep")}
            for turn in range(plan.frozen_turns):
                for way in in_turn(ways, turn):
                    if way == OWN:
                        cpu[way].append(processes[way].ask(json.dumps({"do": "finetune", "spec": spec}))["cpu"])
                        cpu["sweep"].append(processes[way].ask(json.dumps({"do": "sweep", "spec": spec}))["cpu"])
                        continue
                    question = {"do": "pass", "spec": spec, "notes": plan.slow_notes}
                    each = processes[way].ask(json.dumps(question))
                    epoch = train * each["train"] + validation * each["look"]
                    cpu[way].append(EPOCHS * epoch + test * each["look"])
                note(f"frozen, {spec}: turn {turn + 1} of {plan.frozen_turns}")
            titles = {
                "published": "every epoch, padded to 512 (published)",
                "clinstack plain": "every epoch, clinstack",
            }
            ends = {"published": "", "clinstack plain": "_vs_own"}
            for way, title in titles.items():
                once = statistics.median(slow / own for slow, own in zip(cpu[way], cpu[OWN], strict=True))
                often = statistics.median(TRIALS * slow / own for slow, own in zip(cpu[way], cpu["sweep"], strict=True))
                middle = statistics.median(cpu[way])
                figures = f"{middle:,.0f} | {TRIALS * middle:,.0f} | {once:.1f} | {often:.0f}"
                lines.append(f"| {FROZEN_SPECS[spec]} | {title} | {figures} |")
                prefix = "" if spec == "clinical-frozen" else "head_"
                found[f"{prefix}frozen_{EPOCHS}_epochs{ends[way]}"] = round(once, 1)
                found[f"{prefix}frozen_{TRIALS}_trials{ends[way]}"] = round(often)
            own, whole = (statistics.median(cpu[name]) for name in (OWN, "sweep"))
            lines.append(f"| {FROZEN_SPECS[spec]} | clinstack | {own:,.1f} | {whole:,.1f} | | |")
    finally:
        for process in processes.values():
            process.close()
    return lines, found


# ---------------------------------------------------------------------- study


def cpu_of(command: list[str], work: Path) -> float:
    """Run a command to its end and return the CPU seconds of it and its children."""
    with (work / "command.log").open("wb") as log:
        process = subprocess.Popen(command, env=quiet_environment(1), stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = (work / "command.log").read_text("utf-8", "replace").strip().splitlines()[-4:]
        sys.exit(f"{' '.join(command[1:5])} ended with {process.returncode}: {' / '.join(last)}")
    return usage.ru_utime + usage.ru_stime


def write_study(
    work: Path, name: str, common: dict[str, Any], tasks: tuple[str, ...], rates: tuple[float, ...], plan: Plan
) -> Path:
    """Write demo/table3 with a clinical adapter that is there, some of its grid, and keys of all cells."""
    import yaml

    from clinstack.recipe import read_yaml, recipe_file

    values: dict[str, Any] = read_yaml(recipe_file(Path("demo/table3")))
    values.update(run=str(work / name), notes=str(work / "data"), tasks=list(tasks))
    values["common"] = {**values.get("common", {}), **common}
    values["bases"][0]["clinical"] = str(work / "pretrain")
    values["search"]["space"]["training.learning_rate"]["choices"] = list(rates)
    values["search"]["trials"] = len(rates)
    values["specs"] = [values["specs"][place] for place in plan.specs]
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    return path


def measure_study(work: Path, plan: Plan) -> tuple[list[str], dict[str, float]]:
    """Return the table's lines and the ratios."""
    clinstack = [sys.executable, "-m", "clinstack"]
    cohort, data = str(work / "cohort"), str(work / "data")
    cpu_of([*clinstack, "prepare", "cohort", "--patients", str(plan.patients), "--seed", "7", "--out", cohort], work)
    cpu_of([*clinstack, "prepare", "mimic3", "--source", cohort, "--out", data, "--minimum-count", "10"], work)
    fewer = [] if plan.pretrain_steps is None else [f"training.max_steps={plan.pretrain_steps}"]
    cpu_of([*clinstack, "pretrain", "demo/pretrain", f"run={work / 'pretrain'}", f"notes={data}", *fewer], work)
    lines = ["| study | way | searches | trials | CPU s | times faster | mean test AUROC at the first rate |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|")
    found = {}
    whole = {"max_tokens": 512, "keep": "beginning", "suffix": ""}
    variants = [("demo/table3", "study_vs_paper", {}, plan.tasks, plan.rates)]
    if not plan.quick:
        variants.append(("512 tokens", "study_vs_paper_512_tokens", whole, plan.long_tasks, plan.rates[1:2]))
    for title, name, common, tasks, rates in variants:
        path = write_study(work, name, common, tasks, rates, plan)
        own = cpu_of([*clinstack, "study", str(path)], work)
        note(f"{name}: clinstack took {own:.0f} CPU s")
        told = published_study(work / name)
        trials = [trial for part in told for trial in part["trials"]]
        start = statistics.mean(part["start"] for part in told)
        theirs = sum(start + trial["cpu"] * trial["of"] for trial in trials)
        ours, published = mean_auroc(trials)
        count = f"{len(trials)} | {sum(trial['of'] for trial in trials)}"
        lines.append(f"| {title} | published loop | {count} | {theirs:,.0f} | 1.0 | {published:.3f} |")
        lines.append(
            f"| {title} | clinstack, report among it | {count} | {own:,.0f} | {theirs / own:.1f} | {ours:.3f} |"
        )
        found[name] = round(theirs / own, 2)
    return lines, found


def published_study(study: Path) -> list[dict[str, Any]]:
    """Let two processes do the first trial of each search in the published loop, and return what they tell."""
    script = [sys.executable, str(HERE / "downstream_study.py"), str(study)]
    environment = quiet_environment(1)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [subprocess.Popen([*script, str(part), "2", "1"], env=environment, **pipes) for part in range(2)]
    told = []
    for process in running:
        output, errors = process.communicate()
        if process.returncode:
            sys.exit(f"the published study ended with {process.returncode}: {errors.decode()[-800:]}")
        told.append(json.loads(output))
    return told


def mean_auroc(trials: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the mean test AUROC of clinstack's Runs and of the published loop's, where both have one."""
    from clinstack.files import read_json
    from clinstack.recipe import read_yaml

    pairs = []
    for trial in trials:
        for recipe in sorted((Path(trial["search"]) / "trials").glob("*/recipe.yaml")):
            if read_yaml(recipe)["training"]["learning_rate"] == trial["rate"]:
                test = read_json(recipe.parent / "metrics.json")["test"]
                value = test[test["primary"]]["value"]
                if value is not None and trial["auroc"] == trial["auroc"]:
                    pairs.append((value, trial["auroc"]))
    ours, theirs = zip(*pairs, strict=True)
    return statistics.mean(ours), statistics.mean(theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under three minutes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these (default: all)")
    parser.add_argument("--work", type=Path, help="an empty folder for everything, kept (default: a temporary one)")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else Plan()
    load = os.getloadavg()[0]
    found: dict[str, float] = {}
    sections: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        if {"training", "frozen"} & {*arguments.parts}:
            make(work, plan)
        for name, measure in (("training", measure_training), ("frozen", measure_frozen), ("study", measure_study)):
            if name in arguments.parts:
                lines, ratios = measure(work, plan)
                sections += ["", f"## {name}", "", *lines]
                found |= ratios
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, one thread a process; load before {load:.1f}, after "
        f"{os.getloadavg()[0]:.1f}. {plan.layers} layers. Training: medians of {plan.turns} turns of {plan.steps} "
        f"steps of {BATCH} notes, nothing compiled but where it says so. Frozen: "
        f"{' / '.join(map(str, plan.frozen_notes))} notes, batches of {FROZEN_BATCH}; the slow ways timed on "
        f"{plan.slow_notes} notes in each of {plan.frozen_turns} turns and multiplied. Study: {plan.patients} "
        f"patients, {len(plan.tasks)} tasks, {len(plan.rates)} learning rates."
    )
    print("\n".join(sections))
    print(json.dumps({"benchmark": "downstream", "ratios": found}))


if __name__ == "__main__":
    main()
