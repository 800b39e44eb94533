"""Processes that take turns, so that all ways that are compared meet the machine in the same state."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def quiet_environment(threads: int, device: str = "cpu") -> dict[str, str]:
    """Return the environment of a way's process: nothing here needs a network or a telemetry server."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment | {"PYTHONWARNINGS": "ignore"}


class Process:
    """A process that answers each line it reads with one line of JSON, and waits in between."""

    def __init__(self, name: str, command: Sequence[str], work: Path, environment: dict[str, str]) -> None:
        self.name = name
        self._log = (work / f"{name}.log").open("wb+")
        self._process = subprocess.Popen(
            list(command),
            cwd=work,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, question: str) -> dict[str, Any]:
        """Write a line and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return its next answer; end the script with the last lines of its log where it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            last = self._log.read().decode("utf-8", "replace").strip().splitlines()[-6:]
            sys.exit(f"{self.name} ended with {self._process.returncode}: " + " / ".join(last))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def in_turn(names: Sequence[str], turn: int) -> list[str]:
    """Return the order in which ways take a turn; it goes round."""
    at = turn % len(names)
    return [*names[at:], *names[:at]]


def paired(left: Sequence[Any], right: Sequence[Any], figure: str) -> float:
    """Return the median of the ratios within turns of a figure, an attribute of each turn."""
    return float(
        statistics.median(getattr(one, figure) / getattr(other, figure) for one, other in zip(left, right, strict=True))
    )
