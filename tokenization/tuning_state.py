"""What an interrupted training of a representation model needs to go on, in one file.

Only what is trained is kept (with LoRA a few megabytes), as tensors, numbers and strings; nothing
is unpickled when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tokenization.catalogue import Content


@dataclass(frozen=True)
class TuningState:
    """Where an unfinished training is kept, and of which training it is.

    Args:
        path: of the file; absent before the first save.
        fingerprint: see `fingerprint_of`.
    """

    path: Path
    fingerprint: str

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        losses: Sequence[float],
    ) -> None:
        """Replace the file by the state after `len(losses)` steps."""
        state = {
            "fingerprint": self.fingerprint,
            "losses": list(losses),
            "trained": {n: p.detach() for n, p in model.named_parameters() if p.requires_grad},
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }
        unfinished = self.path.with_name(self.path.name + ".partial")
        torch.save(state, unfinished)
        os.replace(unfinished, self.path)

    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> list[float]:
        """Go on from the file, if it is there; the loss of every step taken so far.

        Raises:
            ValueError: when the file is of another training, or damaged.
        """
        if not self.path.exists():
            return []
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            found = state["fingerprint"]
        except Exception as error:
            raise ValueError(f"{self.path}: damaged ({error}); delete it to start anew") from error
        if found != self.fingerprint:
            raise ValueError(
                f"{self.path}: is of a training with other settings, texts or pairs; repeat the "
                "command that began it, or delete the file to start anew"
            )
        with torch.no_grad():
            parameters = dict(model.named_parameters())
            for name, values in state["trained"].items():
                parameters[name].copy_(values)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        losses: list[float] = state["losses"]
        return losses


def fingerprint_of(
    folder: Path,
    settings: Mapping[str, Any],
    contents: Sequence[Content],
    captions: Sequence[str],
    pairs: NDArray[np.integer],
) -> str:
    """Of all that decides a training's course; the model that it starts from by its folder."""
    digest = hashlib.sha256(json.dumps([str(folder), settings], sort_keys=True).encode())
    for content in contents:
        digest.update(repr(content).encode())
    for caption in captions:
        digest.update(caption.encode() + b"\0")
    digest.update(np.ascontiguousarray(pairs, dtype=np.int64).tobytes())
    return digest.hexdigest()
