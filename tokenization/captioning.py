"""Causal and vision-language models over items: captions (TRM Eq. 1) and pooled states (Eq. 2).

Any causal model of `transformers` in a local folder reads texts; any of its vision-language models
whose processor has an image token (LLaVA, Qwen-VL, Idefics3, SmolVLM, PaliGemma, Gemma 3, ...)
reads an item's image too, before its text.

Shape suffixes: B items of a batch, T tokens, V words of the vocabulary, D dimensions.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tokenization.base import Embeddings
from tokenization.catalogue import Content
from tokenization.text_encoder import mean_pool

_IGNORED = -100  # label of tokens that are not predicted


class Preparation:
    """Turns contents of items into the tensors that a model reads.

    Args:
        tokenizer: with a padding token.
        processor: of a vision-language model; None for a model of texts.
    """

    def __init__(self, tokenizer: Any, processor: Any = None) -> None:
        self.tokenizer = tokenizer
        self.processor = processor

    def batch(
        self,
        contents: Sequence[Content],
        captions: Sequence[str] | None = None,
        *,
        max_length: int,
    ) -> dict[str, Tensor]:
        """Image, text and caption in one sequence each, padded on the right.

        Args:
            contents: of B items.
            captions: of these items, the targets; None to leave them out.
            max_length: tokens kept of a text, and of a caption. An image keeps all of its tokens.

        Returns:
            `input_ids`, `attention_mask`, with captions `labels` (int64 `(B, T)`; -100 but for the
            caption and the end token, where the tokenizer has one), and what a vision-language
            model wants of its images.

        Raises:
            ValueError: an item with an image for a model of texts, or an image that is none.
        """
        prompts, by_token, visual = self._prompts(contents, max_length)
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        targets: list[list[int]] = [[] for _ in contents]
        if captions is not None:
            ids = self._tokens(list(captions))
            targets = [[*caption[:max_length], *end] for caption in ids]
        width = max(1, *(len(p) + len(t) for p, t in zip(prompts, targets, strict=True)))
        input_ids = torch.full((len(prompts), width), self.tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, _IGNORED)
        others = {name: torch.zeros_like(input_ids) for name in by_token}
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            stop = len(prompt) + len(target)
            input_ids[row, :stop] = torch.tensor([*prompt, *target])
            attention_mask[row, :stop] = 1
            labels[row, len(prompt) : stop] = torch.tensor(target)
            for name, values in by_token.items():
                others[name][row, : len(prompt)] = torch.tensor(values[row])
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, **others, **visual}
        return batch if captions is None else {**batch, "labels": labels}

    def _prompts(
        self, contents: Sequence[Content], max_length: int
    ) -> tuple[list[list[int]], dict[str, list[list[int]]], dict[str, Tensor]]:
        """Token ids, what else there is by token, and the tensors of the images."""
        images = [[open_image(c.image)] if c.image is not None else [] for c in contents]
        words = self._tokens([content.text for content in contents])
        if not any(images):
            return [tokens[:max_length] for tokens in words], {}, {}
        if self.processor is None:
            raise ValueError(
                "image: this model reads texts alone; take a vision-language model, or no images"
            )
        image_token = self.processor.image_token
        texts = [
            f"{image_token if image else ''}{content.text}"
            for content, image in zip(contents, images, strict=True)
        ]
        read = self.processor(text=texts, images=images, add_special_tokens=False)
        lengths = [len(ids) for ids in read["input_ids"]]
        stops = [  # the text comes last, so it is what is cut
            length - max(0, len(tokens) - max_length)
            for length, tokens in zip(lengths, words, strict=True)
        ]
        by_token, visual = {}, {}
        for name, values in read.items():
            if isinstance(values, list) and _lengths(values) == lengths:
                by_token[name] = [row[:stop] for row, stop in zip(values, stops, strict=True)]
            else:
                visual[name] = torch.as_tensor(np.asarray(values))
        del by_token["attention_mask"]
        return by_token.pop("input_ids"), by_token, visual

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    def save(self, folder: Path) -> None:
        """Write the tokenizer, or the whole processor."""
        (self.processor or self.tokenizer).save_pretrained(folder)


def load_model(folder: Path) -> tuple[Any, Preparation]:
    """Return the model of a local folder (float32) and what prepares its inputs.

    Raises:
        ValueError: a folder without such a model, a tokenizer that can't pad, or a vision-language
            model whose processor has no image token.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}: expected a folder of a causal language model or of a vision-language "
            "model, found no config.json in it"
        )
    kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    options = {"local_files_only": True}
    processor = None
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        processor = AutoProcessor.from_pretrained(folder, **options)
        tokenizer = processor.tokenizer
        if not isinstance(getattr(processor, "image_token", None), str):
            raise ValueError(
                f"{folder}: expected a processor with an image token, which {kind} has not; take "
                "a model that reads images as tokens, such as LLaVA, Qwen-VL or Idefics3"
            )
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, **options)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ValueError(f"{folder}: the tokenizer has no padding or end token; set one")
    return model, Preparation(tokenizer, processor)


def is_generative(folder: Path) -> bool:
    """True for a causal or vision-language model, False for an encoder (or no model at all)."""
    if not (folder / "config.json").is_file():
        return False
    names = AutoConfig.from_pretrained(folder, local_files_only=True).architectures or []
    return any(name.endswith(("ForCausalLM", "ForConditionalGeneration")) for name in names)


def open_image(image: bytes | Path) -> Image.Image:
    """Decode an image as RGB.

    Raises:
        ValueError: bytes or a file that hold no image.
    """
    try:
        return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image).convert("RGB")
    except UnidentifiedImageError as error:
        place = "bytes" if isinstance(image, bytes) else str(image)
        raise ValueError(f"image: expected an encoded image (PNG, JPEG, ...): {place}") from error


def caption_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Negative log likelihood of the captions, summed over a caption's tokens (TRM Eq. 1).

    Args:
        model: of `load_model`.
        batch: with labels, see `Preparation.batch`.

    Returns:
        the mean over items, a scalar.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits_BTV = model(**inputs).logits
    losses = nn.functional.cross_entropy(
        logits_BTV[:, :-1].transpose(1, 2).float(),
        batch["labels"][:, 1:],
        ignore_index=_IGNORED,
        reduction="none",
    )
    return losses.sum(dim=1).mean()


def pooled(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Mean-pooled last-layer states, `(B, D)`, of image and text together (TRM Eq. 2)."""
    states_BTD = model(**batch, output_hidden_states=True).hidden_states[-1]
    return mean_pool(states_BTD, batch["attention_mask"])


def encode_contents(
    folder: Path,
    contents: Sequence[Content],
    *,
    batch_size: int,
    max_length: int,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Embeddings:
    """Return the pooled states of contents at length 1 (L2), float32 `(N, D)`.

    Args:
        folder: of the model.
        contents: of N items or queries.
        batch_size: contents a batch.
        max_length: tokens kept of a text.
        device: where the model runs.
        progress: called after each batch with the number of contents in it.

    Raises:
        ValueError: see `load_model` and `Preparation.batch`.
    """
    model, preparation = load_model(folder)
    model.to(device).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(contents), batch_size):
            part = contents[start : start + batch_size]
            batch = preparation.batch(part, max_length=max_length)
            states_BD = pooled(model, {name: t.to(device) for name, t in batch.items()})
            parts.append(nn.functional.normalize(states_BD, dim=1).cpu())
            if progress is not None:
                progress(len(part))
    return torch.cat(parts).numpy()


def _lengths(values: list[Any]) -> list[int]:
    return [len(row) if isinstance(row, list) else -1 for row in values]
