"""Ask PyPI's advisory database about known vulnerabilities of the pinned versions, by ``pip-audit``.

It sends the names and versions in constraints.txt to pypi.org, and nothing else. Exit codes: 0 nothing is known, 1 a
vulnerability is, 2 nobody could be asked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from clinstack.offline import VARIABLE, is_offline

ROOT = Path(__file__).resolve().parents[1]
REMEDY = "Run it where there is a network, on the same constraints.txt, and carry the report in."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pins", type=Path, default=ROOT / "constraints.txt", help="pinned versions")
    pins = parser.parse_args().pins
    if is_offline():
        stop(f"pip-audit asks pypi.org, and clinstack is offline ({VARIABLE}). {REMEDY}")
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(pins), "--no-deps", "--disable-pip"]
    command += ["--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        stop(f"pip-audit could not ask pypi.org ({last[:200]}). {REMEDY}")
    for one in found:
        for vulnerability in one.get("vulns", []):
            print(line(one, vulnerability))
        if "skip_reason" in one:
            print(f"{one['name']}: not looked at ({one['skip_reason']})")
    known = sum(len(one.get("vulns", [])) for one in found)
    print(f"{len(found)} packages, {known} known vulnerabilities")
    sys.exit(1 if known else 0)


def line(package: dict[str, Any], vulnerability: dict[str, Any]) -> str:
    fixed = ", ".join(vulnerability.get("fix_versions", [])) or "no version yet"
    return f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}"


def stop(message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
