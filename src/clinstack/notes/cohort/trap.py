"""What a trap is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clinstack.notes.cohort.stay import Stay


@dataclass(frozen=True)
class Trap:
    """One thing in the tables that a careless builder gets wrong.

    Parameters
    ----------
    name : str
        As it is given to ``--trap``.
    shows : str
        What is planted, in one line.
    plant : callable
        Changes the rows of one admission.
    alone : bool
        Whether it changes how a whole column is read, so that ``--trap all`` leaves it out.
    """

    name: str
    shows: str
    plant: Callable[[Stay], None]
    alone: bool = False
