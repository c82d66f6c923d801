"""Item representations by a language model of one's own domain (TRM section 3.1, Eq. 1-4).

The model learns to caption items from their text and image (Eq. 1) and, on mean-pooled last-layer
states (Eq. 2), to put together items that users click together, and queries with what was clicked
for them (Eq. 3); the joint objective is `L_cap + lambda L_align` (Eq. 4), and either part can be
left out as an ablation. Models: see `tokenization.captioning`.

Shape suffixes: B items or pairs of a batch, G pairs of all ranks, D dimensions.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenization.base import check_at_least
from tokenization.captioning import Preparation, caption_loss, load_model, pooled
from tokenization.catalogue import Content
from tokenization.contrastive import contrastive_loss
from tokenization.lora import add_lora, remove_lora
from tokenization.shares import is_first
from tokenization.tuning_state import TuningState, fingerprint_of


@dataclass(frozen=True, kw_only=True)
class Representation:
    """Settings of the joint training.

    Args:
        caption_weight: of L_cap; 0 leaves captioning out.
        align_weight: lambda of L_align; 0 leaves alignment out.
        temperature: tau of Eq. 3.
        lora_rank: train low-rank updates of the linear layers only; None trains all weights.
        max_length: tokens kept of an item's text, and of its caption.
        num_steps: optimizer steps.
        save_every: steps after which what is trained so far is kept, so that an interrupted
            training goes on.
        batch_size: items and pairs of all ranks in a step.
        learning_rate: of AdamW, falling linearly to zero.
        seed: of the order and of low-rank weights.
        device: where each rank trains, e.g. `cpu` or `cuda`.
    """

    caption_weight: float = 1.0
    align_weight: float = 1.0
    temperature: float = 0.07
    lora_rank: int | None = None
    max_length: int = 128
    num_steps: int = 1000
    save_every: int = 100
    batch_size: int = 32
    learning_rate: float = 1e-4
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("max_length", "num_steps", "save_every", "batch_size"):
            check_at_least(getattr(self, name), 1, name=name)
        if self.lora_rank is not None:
            check_at_least(self.lora_rank, 1, name="lora_rank")
        weights = (self.caption_weight, self.align_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                f"caption_weight and align_weight: expected at least 0 and not both 0, found "
                f"{weights[0]} and {weights[1]}"
            )

    def fit(
        self,
        folder: Path,
        out: Path,
        *,
        contents: Sequence[Content],
        captions: Sequence[str],
        pairs: NDArray[np.integer],
        weights: NDArray[np.floating] | None = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> list[float]:
        """Train, save the model to `out` on the first rank, and return the loss of every step.

        Under torchrun each rank takes its share of every batch, and negatives come from all ranks.
        What is trained so far is kept in a file beside `out` (of the same name and `.unfinished`);
        a training that finds it goes on, and ends as if it had never been interrupted.

        Args:
            folder: of the model to start from.
            out: where it is saved.
            contents: what is known of each item, then the queries, if any.
            captions: target caption of each item; not looked at without captioning.
            pairs: rows of `contents` that belong together, integers `(P, 2)`: two items, or a query
                and an item; not looked at without alignment.
            weights: by which pairs are drawn, `(P,)`; equal without them.
            progress: called after each step with the steps taken so far and the loss.

        Raises:
            ValueError: a folder without such a model, more captions than contents or none, pairs
                out of range, or what is left of a training with other settings.
        """
        self._check(contents, captions, pairs, weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model, preparation = load_model(folder)
            adapters = add_lora(model, self.lora_rank) if self.lora_rank is not None else []
            model.to(self.device)
            drawn = _draw(pairs, weights, self) if self.align_weight else None
            kept = TuningState(
                path=out.with_name(out.name + ".unfinished"),
                fingerprint=fingerprint_of(folder, asdict(self), contents, captions, pairs),
            )
            losses = self._train(model, preparation, contents, captions, drawn, kept, progress)
        for adapter in adapters:
            adapter.merge()
        if adapters:
            remove_lora(model)
        if is_first():
            partial = out.with_name(out.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            model.cpu().save_pretrained(partial)
            preparation.save(partial)
            partial.rename(out)
            kept.path.unlink(missing_ok=True)
        return losses

    def _check(
        self,
        contents: Sequence[Content],
        captions: Sequence[str],
        pairs: NDArray[np.integer],
        weights: NDArray[np.floating] | None,
    ) -> None:
        if self.caption_weight and not 0 < len(captions) <= len(contents):
            raise ValueError(
                f"captions: expected one for each item, at most {len(contents)}, found "
                f"{len(captions)}"
            )
        size = len(contents)
        inside = pairs.ndim == 2 and pairs.size > 0 and 0 <= pairs.min() <= pairs.max() < size
        if self.align_weight and not inside:
            raise ValueError(
                f"pairs: expected rows of {size} contents in shape (pairs, 2), found {pairs.shape}"
            )
        if weights is not None and weights.shape != (len(pairs),):
            raise ValueError(
                f"weights: expected one for each of {len(pairs)} pairs, found {weights.shape}"
            )

    def _train(
        self,
        model: Any,
        preparation: Preparation,
        contents: Sequence[Content],
        captions: Sequence[str],
        pairs: NDArray[np.integer] | None,
        kept: TuningState,
        progress: Callable[[int, float], None] | None,
    ) -> list[float]:
        """Take `num_steps` steps; `pairs` are those drawn for each step, `(steps, G, 2)`."""
        world = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if dist.is_initialized() else 0
        size = max(1, self.batch_size // world)
        mine = slice(rank * size, (rank + 1) * size)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=0.0, total_iters=self.num_steps
        )
        model.train()
        losses = kept.load(model, optimizer, schedule)
        for step in range(len(losses), self.num_steps):
            torch.manual_seed(self.seed + step)  # of dropout: a step is the same after a resume
            loss = torch.zeros((), device=self.device)
            if self.caption_weight:
                # Every rank draws the whole batch and takes its part: ranks stay in step.
                rng = np.random.default_rng([self.seed, 2, step])
                rows = rng.integers(0, len(captions), size * world)[mine].tolist()
                batch = preparation.batch(
                    [contents[row] for row in rows],
                    [captions[row] for row in rows],
                    max_length=self.max_length,
                )
                loss = loss + self.caption_weight * caption_loss(model, self._moved(batch))
            if pairs is not None:
                loss = loss + self.align_weight * self._align(
                    model, preparation, contents, pairs[step], mine
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if world > 1:
                for parameter in parameters:
                    if parameter.grad is None:  # e.g. image layers in a batch without images
                        parameter.grad = torch.zeros_like(parameter)
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= world
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if progress is not None:
                progress(len(losses), losses[-1])
            if len(losses) % self.save_every == 0 and is_first():
                kept.save(model, optimizer, schedule, losses)
        return losses

    def _align(
        self,
        model: Any,
        preparation: Preparation,
        contents: Sequence[Content],
        pairs_G2: NDArray[np.integer],
        mine: slice,
    ) -> Tensor:
        """InfoNCE of this rank's pairs (Eq. 3)."""
        a_B, b_B = pairs_G2[mine].T
        sides = [
            pooled(
                model,
                self._moved(
                    preparation.batch([contents[row] for row in side], max_length=self.max_length)
                ),
            )
            for side in (a_B.tolist(), b_B.tolist())
        ]
        b_G = pairs_G2[:, 1]
        same_BG = torch.from_numpy((b_G == b_B[:, None]) | (b_G == a_B[:, None]))
        return contrastive_loss(
            *sides, temperature=self.temperature, same_BG=same_BG.to(self.device)
        )

    def _moved(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}


def _draw(
    pairs: NDArray[np.integer], weights: NDArray[np.floating] | None, settings: Representation
) -> NDArray[np.integer]:
    """The pairs of every step, `(steps, G, 2)`, the same on every rank, sides in any order."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    size = max(1, settings.batch_size // world) * world
    rng = np.random.default_rng([settings.seed, 1])
    chances = None if weights is None else weights / weights.sum()
    drawn = rng.choice(len(pairs), (settings.num_steps, size), p=chances)
    swapped = rng.random(drawn.shape) < 0.5
    return np.where(swapped[:, :, None], pairs[drawn][:, :, ::-1], pairs[drawn])
