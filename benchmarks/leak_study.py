"""How much clinical adapters leak by how they were trained: one epoch, thirty, and thirty with differential privacy.

    python benchmarks/leak_study.py --work leaks      # about 25 minutes on two quiet cores; starts again where it was
    python benchmarks/leak_study.py --quick           # tries the script: a minute, figures that mean nothing

An invented hospital; three LoRA adapters on the embedded base, which differ in nothing but what their names say, with
the same canaries; each audited by `clinstack audit` as it comes. The work folder then has ``leak-study.png``,
``leak-study.md`` and ``leak-study.json``, with every figure that the audits measured, whatever it shows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turns import quiet_environment

from clinstack.files import read_json, replacing_file, write_json, write_text
from clinstack.report.audit_figures import membership_name

ARMS: dict[str, dict[str, Any]] = {
    "1 epoch": {"epochs": 1},
    "30 epochs": {"epochs": 30},
    "30 epochs, private": {"epochs": 30, "epsilon": 8.0},
}
COLOURS = dict(zip(ARMS, ("#009e73", "#d55e00", "#0072b2"), strict=True))
MARKERS = dict(zip(ARMS, ("o", "s", "D"), strict=True))
NOTE_TYPES = ("Radiology", "Nursing", "Nursing/other")
"""The short ones: a note is read thirty times in the time of a summary."""
CAVEAT = "synthetic: invented patients, toy base model"
STEM = "leak-study"


@dataclass(frozen=True)
class Size:
    """How large a study is.

    Parameters
    ----------
    patients : int
        Of the invented hospital; 70 % are trained on.
    canaries : int
    patients_per_step : int
        Of a private step, on average.
    epochs : int or None
        Instead of an arm's own thirty; None leaves them.
    audit : dict
        Further keys of the audits' recipe.
    """

    patients: int
    canaries: int
    patients_per_step: int
    epochs: int | None
    audit: dict[str, Any]


FULL = Size(
    patients=150,
    canaries=24,
    patients_per_step=16,
    epochs=None,
    audit={"max_notes": None, "extraction": {"prefix_tokens": 32, "continuation_tokens": 20}},
)
QUICK = Size(
    patients=110,
    canaries=12,
    patients_per_step=16,
    epochs=2,
    audit={
        "max_notes": 60,
        "neighbours": 1,
        "extraction": {"prefix_tokens": 32, "continuation_tokens": 20, "prompts": 10, "generations": 4},
        "evaluation": {"resamples": 100},
    },
)


def prepare(work: Path, size: Size) -> None:
    """Invent the hospital and prepare its notes, once."""
    from clinstack.engine.progress import named_bars
    from clinstack.notes.cohort import write_cohort
    from clinstack.notes.mimic3.prepare import prepare_mimic3

    if (work / "data" / "prepare.json").is_file():
        return
    with named_bars() as bar:
        write_cohort(work / "cohort", size.patients, 3, bar)
        prepare_mimic3(work / "cohort", work / "data", seed=3, progress=bar)


def training_recipe(work: Path, arm: str, size: Size) -> dict[str, Any]:
    """Return the values of an arm's training recipe."""
    settings = ARMS[arm]
    epochs = settings["epochs"] if settings["epochs"] == 1 or size.epochs is None else size.epochs
    values: dict[str, Any] = {
        "stage": "pretrain",
        "run": str(work / folder_of(arm)),
        "notes": str(work / "data"),
        "note_types": NOTE_TYPES,
        "context": 256,
        "adapters": [{"name": "clinical", "method": "lora", "rank": 32, "alpha": 64, "target_modules": "all-linear"}],
        "canaries": {"count": size.canaries, "repetitions": [1, 4, 16]},
        "training": {
            "epochs": epochs,
            "batch_size": 4,
            "learning_rate": 0.001,
            "weight_decay": 0.0,
            # Validated once, at the end: what is audited are the last weights, not the best ones.
            "validate_every": 1_000_000,
            "tracking": "none",
        },
    }
    if "epsilon" in settings:
        values["privacy"] = {"epsilon": settings["epsilon"], "patients_per_step": size.patients_per_step}
    return values


