"""The command line: one short function for each verb. It parses and calls; torch is imported by the stages only."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from clinstack import (
    __version__,
    cli_export,
    cli_instructions,  # noqa: F401  # its verbs join prepare_app
    cli_preferences,  # its verb joins prepare_app
    cli_prepared,  # noqa: F401  # its verbs join prepare_app
)
from clinstack.cli_audit import audit_command
from clinstack.cli_base import base_app
from clinstack.cli_cards import card_command
from clinstack.cli_chat import chat_command
from clinstack.cli_doctor import doctor_command
from clinstack.cli_figures import prediction_lines, privacy_figures, run_figures
from clinstack.cli_prepare import prepare_app
from clinstack.cli_scan import scan_command
from clinstack.cli_serve import serve_command
from clinstack.cli_synthesize import synthesize_app
from clinstack.errors import ClinstackError, InputError
from clinstack.offline import allowed_hosts, go_offline, is_offline
from clinstack.recipe import PRESETS, StageRecipe, apply_overrides, load_recipe, parse_recipe

if TYPE_CHECKING:
    from clinstack.run import Run
    from clinstack.study.reporting import Written


class InterruptError(ClinstackError):
    """Control-C."""

    exit_code = 130


class _Group(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # --offline holds for all verbs, so it may stand behind one as well as before it.
        own = args[: args.index("--")] if "--" in args else args
        if "--offline" in own:
            args = ["--offline", *(word for word in own if word != "--offline"), *args[len(own) :]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # Here, because Typer would turn it into the word "Aborted".
            raise InterruptError("Interrupted. The same command goes on from the last checkpoint.") from None


app = typer.Typer(
    cls=_Group,
    help="Adapter stacks for clinical language models: prepare, train, measure, report, export, serve.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def everywhere(
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Reach no other machine; also CLINSTACK_OFFLINE=1. Goes behind a verb too."),
    ] = False,
) -> None:
    """Adapter stacks for clinical language models: prepare, train, measure, report, export, serve."""
    if offline:
        go_offline()
    if is_offline():
        allowed_hosts()  # what is no host is said now, not when something connects


presets_app = typer.Typer(help="Recipes that come with the package.", no_args_is_help=True)
app.add_typer(prepare_app, name="prepare")
app.add_typer(synthesize_app, name="synthesize")
app.add_typer(presets_app, name="presets")
app.add_typer(base_app, name="base")
console = Console()
_errors = Console(stderr=True)

Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="A recipe or preset, and overrides.")
]
Json = Annotated[bool, typer.Option("--json", help="End with one machine-readable line.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin anew; what the Run directory holds is deleted.")]


def read_recipe(arguments: list[str] | None, stage: str | None) -> StageRecipe:
    """Read ``[RECIPE] [KEY=VALUE]...``; without a recipe the overrides alone are one."""
    words = arguments or []
    files = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    if len(files) > 1:
        raise InputError(f"{files[1]!r}: one recipe only; an override has the form key.sub=value.")
    if files:
        return load_recipe(Path(files[0]), overrides, stage)
    if not overrides:
        raise InputError("Name a recipe, or give its keys as key=value. `clinstack presets ls` lists those that ship.")
    return parse_recipe(apply_overrides({}, overrides), "command line", stage)


def show_run(run: Run, as_json: bool) -> None:
    """Say what a stage wrote; of several processes that trained together, in the one that wrote it."""
    if not run.writes:
        return
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps({"run": str(run.folder), "status": run.record["status"], "metrics": metrics}))
        return
    if run.record["synthetic"]:
        console.print("[yellow]Synthetic data: these figures say nothing about medicine.")
    for name, value in (run_figures(metrics) | privacy_figures(run.record)).items():
        console.print(f"  {name}: {value}")
    console.print(f"[bold]{escape(str(run.folder))}[/] is done.")


@app.command()
def pretrain(arguments: Arguments = None, fresh: Fresh = False, as_json: Json = False) -> None:
    """Continue the pretraining of a base model on notes, with an adapter."""
    recipe = read_recipe(arguments, "pretrain")
    from clinstack.stages.pretrain import pretrain as stage

    show_run(stage(recipe, fresh=fresh), as_json)  # type: ignore[arg-type]  # read_recipe checked the stage


@app.command()
def finetune(arguments: Arguments = None, fresh: Fresh = False, as_json: Json = False) -> None:
    """Train a classifier head, and a task adapter where the stack has one."""
    recipe = read_recipe(arguments, "finetune")
    from clinstack.stages.finetune import finetune as stage

    show_run(stage(recipe, fresh=fresh), as_json)  # type: ignore[arg-type]  # read_recipe checked the stage


@app.command()
def align(arguments: Arguments = None, fresh: Fresh = False, as_json: Json = False) -> None:
    """Teach a stack to prefer better answers, by pairs of a preferred and a rejected one (DPO)."""
    recipe = read_recipe(arguments, "align")
    from clinstack.stages.align import align as stage

    run = stage(recipe, fresh=fresh)  # type: ignore[arg-type]  # read_recipe checked the stage
    if not as_json:
        cli_preferences.show_alignment(run)
    show_run(run, as_json)


@app.command()
def instruct(arguments: Arguments = None, fresh: Fresh = False, as_json: Json = False) -> None:
    """Teach a language model to answer questions about notes; only answers are trained."""
    recipe = read_recipe(arguments, "instruct")
    from clinstack.stages.instruct import instruct as stage

    show_run(stage(recipe, fresh=fresh), as_json)  # type: ignore[arg-type]  # read_recipe checked the stage


@app.command()
def study(arguments: Arguments = None, fresh: Fresh = False, as_json: Json = False) -> None:
    """Run a grid of recipes, ending in one of the paper's tables beside the printed one."""
    recipe = read_recipe(arguments, "study")
    from clinstack.study.study import study as run_study

    paths = run_study(recipe, fresh=fresh)  # type: ignore[arg-type]  # read_recipe checked the stage
    if as_json:
        print(json.dumps({"html": str(paths.html), "markdown": str(paths.markdown), "json": str(paths.json)}))
        return
    paths.show(console)
    console.print(f"Table: [bold]{escape(str(paths.html))}[/]")


