"""Item representations by a causal language model of one's own domain (TRM section 3.1, Eq. 1-4).

The model learns to caption items from their text (Eq. 1) and, on mean-pooled last-layer states
(Eq. 2), to put items together that users click together (Eq. 3); the joint objective is
`L_cap + lambda L_align` (Eq. 4), and either part can be left out as an ablation. Any causal model
of `transformers` in a local folder will do; inputs are text.

Shape suffixes: B items or pairs of a batch, T tokens, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenization.base import check_at_least
from tokenization.contrastive import contrastive_loss
from tokenization.text_encoder import mean_pool

logger = logging.getLogger(__name__)

_IGNORED = -100  # label of tokens that are not predicted


@dataclass(frozen=True, kw_only=True)
class Representation:
    """Settings of the joint training.

    Args:
        folder: local folder of a causal language model with its tokenizer.
        out: folder to save the trained model to.
        caption_weight: of L_cap; 0 leaves captioning out.
        align_weight: lambda of L_align; 0 leaves alignment out.
        temperature: tau of Eq. 3.
        lora_rank: train low-rank updates of the linear layers only; None trains all weights.
        max_length: tokens kept of an item's text, and of its caption.
        num_steps: optimizer steps.
        batch_size: items and pairs of all ranks in a step.
        learning_rate: of AdamW, falling linearly to zero.
        seed: of the order and of low-rank weights.
    """

    folder: Path
    out: Path
    caption_weight: float = 1.0
    align_weight: float = 1.0
    temperature: float = 0.07
    lora_rank: int | None = None
    max_length: int = 128
    num_steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("max_length", "num_steps", "batch_size"):
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
        self, texts: Sequence[str], captions: Sequence[str], pairs: NDArray[np.integer]
    ) -> list[float]:
        """Train, save the model to `out` on the first rank, and return the loss of every step.

        Under torchrun each rank takes its share of every batch, and negatives come from all ranks.

        Args:
            texts: what is known of each item: title, OCR, ASR, description.
            captions: target caption of each item; not looked at without captioning.
            pairs: rows of `texts` that belong together, integers `(P, 2)`; not looked at without
                alignment.

        Raises:
            ValueError: a folder without such a model, texts and captions that do not match, or
                pairs out of range.
        """
        self._check(texts, captions, pairs)
        tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise ValueError(f"{self.folder}: the tokenizer has no padding or end token; set one")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = AutoModelForCausalLM.from_pretrained(
                self.folder, local_files_only=True, dtype=torch.float32
            )
            adapters = add_lora(model, self.lora_rank) if self.lora_rank is not None else []
            losses = self._train(model, tokenizer, texts, captions, pairs)
        for adapter in adapters:
            adapter.merge()
        if adapters:
            remove_lora(model)
        if not dist.is_initialized() or dist.get_rank() == 0:
            model.save_pretrained(self.out)
            tokenizer.save_pretrained(self.out)
        return losses

    def _check(
        self, texts: Sequence[str], captions: Sequence[str], pairs: NDArray[np.integer]
    ) -> None:
        if not (self.folder / "config.json").is_file():
            raise ValueError(f"{self.folder}: expected a folder of a causal language model")
        if self.caption_weight and len(captions) != len(texts):
            raise ValueError(
                f"captions: expected one for each of {len(texts)} texts, found {len(captions)}"
            )
        inside = pairs.ndim == 2 and pairs.size > 0 and 0 <= pairs.min() <= pairs.max() < len(texts)
        if self.align_weight and not inside:
            raise ValueError(
                f"pairs: expected rows of {len(texts)} texts in shape (pairs, 2), found "
                f"{pairs.shape}"
            )

    def _train(
        self,
        model: Any,
        tokenizer: Any,
        texts: Sequence[str],
        captions: Sequence[str],
        pairs: NDArray[np.integer],
    ) -> list[float]:
        world = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if dist.is_initialized() else 0
        size = max(1, self.batch_size // world)
        mine = slice(rank * size, (rank + 1) * size)
        rng = np.random.default_rng(self.seed)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=0.0, total_iters=self.num_steps
        )
        model.train()
        losses = []
        for step in range(self.num_steps):
            # Every rank draws the whole batch and takes its part, so that ranks stay in step.
            rows = rng.integers(0, len(texts), size * world)[mine].tolist()
            drawn = rng.integers(0, max(len(pairs), 1), size * world)[mine]
            loss = torch.zeros(())
            if self.caption_weight:
                batch = caption_batch(
                    tokenizer,
                    [texts[row] for row in rows],
                    [captions[row] for row in rows],
                    max_length=self.max_length,
                )
                loss = loss + self.caption_weight * caption_loss(model, **batch)
            if self.align_weight:
                sides = [
                    pooled(model, tokenizer, [texts[row] for row in side], self.max_length)
                    for side in pairs[drawn].T.tolist()
                ]
                aligned = contrastive_loss(*sides, temperature=self.temperature)
                loss = loss + self.align_weight * aligned
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if world > 1:
                for parameter in parameters:
                    if parameter.grad is not None:
                        dist.all_reduce(parameter.grad)
                        parameter.grad /= world
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if step % 100 == 0:
                logger.info("step %d of %d: loss %.4f", step, self.num_steps, losses[-1])
        return losses


def caption_batch(
    tokenizer: Any, texts: Sequence[str], captions: Sequence[str], *, max_length: int
) -> dict[str, Tensor]:
    """Item text and caption in one sequence each, padded on the right; the caption is the target.

    Returns:
        `input_ids`, `attention_mask` and `labels`, int64 `(B, T)`; labels are -100 but for the
        caption and the end token, where the tokenizer has one.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    options = {"truncation": True, "max_length": max_length, "add_special_tokens": False}
    prompts = tokenizer(list(texts), **options)["input_ids"]
    targets = [[*ids, *end] for ids in tokenizer(list(captions), **options)["input_ids"]]
    width = max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True))
    input_ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, _IGNORED)
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        stop = len(prompt) + len(target)
        input_ids[row, :stop] = torch.tensor([*prompt, *target])
        attention_mask[row, :stop] = 1
        labels[row, len(prompt) : stop] = torch.tensor(target)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def caption_loss(
    model: Any, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> Tensor:
    """Negative log likelihood of the captions, summed over a caption's tokens (TRM Eq. 1).

    Returns:
        the mean over items, a scalar.
    """
    logits_BTV = model(input_ids=input_ids, attention_mask=attention_mask).logits
    losses = nn.functional.cross_entropy(
        logits_BTV[:, :-1].transpose(1, 2).float(),
        labels[:, 1:],
        ignore_index=_IGNORED,
        reduction="none",
    )
    return losses.sum(dim=1).mean()


def pooled(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> Tensor:
    """Mean-pooled last-layer states of texts, `(B, D)` (TRM Eq. 2)."""
    batch = tokenizer(
        list(texts), truncation=True, max_length=max_length, padding=True, return_tensors="pt"
    )
    states = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        output_hidden_states=True,
    ).hidden_states[-1]
    return mean_pool(states, batch["attention_mask"])


class LoRALinear(nn.Module):
    """A frozen linear layer plus a trained update of low rank, zero at the start (Hu et al.).

    Args:
        linear: the layer.
        rank: of the update.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """The layer and its update."""
        updated: Tensor = self.linear(x) + (x @ self.down.T) @ self.up.T
        return updated

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the layer's weight."""
        self.linear.weight += self.up @ self.down


def add_lora(model: nn.Module, rank: int) -> list[LoRALinear]:
    """Freeze the model and wrap its linear layers, except the output layer; return the wraps.

    Raises:
        ValueError: a model without linear layers to wrap.
    """
    model.requires_grad_(False)
    output = getattr(model, "get_output_embeddings", lambda: None)()
    wraps = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child is not output:
                wrap = LoRALinear(child, rank)
                setattr(module, name, wrap)
                wraps.append(wrap)
    if not wraps:
        raise ValueError("lora_rank: expected linear layers in the model, found none; train all")
    return wraps


def remove_lora(model: nn.Module) -> None:
    """Put the (merged) linear layers back in the places of their wraps."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoRALinear):
                setattr(module, name, child.linear)
