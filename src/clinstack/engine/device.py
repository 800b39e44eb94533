"""Where a stage computes."""

from __future__ import annotations

import torch

from clinstack.engine.distributed import world


def pick_device() -> torch.device:
    """Return the accelerator of this process when there is one, else the CPU."""
    return world().device
