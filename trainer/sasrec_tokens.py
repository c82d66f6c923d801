"""Tokens of what users do, not of what items say: fitted on the item table of a SASRec."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenization.sasrec import SASRec
from trainer.experiment import TokensConfig


@dataclass(frozen=True, kw_only=True)
class SASRecTokensConfig(TokensConfig):
    """As `TokensConfig`, with a SASRec in the place of texts (STORE section 3.1.4).

    It is trained on the training rows alone, on those whose first label is positive. Items that
    no sequence holds which it reads get the mean of the others' embeddings: nothing is known of
    them, so they share their tokens.

    Args:
        sasrec: settings of its training.

    Raises:
        ValueError: with `embedding_column`, which would have no effect; and as `TokensConfig`.
    """

    sasrec: SASRec = field(default_factory=SASRec)

    def __post_init__(self) -> None:
        """Refuse another source of embeddings."""
        super().__post_init__()
        if self.embedding_column is not None:
            raise ValueError(
                f"tokenizer.embedding_column is {self.embedding_column!r}, but embeddings come "
                "from SASRec; set it to None, or use TokensConfig"
            )
