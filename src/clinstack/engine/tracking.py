"""Curves of a training: TensorBoard's files in the Run, or Weights & Biases or MLflow by name, through accelerate.

Numbers only, never the text of a note. Nothing goes over the network unless the user has told the tracker to: W&B runs
offline and MLflow writes into the Run until their own environment variables say otherwise.

Points are handed on when a checkpoint is written, so a killed run draws the steps that it repeats once: what was drawn
after the last checkpoint is asked for and not drawn again, and TensorBoard's reader drops it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from clinstack.engine.distributed import world
from clinstack.errors import InputError
from clinstack.offline import ALLOWED, is_allowed, is_offline
from clinstack.run import Run

PROJECT = "clinstack"
FOLDER = "tensorboard"
_WANDB_AT_HOME = frozenset({"offline", "dryrun", "disabled"})


class Tracker:
    """Keeps points until they may be drawn. Without a tracker of accelerate's it draws nothing."""

    def __init__(self, inner: Any = None, drawn_to: int = 0) -> None:
        self._inner = inner
        self._drawn_to = drawn_to
        self._points: list[tuple[int, dict[str, float]]] = []

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Remember the figures of a step."""
        if self._inner is not None and step > self._drawn_to:
            self._points.append((step, dict(figures)))

    def flush(self) -> None:
        """Draw what was remembered."""
        merged: dict[int, dict[str, float]] = {}
        for step, figures in self._points:
            merged.setdefault(step, {}).update(figures)
        writer = getattr(self._inner, "writer", None)  # TensorBoard's
        for step, figures in merged.items():
            if writer is None:
                self._inner.log(figures, step=step)
            else:  # accelerate would go to the disk for every step
                for name, value in figures.items():
                    writer.add_scalar(name, value, global_step=step)
        self._points = []
        if writer is not None:
            writer.flush()


@contextmanager
def tracked(run: Run, name: str, title: str, step: int) -> Iterator[Tracker]:
    """Yield the tracker of a training that goes on after a step; nothing is drawn outside the main process.

    Raises
    ------
    InputError
        If the tracker's package is not installed, or it sends to another machine and clinstack is offline.
    """
    if name == "none" or not world().is_main:
        yield Tracker()
        return
    refuse_remote_tracking(name)
    if importlib.util.find_spec(name) is None:
        raise InputError(f"training.tracking: {name} is not installed; pip install {name}, or choose tensorboard.")
    from accelerate import PartialState

    PartialState()  # accelerate's trackers and their log ask for it
    inner, drawn_to = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}[name](run, title, step)
    tracker = Tracker(inner, drawn_to)
    try:
        yield tracker
    finally:
        inner.finish()


def is_remote_tracking(name: str) -> bool:
    """Whether the environment tells a tracker to send to a machine that offline mode does not let it reach."""
    if name == "wandb":
        mode = os.environ.get("WANDB_MODE")
        online = mode is None and any(os.environ.get(f"WANDB_{key}") for key in ("API_KEY", "BASE_URL"))
        if not online and (mode is None or mode in _WANDB_AT_HOME):
            return False
        return not is_allowed(urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname or "api.wandb.ai")
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    return address.startswith("databricks") or not is_allowed(urlsplit(address).hostname or "")


def refuse_remote_tracking(name: str) -> None:
    """Refuse a tracker that the environment tells to send to another machine while clinstack is offline.

    Raises
    ------
    InputError
        Naming the variable that says so.
    """
    if not is_offline() or name == "tensorboard" or not is_remote_tracking(name):
        return
    what, remedy = {
        "wandb": ("WANDB_MODE and WANDB_BASE_URL", "Set WANDB_MODE=offline"),
        "mlflow": ("MLFLOW_TRACKING_URI", "Unset it, and MLflow writes into the Run"),
    }[name]
    raise InputError(
        f"training.tracking: {name} would send to another machine ({what}), and clinstack is offline. {remedy}; a host "
        f"of the closed network itself is named in {ALLOWED}."
    )


def _tensorboard(run: Run, title: str, step: int) -> tuple[Any, int]:
    from accelerate.tracking import TensorBoardTracker

    # The reader drops points from purge_step on that older files hold.
    purge = {"purge_step": step + 1} if step else {}
    tracker = TensorBoardTracker("", logging_dir=run.folder / FOLDER, **purge)
    tracker.start()
    return tracker, 0


def _wandb(run: Run, title: str, step: int) -> tuple[Any, int]:
    import wandb
    from accelerate.tracking import WandBTracker

    configured = any(os.environ.get(f"WANDB_{name}") for name in ("MODE", "API_KEY", "BASE_URL"))
    settings = wandb.Settings(
        # Neither the console's lines, nor code, nor the machine's state.
        console="off",
        disable_git=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        silent=True,
    )
    tracker = WandBTracker(
        PROJECT,
        name=title,
        id=identity(run),
        resume="allow",
        dir=str(run.folder),
        mode=None if configured else "offline",
        settings=settings,
    )
    tracker.start()
    return tracker, 0  # W&B itself ignores a step that it has


def _mlflow(run: Run, title: str, step: int) -> tuple[Any, int]:
    import mlflow
    from accelerate.tracking import MLflowTracker

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(f"sqlite:///{(run.folder / 'mlflow.db').resolve()}")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(PROJECT)
    known = []
    if experiment is not None:
        known = client.search_runs([experiment.experiment_id], f"tags.clinstack_run = '{identity(run)}'")
    tracker = MLflowTracker(
        PROJECT,
        run_id=known[0].info.run_id if known else None,
        run_name=title,
        tags={"clinstack_run": identity(run)},
    )
    tracker.start()
    drawn = client.get_metric_history(known[0].info.run_id, "loss") if known else []
    return tracker, max((point.step for point in drawn), default=0)


def identity(run: Run) -> str:
    """Return a name for this Run that is the same at each start and another after --fresh."""
    return hashlib.sha256(f"{run.folder.resolve()} {run.record['created']}".encode()).hexdigest()[:16]
