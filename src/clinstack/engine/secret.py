"""Randomness that nobody can compute again: of which patients a private step draws, and of its noise.

Whoever knew the noise could take it away again, so it must not follow from the recipe's seed. A Run keeps 256 random
bits of the operating system in its checkpoints while it trains (readable by their owner alone), and everything random
of a step is a function of them and of the step's number: a run that was killed takes the same step again. The file is
deleted with the last step.

The bits are stretched by SHAKE-256 (FIPS 202), a cryptographic function whose outputs tell nothing of its input; the
generators of PyTorch and NumPy are not made for that (PyTorch's on a CPU takes in 32 bits of a seed).
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clinstack.errors import InputError
from clinstack.files import replacing_file

SECRET_FILE = "privacy.secret"
"""In the Run's checkpoints, until its last step is done."""
_BYTES = 32


class Secret:
    """Random numbers by (purpose, step)."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def open(cls, folder: Path, *, begun: bool) -> Secret:
        """Return the secret of a Run's checkpoints; where there is none yet, a new one.

        Parameters
        ----------
        folder : Path
        begun : bool
            Whether a checkpoint says that steps were taken.

        Raises
        ------
        InputError
            If training has begun and the secret is missing or damaged.
        """
        path = folder / SECRET_FILE
        if begun or path.is_file():
            key = path.read_bytes() if path.is_file() else b""
            if len(key) != _BYTES:
                raise InputError(
                    f"{path} is missing or damaged: without it the rest of this private training would not be what it "
                    "was begun as. Begin anew with --fresh."
                )
            return cls(key)
        key = secrets.token_bytes(_BYTES)
        with replacing_file(path) as temporary:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(key)
        return cls(key)

    @staticmethod
    def forget(folder: Path) -> None:
        """Delete the secret."""
        (folder / SECRET_FILE).unlink(missing_ok=True)

    def seed(self, purpose: str, step: int) -> int:
        """Return 63 bits, for generators that take a seed."""
        return int(self._numbers(purpose, step, 1)[0] >> np.uint64(1))

    def uniform(self, purpose: str, step: int, count: int) -> NDArray[np.float64]:
        """Return numbers above 0 and at most 1, to 53 bits; shape [count]."""
        whole = self._numbers(purpose, step, count) >> np.uint64(11)
        return (whole.astype(np.float64) + 1.0) * 2.0**-53

    def normal(self, purpose: str, step: int, count: int) -> NDArray[np.float64]:
        """Return numbers of the standard normal distribution, shape [count].

        Half the sum of four independent ones each: the last bits of a single one, as any sampler in floating point
        makes it, can give away its value (Mironov 2012, "On Significance of the Least Significant Bits for
        Differential Privacy"; the sum is the remedy of Holohan and Braghin 2021, "Secure Random Sampling in
        Differential Privacy", section 4).
        """
        pairs = (count + 1) // 2
        total = np.zeros(2 * pairs)
        for part in range(4):
            radius = np.sqrt(-2.0 * np.log(self.uniform(f"{purpose}, radius {part}", step, pairs)))
            angle = 2.0 * np.pi * self.uniform(f"{purpose}, angle {part}", step, pairs)
            total[:pairs] += radius * np.cos(angle)
            total[pairs:] += radius * np.sin(angle)
        return (total * 0.5)[:count]

    def _numbers(self, purpose: str, step: int, count: int) -> NDArray[np.uint64]:
        block = hashlib.shake_256(self._key + step.to_bytes(8, "big") + purpose.encode())
        return np.frombuffer(block.digest(8 * count), dtype=np.uint64)