def folder_of(arm: str) -> str:
    """Return the name of an arm's Run."""
    return arm.replace(",", "").replace(" ", "-")


def do_arm(work: Path, arm: str, size: Size) -> None:
    """Train an arm and audit it, or what is left of both."""
    from clinstack.recipe import parse_recipe
    from clinstack.stages.audit import audit
    from clinstack.stages.pretrain import pretrain

    recipe: Any = parse_recipe(training_recipe(work, arm, size), arm)
    pretrain(recipe)
    values = {"stage": "audit", "stack": recipe.run, **size.audit}
    audit(parse_recipe(values, arm))  # type: ignore[arg-type]


def do_all(work: Path, options: Sequence[str], workers: int) -> None:
    """Do every arm in a process of its own, at most so many at once; the longest first."""

    def one(arm: str) -> None:
        print(f"{arm}: begun", flush=True)
        log = work / f"{folder_of(arm)}.log"
        command = [sys.executable, __file__, "--work", str(work), "--arm", arm, *options]
        with log.open("ab") as file:
            code = subprocess.run(command, stdout=file, stderr=file, env=quiet_environment(1), check=False).returncode
        if code:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:]
            raise RuntimeError(f"{arm} ended with {code}: " + " / ".join(last))
        print(f"{arm}: done", flush=True)

    with ThreadPoolExecutor(workers) as pool:
        longest_first = sorted(ARMS, key=lambda arm: ("epsilon" not in ARMS[arm], -ARMS[arm]["epochs"]))
        for done in [pool.submit(one, arm) for arm in longest_first]:
            done.result()


# ---------------------------------------------------------------------- what came out


def figures_of(work: Path) -> dict[str, dict[str, Any]]:
    """Return what the audits measured, by arm."""
    result = {}
    for arm in ARMS:
        run = work / folder_of(arm)
        report, record, metrics = (
            read_json(file) for file in (run / "audit" / "audit.json", run / "run.json", run / "metrics.json")
        )
        sections = report["sections"]
        length = str(sections["extraction"]["continuation_tokens"])
        extraction = sections["extraction"]["by_length"][length]
        result[arm] = {
            "verdict": report["verdict"],
            "epsilon": (record.get("privacy") or {}).get("epsilon"),
            # A private training measures nothing of its training notes: that would tell something without noise.
            "perplexity": {
                split: metrics[split]["adapted"]["perplexity"] if split in metrics else {"value": None}
                for split in ("train", "test")
            },
            "exposure": exposures_of(sections["canaries"]),
            "membership": {name: of["auroc"] for name, of in sections["membership"]["attacks"].items()},
            "split_check": sections["membership"]["split_check"]["base_alone"],
            "sides": {side: sections["membership"][side] for side in ("members", "non_members")},
            "own_text": extraction["in_no_other_patient"],
            "verbatim": extraction["verbatim"],
            "seconds": record["seconds"],
            "audit_seconds": read_json(run / "audit" / "run.json")["seconds"],
        }
    return result


