"""Running a command without any route to anywhere, and seeing whom it tries to reach all the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

CLINSTACK = [sys.executable, "-m", "clinstack"]
_CALLS = "connect,sendto,sendmsg,sendmmsg"
_ADDRESS = re.compile(r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]+)"')


def without_a_network() -> list[str]:
    """Return how a command is started in a network namespace of its own; skip where the system does not let us."""
    command = ["unshare", "--map-root-user", "--net"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("unshare cannot make a network namespace here")
    return command


def traced(
    command: Sequence[str | Path], tmp_path: Path, environment: Mapping[str, str] | None = None, timeout: int = 300
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a command and all that it starts without a network, and return what it did and whom it tried to reach.

    Parameters
    ----------
    environment : mapping, optional
        Added to that of this process, without what tells libraries that they are offline.
    """
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    trace = tmp_path / "calls.strace"
    strace = ["strace", "--follow-forks", "--seccomp-bpf", "-qq", "-e", "signal=none", "-e", f"trace={_CALLS}"]
    done = subprocess.run(
        [*without_a_network(), *strace, "-o", str(trace), *map(str, command)],
        env={**inherited, "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    if "ptrace" in done.stderr and not trace.exists():
        pytest.skip("strace may not trace here")
    return done, [line for line in trace.read_text().splitlines() if _leaves(line)]


def _leaves(line: str) -> bool:
    """Whether a system call is for another machine; the resolver of names may listen on this one, and asks others."""
    found = _ADDRESS.search(line)
    if found is None:
        return "AF_INET" in line
    port, host = found.groups()
    is_here = host.startswith("127.") or host in {"::1", "0.0.0.0", "::"}
    return not is_here or port == "53"
