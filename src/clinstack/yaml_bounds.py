"""YAML of somebody else's within bounds: a small file whose aliases do not multiply into an endless value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from clinstack.errors import InputError

MOST_BYTES = 16 * 2**20
"""Of a file; a task of all ICD-10 codes has 3 MiB."""
MOST_VALUES = 1_000_000
"""Values of a file with each alias written out. Nine aliases nested nine deep come to a thousand times as many."""
MOST_DEPTH = 100


class BoundedLoader(yaml.SafeLoader):
    """Builds plain values only, and refuses a file that comes to too many of them or is nested too deeply."""

    def get_single_node(self) -> Any:
        """Return the file's one node; measured before anything is built from it."""
        try:
            node = super().get_single_node()
        except RecursionError:
            raise yaml.YAMLError(f"nested more than {MOST_DEPTH} deep") from None
        if node is not None:
            _measure(node, {}, ())
        return node


def read_bounded(path: Path) -> str:
    """Return the text of a file that is no larger than such files are.

    Raises
    ------
    InputError
        If it is larger.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise InputError(f"{path} has {size:,} bytes; at most {MOST_BYTES:,} are read.")
    return path.read_text(encoding="utf-8")


def _measure(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Return how many values a node comes to with its aliases written out."""
    if id(node) in above:
        raise yaml.YAMLError("an alias stands within what it names")
    if len(above) > MOST_DEPTH:
        raise yaml.YAMLError(f"nested more than {MOST_DEPTH} deep")
    if id(node) not in known:
        count, here = 1, (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            count += sum(_measure(item, known, here) for item in node.value)
        elif isinstance(node, yaml.MappingNode):
            count += sum(_measure(item, known, here) for pair in node.value for item in pair)
        known[id(node)] = count
    if known[id(node)] > MOST_VALUES:
        raise yaml.YAMLError(f"its aliases come to more than {MOST_VALUES:,} values")
    return known[id(node)]
