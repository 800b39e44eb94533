"""A server under twice the load that it can take: what `benchmarks/serving_load.py` holds it to, for a few seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "serving_load.py"


@pytest.mark.slow
def test_twice_the_capacity_and_sigterm_lose_no_request() -> None:
    pytest.importorskip("uvicorn")
    command = [sys.executable, str(SCRIPT), "--quick", "--seconds", "8", "--clients", "16"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.stdout, ran.stderr[-2000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    # It fails by itself where a request was lost, answered twice, by another's scores, by a 5xx, or late.
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert told["failures"] == 0
    ratios = told["ratios"]
    assert ratios["server_errors"] == 0
    assert told["answered"] > 20
    assert told["refused"] > 0
    assert 0 < ratios["p99_of_timeout"] <= 1
    assert ratios["peak_memory"] <= 1.25
