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

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from clinstack.engine.pieces import pool_pieces
from clinstack.errors import InputError
from clinstack.model.base import Base, find_base, load_tokenizer
from clinstack.model.checks import StackError
from clinstack.model.lineage import read_stack_record, stack_folder
from clinstack.serve.folding import Adapters, adapters_to_fold, folds
from clinstack.serve.own_copy import OwnCopy
from clinstack.serve.probe import check_recorded
from clinstack.serve.ready import ReadStack, make_ready
from clinstack.serve.routing import RoutingError
from clinstack.serve.served_stack import EncodedNote, ServedStack, StackOnDisk, read_stack
from clinstack.serve.shared_network import Piece, SharedNetwork, find_device
from clinstack.tokens.documents import Tokens
from clinstack.tokens.encode import TextEncoder
from clinstack.tokens.texts import NoteEncoder


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

    def __init__(self, base: Base, device: torch.device, precision: tuple[str, str], folded: Adapters) -> None:
        self.base = base
        self.device = device
        self.tokenizer = load_tokenizer(base)
        self.stacks: dict[str, ServedStack] = {}
        self.own_copies: dict[str, OwnCopy] = {}
        self.notes: list[str] = []
        self._precision = precision
        self._folded = folded
        self._network: SharedNetwork | None = None
        self._routes: dict[str, str] = {}
        self._heads: dict[str, Tensor] = {}
        self._pooling: dict[str, str] = {}
        self._text_encoder = TextEncoder(self.tokenizer)
        self._encoders: dict[str, NoteEncoder] = {}

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
            Whether the adapters that stacks have in common at their bottom are added to the base's weights; ``auto``
            where that is exact (float32).

        Raises
        ------
        InputError
            If a stack is on another base, damaged, or gives another output than when it was saved.
        """
        named = list(stacks.items()) if isinstance(stacks, Mapping) else list(stacks)
        if not named:
            raise InputError("serve: name at least one Stack or Run.")
        if base is None:
            base = str(read_stack_record(stack_folder(named[0][1]))["base"]["id"])
        found = find_base(base)
        read: dict[str, StackOnDisk] = {}
        for name, path in named:
            if name in read:
                raise InputError(f"serve: two stacks are called {name!r} ({read[name].folder} and {path}).")
            read[name] = read_stack(path, found)
        sharing = [stack for stack in read.values() if not stack.reason] or list(read.values())
        # The one that most stacks were made for; of equals the first.
        precision = Counter(stack.precision for stack in sharing).most_common(1)[0][0]
        adapters = [stack.adapters for stack in sharing if stack.precision == precision]
        opened = cls(
            found, find_device(device), precision, adapters_to_fold(adapters) if folds(fold, precision) else ()
        )
        if any(not stack.reason and not stack.is_classifier for stack in read.values()):
            opened._shared(causal=True)
        for name, stack in read.items():
            opened._add(name, opened._ready(stack))
        return opened

    @property
    def model_fingerprint(self) -> str:
        """The base's."""
        return self.base.fingerprint

    @property
    def folded(self) -> int:
        """How many adapters, common to stacks, are in the base's weights."""
        return len(self._folded) if self._network is not None else 0

    @property
    def network(self) -> PreTrainedModel:
        """The network that stacks share: a causal language model where any of them is one, else one with a head."""
        return self._shared(causal=False).network

    def _shared(self, *, causal: bool, causal_network: PreTrainedModel | None = None) -> SharedNetwork:
        """Return the shared network; it is loaded when the first stack needs it."""
        if self._network is None:
            self._network = SharedNetwork(self.base, self._precision, self.device, self._folded, causal=causal)
            self.device = self._network.device
        elif causal:
            self._network.become_causal(causal_network)
        return self._network

    # ------------------------------------------------------------------ stacks

    def read(self, folder: Path) -> ReadStack:
        """Do what takes long of adding a stack: read and verify it, and load what it does not share.

        Safe in any thread while others are served; `add` then takes a moment.

        Raises
        ------
        InputError
            As `open`.
        """
        return self._ready(read_stack(folder, self.base))

    def _ready(self, stack: StackOnDisk) -> ReadStack:
        lacks_output = self._network is not None and not self._network.is_causal
        return make_ready(stack, self.base, self._precision, self.device, lacks_output=lacks_output)

    def add(self, name: str, stack: Path | ReadStack) -> ServedStack:
        """Add a stack while others are served. Nothing is changed where it is refused.

        Parameters
        ----------
        stack : Path or ReadStack
            A Stack or finished Run, or what `read` made of it.

        Raises
        ------
        InputError
            If the name is taken, or as `open`.
        """
        if name in self.stacks:
            raise InputError(f"{name}: a stack of this name is served already; remove it first, or take another name.")
        return self._add(name, stack if isinstance(stack, ReadStack) else self.read(stack))

    def _add(self, name: str, ready: ReadStack) -> ServedStack:
        stack, reason, own_copy = ready.stack, ready.reason, ready.own_copy
        served = stack.described(name)
        if served.task is not None:
            self._encoders[name] = NoteEncoder(self.tokenizer, served.reading, self._text_encoder)
        try:
            if own_copy is None:
                reason = self._share(served, ready)
            if reason:
                self.own_copies[name] = own_copy or OwnCopy(stack.folder, str(self.base.folder), self.device)
                self.notes.append(f"{name}: it has a base of its own in memory ({reason}).")
            self.stacks[name] = replace(served, own_copy=bool(reason))
        except Exception:
            self._forget(name)
            raise
        return self.stacks[name]

    def _share(self, served: ServedStack, ready: ReadStack) -> str:
        """Put a stack's factors beside the shared network; return why that cannot be, where it cannot."""
        name, stack = served.name, ready.stack
        shared = self._shared(causal=not stack.is_classifier, causal_network=ready.causal)
        self._routes[name] = shared.add(stack.adapters)
        if stack.head is not None:
            self._heads[name] = stack.head.to(shared.device)
            self._pooling[name] = stack.pooling.kind(shared.network.config)
        try:
            self._check(served, stack)
        except RoutingError:
            self._unshare(name)
            return "it adapts layers that do not see a row's tokens one after another"
        return ""

    def _check(self, served: ServedStack, stack: StackOnDisk) -> None:
        """Hold a stack's output, as notes get it, against the one that was recorded when it was saved."""
        self.stacks[served.name] = served
        try:
            check_recorded(self, served, stack.precision, torch.tensor(stack.record["probe"]))
        except StackError as error:
            raise InputError(f"{stack.folder}: on the shared base it is another model. {error}") from None

    def remove(self, name: str) -> None:
        """Forget a stack.

        Raises
        ------
        InputError
            If there is none of that name.
        """
        self._known(name)
        self._forget(name)

    def _unshare(self, name: str) -> None:
        """Take a stack out of the shared network."""
        if self._network is not None and name in self._routes:
            self._network.drop(self._routes[name])
        for table in (self._routes, self._heads, self._pooling):
            table.pop(name, None)

    def _forget(self, name: str) -> None:
        self._unshare(name)
        for table in (self.stacks, self.own_copies, self._encoders):
            table.pop(name, None)
        self.notes = [note for note in self.notes if not note.startswith(f"{name}: ")]

    def _known(self, name: str) -> ServedStack:
        if name not in self.stacks:
            raise InputError(f"{name}: no stack of this name is served; there are {', '.join(self.stacks) or 'none'}.")
        return self.stacks[name]

    # ------------------------------------------------------------------ computing

    def encode(self, name: str, text: str) -> EncodedNote:
        """Return what a stack reads of a note, cut and ended as in its training. Safe in any thread.

        Raises
        ------
        InputError
            If there is no classifier of that name.
        """
        if self._known(name).task is None:
            raise InputError(f"{name}: it is a language model without a head; it classifies nothing.")
        encoded = self._encoders[name].encode([text])
        return EncodedNote(encoded.pieces, int(encoded.cut["read"]), int(encoded.cut["cut"]))

    def classify(self, items: Sequence[tuple[str, Sequence[Tokens]]]) -> list[NDArray[np.float32]]:
        """Classify notes of any stacks together.

        What two stacks with the same adapters read of the same note is computed once.

        Parameters
        ----------
        items : sequence of (str, sequence of int64 arrays)
            A stack's name, and the pieces of one note as `encode` makes them.

        Returns
        -------
        list of float32 array [classes]
            Raw logits, in the order of the items.

        Raises
        ------
        InputError
            If a stack is no classifier or not served.
        """
        by_stack: dict[str, list[int]] = {}
        for place, (name, _) in enumerate(items):
            by_stack.setdefault(name, []).append(place)
        for name in by_stack:
            if self._known(name).task is None:
                raise InputError(f"{name}: it is a language model without a head; it classifies nothing.")
        pieces: dict[tuple[str, str, bytes], Piece] = {}
        keys = [[] if name in self.own_copies else self._keys(name, note, pieces) for name, note in items]
        features = self._shared(causal=False).features(list(pieces.values())) if pieces else torch.empty(0)
        numbers = {key: number for number, key in enumerate(pieces)}
        result: list[NDArray[np.float32]] = [np.empty(0, dtype=np.float32)] * len(items)
        for name, places in by_stack.items():
            if name in self.own_copies:
                logits: Sequence[NDArray[np.float32]] = self.own_copies[name].classify([items[at][1] for at in places])
            else:
                chosen = features[[numbers[key] for at in places for key in keys[at]]]
                with torch.inference_mode():
                    pooled = pool_pieces(
                        chosen, [len(keys[at]) for at in places], self.stacks[name].reading.chunk_pooling
                    )
                    logits = list(nn.functional.linear(pooled, self._heads[name]).cpu().numpy())
            for place, row in zip(places, logits, strict=True):
                result[place] = row
        return result

    def _keys(
        self, name: str, note: Sequence[Tokens], pieces: dict[tuple[str, str, bytes], Piece]
    ) -> list[tuple[str, str, bytes]]:
        """Put the pieces of a note among those to compute, and return where they are."""
        route, pooling = self._routes[name], self._pooling[name]
        keys = [(route, pooling, tokens.tobytes()) for tokens in note]
        for key, tokens in zip(keys, note, strict=True):
            pieces.setdefault(key, Piece(route, pooling, tokens))
        return keys

    @contextmanager
    def routed(self, names: Sequence[str | None]) -> Iterator[PreTrainedModel]:
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
        shared = self._shared(causal=False)
        for name in names:
            if name is not None and self._known(name).own_copy:
                raise InputError(f"{name}: it has a base of its own; use the stack in own_copies.")
        routes = [shared.untouched if name is None else self._routes[name] for name in names]
        with shared.routed(routes) as network:
            yield network

    def hidden_states(self, input_ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Return the last layer's output of padded rows, shape [rows, tokens, hidden]; inside of `routed`."""
        return self._shared(causal=False).hidden_states(input_ids, mask, positions)
