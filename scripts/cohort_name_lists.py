"""Write word lists for `clinstack scan --engine lists:FOLDER` that know most, not all, of the synthetic cohort's names.

A hospital's lists never hold every name either: one in ten of the cohort's names and towns is left out, drawn by a
seed, and all of its hospitals. ``safe.txt`` has names that are ordinary words of notes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from clinstack.notes.cohort.identifier_pools import CITIES, FIRST_NAMES, LAST_NAMES

SAFE = ("White", "Brown", "Green", "Gray", "Young", "Long", "Price", "Bell", "Hall", "Wood", "Grant", "May", "April")
SAFE += ("June", "Joy", "Hope", "Faith", "Grace", "Rose", "Mark", "Rusty", "Will", "Cook", "Baker")


def main() -> None:
    """Write the lists."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--left-out", type=float, default=0.1, help="share of names and towns that no list has")
    arguments = parser.parse_args()
    generator = np.random.default_rng(arguments.seed)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    names = sorted({*FIRST_NAMES["F"], *FIRST_NAMES["M"], *LAST_NAMES})
    for kind, words in (("name", names), ("address", sorted(CITIES))):
        kept = [word for word in words if generator.random() >= arguments.left_out]
        (arguments.folder / f"{kind}.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    (arguments.folder / "safe.txt").write_text("\n".join(SAFE) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
