"""RQ-VAEs that learn from behaviour too: content and collaborative embeddings side by side.

An item's embedding is `[content | collaborative]`: the last `collaborative_dim` columns say what
users do with it, for instance the item vectors of a SASRec (`join_collaborative` puts both side by
side). They shape the networks and the codewords, but codes are of the content alone, so that an
item that nobody has clicked yet has codes as any other.

Shape suffixes: N items, B items of a batch, D dimensions of the content, C collaborative ones,
H latent dimensions, L levels, K codes.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenization import residual
from tokenization.autoencoder import Standardizer, blocks, load_network, network_tensors
from tokenization.base import (
    Codes,
    Embeddings,
    SemanticTokenizer,
    TokenizerConfig,
    check_at_least,
    check_embeddings,
    check_enough_items,
)
from tokenization.embedding_table import EmbeddingTable
from tokenization.rq_vae import RQVAE, RQVAENetwork, start_codebooks, train_network

_READOUT = "readout"
_UNKNOWN = 1e-3  # length of a mean after standardization, at most


@dataclass(frozen=True, kw_only=True)
class CollaborativeRQVAE(RQVAE, abc.ABC):
    """What the settings of these tokenizers share, beside those of RQ-VAE.

    Weights of further losses are relative to the reconstruction error of one column (its mean over
    columns, as the papers have it); RQ-VAE sums it, so they are multiplied by D.

    Args:
        collaborative_dim: C, columns at the end of the embeddings.
    """

    collaborative_dim: int = 64

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        check_at_least(self.collaborative_dim, 1, name="collaborative_dim")

    @abc.abstractmethod
    def network(self, dim: int) -> CollaborativeNetwork:
        """Networks for D dimensions of content."""

    @abc.abstractmethod
    def fitted(self, tensors: Mapping[str, NDArray[Any]]) -> CollaborativeTokenizer:
        """The tokenizer with these tensors."""

    def fit(self, embeddings: NDArray[np.floating]) -> CollaborativeTokenizer:
        """Return the tokenizer trained on `embeddings` `(N, D + C)`.

        Raises:
            ValueError: embeddings that `check_embeddings` refuses, no column beside the
                collaborative ones, or fewer items than codes.
        """
        checked = check_embeddings(embeddings)
        check_enough_items(len(checked), self.num_codes)
        dim = checked.shape[1] - self.collaborative_dim
        if dim < 1:
            raise ValueError(
                f"embeddings: expected content and then {self.collaborative_dim} collaborative "
                f"columns, found {checked.shape[1]} columns in all; join both "
                "(`farewell tokenize --collaborative FILE`) and set collaborative_dim to theirs"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self.network(dim)
            network.measure(checked)
            network.start(checked)
            train_network(network, checked, self, network.after_epoch)
        network.finish()
        tensors: dict[str, NDArray[Any]] = dict(network_tensors(network))
        with torch.no_grad():
            parts = [network.encode(x_BD) for x_BD in blocks(checked[:, :dim])]
        latents = torch.cat(parts).numpy()
        codes = residual.encode(latents, tensors["codebooks"])
        sums = residual.decode(codes, tensors["codebooks"])
        tensors[_READOUT] = _least_squares(sums, checked[:, dim:])
        return self.fitted(tensors)


class CollaborativeNetwork(RQVAENetwork):
    """An RQ-VAE of the content that sees the collaborative columns in training.

    Args:
        dim: D.
        config: sizes.
    """

    config: CollaborativeRQVAE

    def __init__(self, dim: int, config: CollaborativeRQVAE) -> None:
        super().__init__(dim, config)
        self.dim = dim
        self.config = config
        self.collaborative = Standardizer(config.collaborative_dim)

    def measure(self, embeddings: Embeddings) -> None:
        """Take means and scales of both sides from `embeddings` `(N, D + C)`."""
        self.standardizer.measure(np.ascontiguousarray(embeddings[:, : self.dim]))
        self.collaborative.measure(np.ascontiguousarray(embeddings[:, self.dim :]))

    def sides(self, x_BE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings to standard content `(B, D)` and standard collaborative columns `(B, C)`.

        The third tensor, bool `(B,)`, says of which items behaviour is known: those that nobody
        clicked have the others' mean, which is zero but for rounding, and must teach nothing.
        """
        collaborative_BC = self.collaborative(x_BE[:, self.dim :])
        is_known_B = collaborative_BC.norm(dim=1) > _UNKNOWN
        return self.standardizer(x_BE[:, : self.dim]), collaborative_BC, is_known_B

    def start(self, embeddings: Embeddings) -> None:
        """Start the codewords on the untrained latents of `embeddings` `(N, D + C)`."""
        start_codebooks(self, np.ascontiguousarray(embeddings[:, : self.dim]), self.config)

    def after_epoch(self, epoch: int) -> None:
        """Called after each epoch; nothing to do here."""

    def finish(self) -> None:
        """Called after training, before `codebooks` are read; nothing to do here."""