def exposures_of(section: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return mean exposure and interval by repetition count; 0 are the controls, never planted."""
    found = {of["repetitions"]: of["exposure"] for of in section["by_repetition"]}
    return dict(sorted(({0: section["of_controls"]["exposure"]} | found).items()))


def shown(figure: dict[str, Any], digits: int = 2) -> str:
    """Return a figure with its interval."""
    if figure["value"] is None:
        return "–"
    text = f"{figure['value']:.{digits}f}"
    ends = figure["interval"]
    return text if ends is None else f"{text} ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})"


def often(times: int) -> str:
    """Return how often in words."""
    return {0: "never", 1: "once"}.get(times, f"{times} times")


def table_of(figures: dict[str, dict[str, Any]]) -> str:
    """Return the figures as Markdown, a column for each arm."""
    first = next(iter(figures.values()))
    rows: list[list[str]] = [["", *figures], ["---", *["--:"] * len(figures)]]
    for times in first["exposure"]:
        name = f"exposure, planted {often(times)}"
        rows.append([f"{name} (bits)", *(shown(of["exposure"][times], 1) for of in figures.values())])
    for attack in first["membership"]:
        name = f"membership AUROC, {membership_name(attack)}"
        rows.append([name, *(shown(of["membership"][attack]) for of in figures.values())])
    rows.append(
        ["own text extracted: members − others", *(shown(of["own_text"]["excess"], 3) for of in figures.values())]
    )
    for split, name in (("train", "perplexity, training notes"), ("test", "perplexity, held-out notes")):
        rows.append([name, *(shown(of["perplexity"][split]) for of in figures.values())])
    rows.append(["epsilon", *("–" if of["epsilon"] is None else f"{of['epsilon']:.2f}" for of in figures.values())])
    rows.append(["verdict", *(of["verdict"] for of in figures.values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def draw(figures: dict[str, dict[str, Any]]) -> Any:
    """Draw exposure by repetition, and the AUROC of each membership attack, both with 95 % intervals."""
    from clinstack.privacy.exposure import NULL
    from clinstack.report.figures.canvas import FAINT, canvas, finish

    with canvas(5.6, panels=(1, 1)) as (figure, (upper, lower)):
        counts = list(next(iter(figures.values()))["exposure"])
        attacks = list(next(iter(figures.values()))["membership"])
        for number, (arm, of) in enumerate(figures.items()):
            shift = 0.16 * (number - (len(figures) - 1) / 2)
            style = {"color": COLOURS[arm], "marker": MARKERS[arm], "markersize": 4.5, "linewidth": 1.2}
            known = [of["exposure"][times] for times in counts]
            places = [place + shift for place in range(len(counts))]
            upper.plot(places, [item["value"] for item in known], label=arm, **style)
            for place, item in zip(places, known, strict=True):
                upper.plot([place, place], item["interval"], color=COLOURS[arm], linewidth=1.2)
            for place, attack in enumerate(attacks):
                item = of["membership"][attack]
                lower.plot([place + shift], [item["value"]], **style)
                lower.plot([place + shift] * 2, item["interval"], color=COLOURS[arm], linewidth=1.2)
        upper.axhline(NULL, color=FAINT, linewidth=0.8, linestyle=":")
        upper.set_xticks(range(len(counts)), ["none" if times == 0 else str(times) for times in counts])
        upper.set(title="Canaries", xlabel="Notes that hold the canary", ylabel="Exposure (bits)")
        lower.axhline(0.5, color=FAINT, linewidth=0.8, linestyle=":")
        lower.set_xticks(range(len(attacks)), [membership_name(attack) for attack in attacks], fontsize=7.5)
        lower.set(title="Membership", xlabel="Attack", ylabel="AUROC")
        lower.set_ylim(0.3, 1.02)
        handles, labels = upper.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=7.5)
        described = "; ".join(
            f"{arm}: exposure {', '.join(shown(of['exposure'][times], 1) for times in counts)}"
            for arm, of in figures.items()
        )
        caption = (
            "Exposure of canaries by the number of notes that hold each, and AUROC of membership attacks; lines are "
            "95 % intervals, dotted is what nothing remembered gives."
        )
        return finish(figure, STEM, f"Leaks of three adapters. {described}.", caption, CAVEAT)


def report(work: Path) -> dict[str, Any]:
    """Write the table and the figure, and return all figures."""
    figures = figures_of(work)
    write_text(work / f"{STEM}.md", table_of(figures) + "\n")
    drawing = draw(figures)
    with replacing_file(work / f"{STEM}.png") as temporary:
        temporary.write_bytes(drawing.png)
    write_text(work / f"{STEM}.svg", drawing.file)
    write_json(work / f"{STEM}.json", figures)
    print(table_of(figures))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of everything; a temporary one when not given")
    parser.add_argument("--quick", action="store_true", help="tries the script: its figures mean nothing")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--arm", choices=list(ARMS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    if arguments.arm:
        do_arm(arguments.work, arguments.arm, size)
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        prepare(work, size)
        do_all(work, ["--quick"] if arguments.quick else [], arguments.workers)
        figures = report(work)
    leaks = {arm: {key: of[key] for key in ("verdict", "membership", "exposure")} for arm, of in figures.items()}
    print(json.dumps({"benchmark": "leak_study", "arms": leaks}))


if __name__ == "__main__":
    main()
