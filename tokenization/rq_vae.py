"""RQ-VAE (TIGER, Lee et al.): an autoencoder whose latent is quantized level by level.

Shape suffixes: N items, B items of a batch, D dimensions, H latent dimensions, L levels, K codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenization import residual
from tokenization.autoencoder import (
    Standardizer,
    blocks,
    load_network,
    nearest_codeword,
    network_tensors,
    perceptron,
    recent_points,
    revive_dead_codes,
    train,
)
from tokenization.base import (
    Codes,
    Embeddings,
    SemanticTokenizer,
    TokenizerConfig,
    check_at_least,
    check_embeddings,
    check_enough_items,
)
from tokenization.kmeans import fit_kmeans


@dataclass(frozen=True, kw_only=True)
class RQVAE:
    """Settings of RQ-VAE; sizes as in TIGER (which adds `extra_code` collision resolution).

    The loss of an item is `|x - decoder(q)|^2 + sum_l |sg(r_l) - e_l|^2 + beta |r_l - sg(e_l)|^2`
    where `r_l` is what the levels before leave of the latent, `e_l` its nearest codeword and `q`
    the sum of the codewords, through which the gradient passes straight to the encoder.

    Args:
        num_levels: codes per item, L.
        num_codes: codewords per level, K.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        latent_dim: H.
        commitment: beta.
        num_epochs: passes over the items.
        batch_size: items a step.
        learning_rate: of AdamW, with cosine decay.
        revive_every: epochs after which codewords that no item chose move onto random residuals;
            the last quarter of the epochs leaves them alone.
        seed: of weights, order and draws.
    """

    kind: ClassVar[str] = "rq_vae"

    num_levels: int = 3
    num_codes: int = 256
    hidden: tuple[int, ...] = (512, 256, 128)
    latent_dim: int = 32
    commitment: float = 0.25
    num_epochs: int = 100
    batch_size: int = 1024
    learning_rate: float = 1e-3
    revive_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that counts are at least one."""
        for name in (
            "num_levels",
            "num_codes",
            "latent_dim",
            "num_epochs",
            "batch_size",
            "revive_every",
        ):
            check_at_least(getattr(self, name), 1, name=name)
        check_at_least(self.seed, 0, name="seed")
        if self.commitment < 0 or self.learning_rate <= 0:
            raise ValueError(
                f"commitment and learning_rate: expected at least 0 and above 0, found "
                f"{self.commitment} and {self.learning_rate}"
            )

    def fit(self, embeddings: NDArray[np.floating]) -> SemanticTokenizer:
        """Return the tokenizer trained on `embeddings` `(N, D)`.

        Raises:
            ValueError: embeddings that `check_embeddings` refuses, or fewer items than codes.
        """
        checked = check_embeddings(embeddings)
        check_enough_items(len(checked), self.num_codes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = RQVAENetwork(checked.shape[1], self)
            network.standardizer.measure(checked)
            start_codebooks(network, checked, self)
            train_network(network, checked, self)
        return RQVAETokenizer(config=self, tensors=network_tensors(network))


class RQVAENetwork(nn.Module):
    """Encoder, codebooks and decoder.

    Args:
        dim: D.
        config: sizes.
    """

    def __init__(self, dim: int, config: RQVAE) -> None:
        super().__init__()
        widths = (dim, *config.hidden, config.latent_dim)
        self.commitment = config.commitment
        self.standardizer = Standardizer(dim)
        self.encoder = perceptron(widths)
        self.decoder = perceptron(widths[::-1])
        self.codebooks = nn.Parameter(
            torch.zeros(config.num_levels, config.num_codes, config.latent_dim)
        )

    def encode(self, x_BD: Tensor) -> Tensor:
        """Embeddings to latents `(B, H)`."""
        latent_BH: Tensor = self.encoder(self.standardizer(x_BD))
        return latent_BH

    def decode(self, quantized_BH: Tensor) -> Tensor:
        """Sums of codewords to embeddings `(B, D)`."""
        return self.standardizer.inverse(self.decoder(quantized_BH))

    def codewords(self) -> Tensor:
        """What latents are compared with `(L, K, H)`."""
        return self.codebooks

    def quantize(self, latent_BH: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Walk the levels.

        Returns:
            the sum of codewords with a straight-through gradient `(B, H)`; codebook and
            commitment loss, a scalar; codes int64 `(B, L)`; what each level saw `(B, L, H)`.
        """
        left_BH, sum_BH = latent_BH, torch.zeros_like(latent_BH)
        loss = latent_BH.new_zeros(())
        codes, seen = [], []
        for codewords_KH in self.codewords():
            codes_B = nearest_codeword(left_BH.detach(), codewords_KH.detach())
            chosen_BH = codewords_KH[codes_B]
            codes.append(codes_B)
            seen.append(left_BH.detach())
            loss = loss + (left_BH.detach() - chosen_BH).square().sum(dim=1).mean()
            loss = loss + self.commitment * (
                (left_BH - chosen_BH.detach()).square().sum(dim=1).mean()
            )
            left_BH = left_BH - chosen_BH.detach()
            sum_BH = sum_BH + chosen_BH.detach()
        straight_BH = latent_BH + (sum_BH - latent_BH).detach()
        return straight_BH, loss, torch.stack(codes, dim=1), torch.stack(seen, dim=1)

    def forward(self, x_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of a batch, its codes and what each level saw."""
        straight_BH, loss, codes_BL, seen_BLH = self.quantize(self.encode(x_BD))
        error_BD = self.decoder(straight_BH) - self.standardizer(x_BD)
        return error_BD.square().sum(dim=1).mean() + loss, codes_BL, seen_BLH


@torch.no_grad()
def start_codebooks(network: RQVAENetwork, embeddings: Embeddings, config: RQVAE) -> None:
    """Start each level with k-means of the untrained latents' residuals."""
    latents = torch.cat([network.encode(x_BD) for x_BD in blocks(embeddings)]).numpy()
    for level in range(config.num_levels):
        codewords = fit_kmeans(
            latents, num_codes=config.num_codes, num_iterations=10, seed=config.seed + level
        )
        network.codebooks[level] = torch.from_numpy(codewords)
        latents = latents - codewords[residual.nearest(latents, codewords)]


def train_network(
    network: RQVAENetwork,
    embeddings: Embeddings,
    config: RQVAE,
    then: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Minimise the loss of `network`; codewords that no item chose revive now and then.

    Args:
        network: called with batches of `embeddings`.
        embeddings: float32 `(N, D)`.
        config: settings.
        then: called after each epoch with the number of epochs done.
    """
    generator = torch.Generator().manual_seed(config.seed)
    counts_LK = torch.zeros(config.num_levels, config.num_codes, dtype=torch.int64)
    recent: list[Tensor] = []

    def loss(x_BD: Tensor) -> Tensor:
        value, codes_BL, seen_BLH = network(x_BD)
        for level in range(config.num_levels):
            counts_LK[level] += torch.bincount(codes_BL[:, level], minlength=config.num_codes)
        before = recent[0] if recent else None
        recent[:] = [recent_points(before, seen_BLH, config.num_codes)]
        return value

    @torch.no_grad()
    def revive(epoch: int) -> None:
        if epoch % config.revive_every or epoch > config.num_epochs * 3 // 4:
            return
        for level in range(config.num_levels):
            revive_dead_codes(
                network.codebooks[level], counts_LK[level], recent[0][:, level], generator
            )
        counts_LK.zero_()

    def after_epoch(epoch: int) -> None:
        revive(epoch)
        then(epoch)

    train(
        loss,
        list(network.parameters()),
        embeddings,
        num_epochs=config.num_epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        generator=generator,
        after_epoch=after_epoch,
    )


class RQVAETokenizer(SemanticTokenizer):
    """A trained RQ-VAE; `codebooks` `(L, K, H)` lie in its latent space."""

    kind = RQVAE.kind

    def __init__(self, *, config: TokenizerConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(config=config, tensors=tensors)
        assert isinstance(config, RQVAE)
        self._network = RQVAENetwork(self.dim, config)
        load_network(self._network, self.tensors)

    @property
    def dim(self) -> int:
        """Dimensions of the embeddings."""
        return len(self.tensors["standardizer.mean"])

    @torch.no_grad()
    def _latents(self, embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
        checked = check_embeddings(embeddings, dim=self.dim)
        return torch.cat([self._network.encode(x_BD) for x_BD in blocks(checked)]).numpy()

    def encode(self, embeddings: NDArray[np.floating]) -> Codes:
        """Return the codes `(N, L)`: the residual walk over the encoder's latents."""
        return residual.encode(self._latents(embeddings), self.codebooks)

    @torch.no_grad()
    def decode(self, codes: NDArray[np.integer]) -> Embeddings:
        """Return the decoder's embeddings `(N, D)` of the sums of codewords."""
        sums_NH = residual.decode(codes, self.codebooks)
        decoded = [self._network.decode(sums_BH) for sums_BH in blocks(sums_NH)]
        return torch.cat(decoded).numpy() if decoded else np.zeros((0, self.dim), np.float32)

    def last_level_distances(
        self, embeddings: NDArray[np.floating], codes: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Return squared distances `(N, K)` in latent space."""
        return residual.last_level_distances(self._latents(embeddings), codes, self.codebooks)
