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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
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
        moments = optimizer.state_dict()
        tensors = {
            **{f"trained/{n}": p for n, p in model.named_parameters() if p.requires_grad},
            **{
                f"moments/{number}/{name}": value
                for number, values in moments["state"].items()
                for name, value in values.items()
            },
        }
        state = {
            "fingerprint": self.fingerprint,
            "losses": list(losses),
            "groups": moments["param_groups"],
            "schedule": schedule.state_dict(),
        }
        unfinished = self.path.with_name(self.path.name + ".partial")
        save_file(
            {name: value.detach().cpu().clone() for name, value in tensors.items()},
            unfinished,
            metadata={"state": json.dumps(state)},
        )
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
            with safe_open(self.path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = state["fingerprint"]
        except (SafetensorError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{self.path}: damaged ({error}); delete it to start anew") from error
        if found != self.fingerprint:
            raise ValueError(
                f"{self.path}: is of a training with other settings, texts or pairs; repeat the "
                "command that began it, or delete the file to start anew"
            )
        parameters = dict(model.named_parameters())
        moments: dict[int, dict[str, torch.Tensor]] = {}
        with torch.no_grad():
            for path, values in tensors.items():
                kind, _, name = path.partition("/")
                if kind == "trained":
                    parameters[name].copy_(values)
                else:
                    number, _, moment = name.partition("/")
                    moments.setdefault(int(number), {})[moment] = values
        optimizer.load_state_dict({"state": moments, "param_groups": state["groups"]})
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
