"""Print a requirements file with the hash of every wheel in a folder, for ``pip install --require-hashes``.

The folder is what ``pip download`` filled for a machine without a network; the file travels by another way than the
wheels, so that a wheel that was changed on the way is refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from clinstack.files import sha256_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path, help="folder of wheels")
    print(requirements(parser.parse_args().wheels), end="")


def requirements(wheels: Path) -> str:
    """Return a line for each package: its version, and the hash of each of its wheels."""
    hashes: dict[str, list[str]] = {}
    for path in sorted(wheels.iterdir()):
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            sys.exit(f"{path} is no wheel; fetch wheels alone (pip download --only-binary :all:).")
        hashes.setdefault(f"{name}=={version}", []).append(sha256_file(path))
    if not hashes:
        sys.exit(f"{wheels} has no wheels.")
    return "".join(
        f"{pin} {' '.join(f'--hash={digest}' for digest in digests)}\n" for pin, digests in sorted(hashes.items())
    )


if __name__ == "__main__":
    main()
