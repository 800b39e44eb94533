"""One base in memory and any number of stacks on it: each has its factors and its head, and nothing else of its own.

::

    stacks on disk                         in memory
    clinical + mortality                   base W, the clinical B A added to it once (float32: W + B A)
    clinical + diagnoses            ──▶      mortality   factors of its task adapter, head
    mortality without clinical               diagnoses   factors of its task adapter, head
                                             the last    -(B A) of the clinical one, its own factors, head

Adapters that all stacks have at their bottom are folded into the weights; a stack without them gets their negative,
as does whoever asks for the untouched base. A batch may mix stacks: `clinstack.serve.routing` takes each token through
its own stack's adapters. Every stack is held against the output that was recorded when it was saved, through the same
way that notes take.

Not for several threads: whoever owns it calls it, and adds and removes stacks between two calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from clinstack.model.base import Base
from clinstack.serve.own_copy import OwnCopy
from clinstack.serve.served_stack import EncodedNote, ServedStack
from clinstack.tokens.documents import Tokens

FOLDS = ("auto", "always", "never")


class SharedBase:
    """Stacks on one base. Make it with `SharedBase.open`.

    Attributes
    ----------
    base : Base
    tokenizer : PreTrainedTokenizerBase
    device : torch.device
    stacks : dict of str to ServedStack
        By the name under which they are asked for.
    own_copies : dict of str to OwnCopy
        The stacks that cannot share the base, by name.
    notes : list of str
        What a person should know, a line each: stacks with a base of their own, and why.
    """

    base: Base
    tokenizer: PreTrainedTokenizerBase
    stacks: dict[str, ServedStack]
    own_copies: dict[str, OwnCopy]
    notes: list[str]

    @classmethod
    def open(
        cls,
        stacks: Mapping[str, Path] | Sequence[tuple[str, Path]],
        *,
        base: str | None = None,
        device: str = "auto",
        fold: str = "auto",
    ) -> SharedBase:
        """Read stacks, load their base once, and check each stack against its recorded output.

        Parameters
        ----------
        stacks : mapping or sequence of (str, Path)
            Name to Stack or finished Run; at least one.
        base : str, optional
            Where the base is on this machine; as the first stack records it when not given.
        device : str
            ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        fold : {"auto", "always", "never"}
            Whether the adapters that all stacks have at their bottom are added to the base's weights; ``auto`` where
            that is exact (float32).

        Raises
        ------
        InputError
            If a stack is on another base, damaged, or gives another output than when it was saved.
        """
        raise NotImplementedError

    @property
    def model_fingerprint(self) -> str:
        """The base's."""
        raise NotImplementedError

    @property
    def network(self) -> PreTrainedModel:
        """The network that stacks share: a causal language model where any of them is one, else one with a head."""
        raise NotImplementedError

    def add(self, name: str, folder: Path) -> ServedStack:
        """Add a stack while others are served. Nothing is changed where it is refused.

        Raises
        ------
        InputError
            If the name is taken, or as `open`.
        """
        raise NotImplementedError

    def remove(self, name: str) -> None:
        """Forget a stack.

        Raises
        ------
        InputError
            If there is none of that name.
        """
        raise NotImplementedError

    def encode(self, name: str, text: str) -> EncodedNote:
        """Return what a stack reads of a note, cut and ended as in its training. Safe in any thread."""
        raise NotImplementedError

    def classify(self, items: Sequence[tuple[str, Sequence[Tokens]]]) -> list[NDArray[np.float32]]:
        """Classify notes of any stacks together.

        Parameters
        ----------
        items : sequence of (str, sequence of int64 arrays)
            A stack's name, and the pieces of one note as `encode` makes them.

        Returns
        -------
        list of float32 array [classes]
            Raw logits, in the order of the items.
        """
        raise NotImplementedError

    @contextmanager
    def routed(self, names: Sequence[str | None]) -> Iterator[Any]:
        """Let forward passes of `network` take each padded row through its own stack.

        Parameters
        ----------
        names : sequence of str or None
            The stack of each row; None is the untouched base.

        Yields
        ------
        PreTrainedModel
            The network.

        Raises
        ------
        InputError
            If a stack is none of these, or has a base of its own (`own_copies`).
        """
        raise NotImplementedError
        yield