@app.command()
def evaluate(arguments: Arguments = None, fresh: Fresh = False, as_json: Json = False) -> None:
    """Measure a saved stack on Notes."""
    recipe = read_recipe(arguments, "evaluate")
    from clinstack.stages.evaluate import evaluate as stage

    show_run(stage(recipe, fresh=fresh), as_json)  # type: ignore[arg-type]  # read_recipe checked the stage


@app.command()
def judge(
    arguments: Arguments = None,
    copy_rubric: Annotated[
        Path | None, typer.Option(help="Only write the shipped rubric to this file, to change it.")
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Notes and answers may be sent to a host beyond this network.")
    ] = False,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Have a language model grade the answers of several Runs, blind and in several orders."""
    if copy_rubric is not None:
        from clinstack.judge.rubric import copy_shipped

        copy_shipped(copy_rubric)
        console.print(f"{escape(str(copy_rubric))} is yours to change; name it as rubric=.")
        return
    recipe = read_recipe([*(arguments or []), *["endpoint.allow_remote=true"] * allow_remote], "judge")
    from clinstack.report.judged import estimate_sentence
    from clinstack.stages.judge import judge as stage

    def announce(estimate: dict[str, Any], warning: str | None) -> None:
        if warning:
            _errors.print(f"[bold red]{escape(warning)}", soft_wrap=True)
        _errors.print(estimate_sentence(estimate), highlight=False, soft_wrap=True)

    run = stage(recipe, fresh=fresh, announce=announce)  # type: ignore[arg-type]  # read_recipe checked the stage
    show_run(run, as_json)


@app.command()
def generate(arguments: Arguments = None, fresh: Fresh = False, as_json: Json = False) -> None:
    """Answer the questions of instructions with a saved stack or an untouched base, and measure the answers."""
    recipe = read_recipe(arguments, "generate")
    from clinstack.stages.generate import generate as stage

    show_run(stage(recipe, fresh=fresh), as_json)  # type: ignore[arg-type]  # read_recipe checked the stage


@app.command()
def predict(arguments: Arguments = None, fresh: Fresh = False, as_json: Json = False) -> None:
    """Score every row of a table with a saved classifier: streamed, resumable, on many devices."""
    recipe = read_recipe(arguments, "predict")
    from clinstack.stages.predict import predict as stage

    run = stage(recipe, fresh=fresh)  # type: ignore[arg-type]  # read_recipe checked the stage
    if run.writes and not as_json:
        for line in prediction_lines(run):
            console.print(f"  {line}", highlight=False)
    show_run(run, as_json)


app.command("audit")(audit_command)
app.command("scan")(scan_command)
app.command("export")(cli_export.export)


@app.command()
def sweep(arguments: Arguments = None, fresh: Fresh = False, as_json: Json = False) -> None:
    """Search for the best values of a recipe on the validation patients."""
    recipe = read_recipe(arguments, "sweep")
    from clinstack.sweep.results import results_table
    from clinstack.sweep.sweep import sweep as stage

    run = stage(recipe, fresh=fresh)  # type: ignore[arg-type]  # read_recipe checked the stage
    if not as_json:
        metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
        console.print(results_table(json.loads((run.folder / "trials.json").read_text(encoding="utf-8")), metrics))
        console.print(f"The best trial's recipe: {escape(str(run.folder / 'best.yaml'))}")
    show_run(run, as_json)


@app.command()
def validate(
    arguments: Arguments = None,
    show: Annotated[int, typer.Option(min=0, help="Print so many examples of instruct; prints text of notes.")] = 0,
) -> None:
    """Check a recipe, its files and its base, and count what it would train, without reading a weight."""
    recipe = read_recipe(arguments, None)
    from clinstack.cli_validate import validate_recipe

    validate_recipe(recipe, console)
    if show:
        from clinstack.cli_show import show_examples

        show_examples(recipe, show, console)


@app.command()
def estimate(
    arguments: Arguments = None,
    device: Annotated[str | None, typer.Option(help="Only this card, such as T4 or 'A100 80GB'.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows of a batch; the recipe's without it.")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of a row; the recipe's without it.")] = None,
    as_json: Json = False,
) -> None:
    """Count trainable parameters and memory by part, and say what fits on which card, before anything is loaded."""
    recipe = read_recipe(arguments, None)
    from clinstack.cli_estimate import estimate_recipe

    estimate_recipe(recipe, console, device=device, batch=batch, length=length, as_json=as_json)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="A folder of Runs, or a study's; several stand side by side.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; into the folder when not given.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="Show so many questions with the answers of all models.")] = 0,
    with_note_text: Annotated[
        bool, typer.Option("--with-note-text", help="Show them also where the patients are real.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Runs to tables and figures: report.html, report.md, report.json, and LaTeX, SVG and PNG files beside them."""
    from clinstack.study.reporting import report_folders

    show_report(report_folders(folders, out, examples=examples, with_note_text=with_note_text), as_json)


def show_report(paths: Written, as_json: bool) -> None:
    """Print a report's tables and say where it is."""
    if as_json:
        print(json.dumps({"html": str(paths.html), "markdown": str(paths.markdown), "json": str(paths.json)}))
        return
    paths.show(console)
    console.print(f"Report: [bold]{escape(str(paths.html))}[/]")


@app.command()
def demo(
    what: Annotated[
        str | None, typer.Argument(help="instruct: instruction tuning, not the two steps.", metavar="[instruct]")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of everything it writes.", show_default="runs/demo or runs/demo-instruct"),
    ] = None,
    patients: Annotated[int, typer.Option(min=100, help="Invented patients.")] = 1300,
    seed: Annotated[int, typer.Option(min=0, help="Of the cohort.")] = 7,
    all_tasks: Annotated[bool, typer.Option("--all-tasks", help="All five outcomes, not two.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core, at most four.")] = None,
    pairs: Annotated[
        int | None, typer.Option(min=100, help="Of instruct: questions with answers.", show_default="6000")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the whole two-step pipeline on an invented hospital, or instruction tuning, ending in a report."""
    if what == "instruct":
        if all_tasks or workers is not None:
            raise InputError("demo instruct: --all-tasks and --workers belong to the demo without instruct.")
        from clinstack.demo_instruct import PAIRS, run_demo_instruct

        folder = root or Path("runs/demo-instruct")
        show_report(run_demo_instruct(folder, patients, seed, PAIRS if pairs is None else pairs), as_json)
        return
    if what is not None:
        raise InputError(f"demo {what}: there is `clinstack demo`, and `clinstack demo instruct`.")
    if pairs is not None:
        raise InputError("demo: --pairs belongs to `clinstack demo instruct`.")
    from clinstack.demo import run_demo

    show_report(run_demo(root or Path("runs/demo"), patients, seed, all_tasks=all_tasks, workers=workers), as_json)


app.command("doctor")(doctor_command)
app.command("serve")(serve_command)
app.command("chat")(chat_command)
app.command("card")(card_command)


@presets_app.command("ls")
def presets_ls() -> None:
    """List the recipes that come with the package, and apart from them the configurations of its launcher."""
    recipes, configurations = Table("recipe", "what it is"), Table("for accelerate launch", "what it is")
    for path in sorted(PRESETS.rglob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        name = path.relative_to(PRESETS).with_suffix("")
        # Not recipes: `accelerate launch --config_file` reads them.
        table = configurations if name.parts[0] in {"accelerate", "deepspeed"} else recipes
        table.add_row(str(name), first)
    console.print(recipes)
    console.print(configurations)


@presets_app.command("show")
def presets_show(name: str) -> None:
    """Print a recipe, or a configuration for accelerate launch."""
    print(_preset(name).read_text(encoding="utf-8"), end="")


@presets_app.command("cp")
def presets_cp(name: str, to: Path) -> None:
    """Copy a recipe, or a configuration for accelerate launch, to a file of yours, to change it."""
    if to.exists():
        raise InputError(f"{to} exists; name another file.")
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_preset(name), to)
    console.print(f"{escape(str(to))} is yours to change.")


def _preset(name: str) -> Path:
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"{name}: no such preset; `clinstack presets ls` lists them.")
    return path


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Run the command line; wrong input is one line and exit code 2, a failure one line and exit code 1."""
    # Builders handle batch after batch for minutes: Arrow's own allocator keeps a fifth more memory than the system's.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        app()
    except InterruptError as error:
        _errors.print(str(error))
        if any(thread.name.startswith("endpoint-") for thread in threading.enumerate()):
            # One that waits for a server, or is in the middle of an import, may hold what the interpreter's own end
            # waits for.
            os._exit(error.exit_code)
        sys.exit(error.exit_code)
    except ClinstackError as error:
        _errors.print(f"[red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        # Such as a full disk. Its message names a file of the user's and nothing out of one.
        what = f"{error.strerror}: {error.filename}" if error.strerror else str(error)
        _errors.print(f"[red]Error:[/] {escape(what)}", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
