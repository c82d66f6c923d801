"""Item texts to embeddings, by any encoder of `transformers` in a local folder (TRM section 3.1).

Shape suffixes: N texts, B texts of a batch, T tokens, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from tokenization.base import Embeddings, check_at_least


def mean_pool(hidden_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Return the mean of the last layer over the tokens that are not padding (TRM Eq. 2).

    Args:
        hidden_BTD: float `(B, T, D)`.
        mask_BT: `(B, T)`, 1 for tokens and 0 for padding.

    Returns:
        float32 `(B, D)`; zeros for a text without tokens.
    """
    weights_BT1 = mask_BT.unsqueeze(-1).float()
    sums_BD = (hidden_BTD.float() * weights_BT1).sum(dim=1)
    return sums_BD / weights_BT1.sum(dim=1).clamp(min=1.0)


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """Settings of a text encoder.

    Args:
        folder: local folder with `config.json`, weights and tokenizer files; nothing is downloaded.
        batch_size: texts encoded at a time.
        max_length: tokens kept of a text.
        device: where the encoder runs, e.g. `cpu` or `cuda`.
    """

    folder: Path
    batch_size: int = 64
    max_length: int = 128
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check counts."""
        check_at_least(self.batch_size, 1, name="batch_size")
        check_at_least(self.max_length, 1, name="max_length")

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> Embeddings:
        """Return one embedding of length 1 (L2) for each text.

        Texts are batched by length, so that little padding is computed; the result is in the
        order of `texts`.

        Args:
            texts: N texts; an empty one is encoded as its special tokens.
            progress: called after each batch with the number of texts in it.

        Returns:
            float32 `(N, D)`.

        Raises:
            ValueError: no text, or a folder without an encoder or a tokenizer that can pad.
        """
        if not texts:
            raise ValueError("texts: expected at least one text, found none")
        if not (self.folder / "config.json").is_file():
            raise ValueError(
                f"{self.folder}: expected a folder of a transformers encoder, found no config.json "
                f"in it; save one there with model.save_pretrained and tokenizer.save_pretrained"
            )
        tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        if tokenizer.pad_token is None:
            raise ValueError(f"{self.folder}: the tokenizer has no padding token; set pad_token")
        model = AutoModel.from_pretrained(
            self.folder, local_files_only=True, dtype=torch.float32
        ).to(self.device)
        model.eval()
        ids = tokenizer(
            list(texts), truncation=True, max_length=self.max_length, return_attention_mask=False
        )["input_ids"]
        longest_first = np.argsort([-len(tokens) for tokens in ids], kind="stable")
        embeddings_ND: Embeddings | None = None
        with torch.inference_mode():
            for start in range(0, len(texts), self.batch_size):
                rows_B = longest_first[start : start + self.batch_size]
                batch = tokenizer.pad(
                    {"input_ids": [ids[row] for row in rows_B]}, return_tensors="pt"
                ).to(self.device)
                hidden_BTD = model(**batch).last_hidden_state
                pooled_BD = mean_pool(hidden_BTD, batch["attention_mask"])
                unit_BD = torch.nn.functional.normalize(pooled_BD, dim=-1).cpu().numpy()
                if embeddings_ND is None:
                    embeddings_ND = np.empty((len(texts), unit_BD.shape[1]), dtype=np.float32)
                embeddings_ND[rows_B] = unit_BD
                if progress is not None:
                    progress(len(rows_B))
        assert embeddings_ND is not None  # there is at least one text
        return embeddings_ND
