"""Where a stage computes."""

from __future__ import annotations

import torch


def pick_device() -> torch.device:
    """Return the accelerator when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