class CollaborativeTokenizer(SemanticTokenizer):
    """A trained RQ-VAE of the content; what codes say of the other columns is read off linearly.

    `codebooks` `(L, K, H)` lie in the latent space of the content. `readout` `(H + 1, C)` maps sums
    of codewords, and a one, to the collaborative columns by least squares over the items that it
    was fitted to; no network learns from it.
    """

    def __init__(self, *, config: TokenizerConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(config=config, tensors=tensors)
        assert isinstance(config, CollaborativeRQVAE)
        self._content_dim = len(self.tensors["standardizer.mean"])
        self._network = config.network(self._content_dim)
        load_network(self._network, self.tensors)

    @property
    def dim(self) -> int:
        """Columns of the embeddings, D + C."""
        return self._content_dim + self.tensors[_READOUT].shape[1]

    @torch.no_grad()
    def _latents(self, embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
        content = check_embeddings(embeddings, dim=self.dim)[:, : self._content_dim]
        return torch.cat([self._network.encode(x_BD) for x_BD in blocks(content)]).numpy()

    def encode(self, embeddings: NDArray[np.floating]) -> Codes:
        """Return the codes `(N, L)`: the residual walk over the latents of the content.

        Args:
            embeddings: `(N, D + C)`; the last C columns are not looked at.
        """
        return residual.encode(self._latents(embeddings), self.codebooks)

    @torch.no_grad()
    def decode(self, codes: NDArray[np.integer]) -> Embeddings:
        """Return content and collaborative columns `(N, D + C)` that `codes` stand for."""
        sums_NH = residual.decode(codes, self.codebooks)
        if not len(sums_NH):
            return np.zeros((0, self.dim), np.float32)
        content = torch.cat([self._network.decode(sums_BH) for sums_BH in blocks(sums_NH)])
        readout = self.tensors[_READOUT]
        return np.concatenate([content.numpy(), sums_NH @ readout[:-1] + readout[-1]], axis=1)

    def last_level_distances(
        self, embeddings: NDArray[np.floating], codes: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Return squared distances `(N, K)` in latent space."""
        return residual.last_level_distances(self._latents(embeddings), codes, self.codebooks)


def info_nce(a_BH: Tensor, b_BH: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Mean of `-log(exp(<a_i, b_i> / t) / sum_j exp(<a_i, b_j> / t))` over the batch; a scalar.

    Unlike `contrastive.contrastive_loss` it takes vectors as they are, and candidates of this
    process alone: tokenizers are fitted on one.
    """
    target_B = torch.arange(len(a_BH), device=a_BH.device)
    return nn.functional.cross_entropy(a_BH @ b_BH.T / temperature, target_B)


def join_collaborative(table: EmbeddingTable, collaborative: EmbeddingTable) -> EmbeddingTable:
    """Put collaborative embeddings beside those of the content, item by item.

    Items without a collaborative embedding get the mean of the others': nothing is known of them.

    Args:
        table: content of every item.
        collaborative: of items that were clicked; others than the table's are left out.

    Raises:
        ValueError: when they have no item in common.
    """
    held, own, other = np.intersect1d(
        table.item_ids, collaborative.item_ids, return_indices=True, assume_unique=True
    )
    if not len(held):
        raise ValueError(
            f"collaborative embeddings: none of their {len(collaborative.item_ids)} items is among "
            f"the {len(table.item_ids)} to be tokenized; take those of the same catalogue"
        )
    known = collaborative.embeddings[other]
    columns = np.repeat(known.mean(axis=0, keepdims=True), len(table.item_ids), axis=0)
    columns[own] = known
    made: dict[str, Any] = {**table.made, "collaborative": dict(collaborative.made)}
    seen = [part.made["log_rows"] for part in (table, collaborative) if "log_rows" in part.made]
    if seen:  # rows of the log that a model's evaluation must lie behind
        made["log_rows"] = max(seen)
    return EmbeddingTable(
        item_ids=table.item_ids,
        embeddings=np.concatenate([table.embeddings, columns], axis=1),
        made=made,
    )


def _least_squares(sums_NH: Embeddings, columns_NC: Embeddings) -> NDArray[np.float32]:
    ones = np.ones((len(sums_NH), 1), dtype=np.float32)
    with_one = np.concatenate([sums_NH, ones], axis=1)
    return np.linalg.lstsq(with_one, columns_NC, rcond=1e-5)[0].astype(np.float32)
