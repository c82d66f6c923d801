"""OPMQ: orthogonal, parallel, multi-expert quantization (STORE section 2.1, Eq. 1-5).

Shape suffixes: N items, B items of a batch, D dimensions, H latent dimensions, E experts (their
number is `num_levels`), K codes of each expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

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
    check_codes,
    check_embeddings,
    check_enough_items,
)
from tokenization.kmeans import fit_kmeans

_STARTING_ITEMS = 100_000  # that the experts' first directions are taken from

CodewordRule = Literal["ema", "codebook_loss"]
"""How codewords move, since Eq. 4 stops their gradient: `ema`, to the running mean of the latents
that chose them; `codebook_loss`, by the gradient of `|sg(z_i) - s_i|^2`."""


@dataclass(frozen=True, kw_only=True)
class OPMQ:
    """Settings of OPMQ. The paper's sizes: (3, 16) offline, (32, 300) in production.

    Args:
        num_levels: experts, one code each.
        num_codes: codewords of an expert, K.
        latent_dim: H, outputs of an expert.
        hidden: widths of the shared decoder's hidden layers.
        codewords: how codewords move, see `CodewordRule`.
        ema_decay: share of the running mean that stays at each step, under `ema`.
        commitment: weight of `|z_i - sg(s_i)|^2`, which keeps latents near their codewords; not in
            the paper, where nothing does (0 leaves it out).
        orthogonality: weight of Eq. 5.
        num_epochs: passes over the items.
        batch_size: items a step.
        learning_rate: of AdamW, with cosine decay.
        seed: of weights, order and draws.
    """

    kind: ClassVar[str] = "opmq"

    num_levels: int = 3
    num_codes: int = 16
    latent_dim: int = 64
    hidden: tuple[int, ...] = (256,)
    codewords: CodewordRule = "ema"
    ema_decay: float = 0.95
    commitment: float = 0.25
    orthogonality: float = 1.0
    num_epochs: int = 50
    batch_size: int = 1024
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("num_levels", "num_codes", "latent_dim", "num_epochs", "batch_size"):
            check_at_least(getattr(self, name), 1, name=name)
        check_at_least(self.seed, 0, name="seed")
        if self.codewords not in ("ema", "codebook_loss"):
            raise ValueError(
                f"codewords: expected 'ema' or 'codebook_loss', found {self.codewords!r}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected 0 to below 1, found {self.ema_decay}")
        if min(self.commitment, self.orthogonality) < 0 or self.learning_rate <= 0:
            raise ValueError(
                f"commitment, orthogonality and learning_rate: expected at least 0, 0 and above 0, "
                f"found {self.commitment}, {self.orthogonality} and {self.learning_rate}"
            )

    def fit(self, embeddings: NDArray[np.floating]) -> OPMQTokenizer:
        """Return the tokenizer trained on `embeddings` `(N, D)`.

        Raises:
            ValueError: embeddings that `check_embeddings` refuses, or fewer items than codes.
        """
        checked = check_embeddings(embeddings)
        check_enough_items(len(checked), self.num_codes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = OPMQNetwork(checked.shape[1], self)
            network.standardizer.measure(checked)
            _start_experts(network, checked)
            _start_codebooks(network, checked, self)
            _train(network, checked, self)
        return OPMQTokenizer(config=self, tensors=network_tensors(network))


class OPMQNetwork(nn.Module):
    """Experts, their codebooks and the shared decoder.

    Args:
        dim: D.
        config: sizes.
    """

    def __init__(self, dim: int, config: OPMQ) -> None:
        super().__init__()
        self.config = config
        self.standardizer = Standardizer(dim)
        self.experts = nn.Parameter(
            torch.randn(config.num_levels, dim, config.latent_dim) / dim**0.5
        )
        self.biases = nn.Parameter(torch.zeros(config.num_levels, config.latent_dim))
        self.codebooks = nn.Parameter(
            torch.zeros(config.num_levels, config.num_codes, config.latent_dim),
            requires_grad=config.codewords == "codebook_loss",
        )
        self.decoder = perceptron((config.latent_dim, *config.hidden, dim))

    def encode(self, x_BD: Tensor) -> Tensor:
        """Embeddings to the experts' latents `(E, B, H)` (Eq. 2)."""
        return torch.matmul(self.standardizer(x_BD), self.experts) + self.biases.unsqueeze(1)

    def decode(self, sum_BH: Tensor) -> Tensor:
        """Sums of codewords to embeddings `(B, D)`."""
        return self.standardizer.inverse(self.decoder(sum_BH))

    def choose(self, z_EBH: Tensor) -> Tensor:
        """Each expert's nearest codeword, int64 `(E, B)` (Eq. 3)."""
        pairs = zip(z_EBH, self.codebooks.detach(), strict=True)
        return torch.stack([nearest_codeword(z_BH, s_KH) for z_BH, s_KH in pairs])

    def orthogonality(self) -> Tensor:
        """`|V V^T - I|_F^2` over the flattened, normalised expert matrices (Eq. 5)."""
        v_EW = nn.functional.normalize(self.experts.flatten(1), dim=1)
        return (v_EW @ v_EW.T - torch.eye(len(v_EW))).square().sum()

    def forward(self, x_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of a batch, codes `(E, B)` and latents `(E, B, H)`."""
        config = self.config
        z_EBH = self.encode(x_BD)
        codes_EB = self.choose(z_EBH.detach())
        rows_E1 = torch.arange(config.num_levels).unsqueeze(1)
        s_EBH = self.codebooks[rows_E1, codes_EB]
        straight_EBH = z_EBH + (s_EBH - z_EBH).detach()
        error_BD = self.decoder(straight_EBH.sum(dim=0)) - self.standardizer(x_BD)
        loss = error_BD.square().sum(dim=1).mean()  # Eq. 4
        loss = loss + config.orthogonality * self.orthogonality()
        pull = (z_EBH - s_EBH.detach()).square().sum(dim=(0, 2)).mean()
        loss = loss + config.commitment * pull
        if config.codewords == "codebook_loss":
            loss = loss + (z_EBH.detach() - s_EBH).square().sum(dim=(0, 2)).mean()
        return loss, codes_EB, z_EBH.detach()


class RunningMeans:
    """Moves codewords to exponential means of the latents that chose them.

    Args:
        codebooks: `(E, K, H)`, moved in place.
        decay: share that stays at each step.
    """

    def __init__(self, codebooks: Tensor, decay: float) -> None:
        self.decay = decay
        self._codebooks = codebooks
        self._counts_EK = torch.ones(codebooks.shape[:2])
        self._sums_EKH = codebooks.clone()

    def step(self, codes_EB: Tensor, z_EBH: Tensor) -> None:
        """Take in a batch."""
        for expert, (codes_B, z_BH) in enumerate(zip(codes_EB, z_EBH, strict=True)):
            counts_K = torch.bincount(codes_B, minlength=self._counts_EK.shape[1]).float()
            sums_KH = torch.zeros_like(self._sums_EKH[expert]).index_add_(0, codes_B, z_BH)
            self._counts_EK[expert].lerp_(counts_K, 1 - self.decay)
            self._sums_EKH[expert].lerp_(sums_KH, 1 - self.decay)
        counts_EK1 = self._counts_EK.clamp(min=1e-6).unsqueeze(2)
        self._codebooks.copy_(self._sums_EKH / counts_EK1)

    def restart(self, expert: int, codes: Tensor) -> None:
        """Forget the past of codes whose codewords were moved by hand."""
        self._counts_EK[expert, codes] = 1.0
        self._sums_EKH[expert, codes] = self._codebooks[expert, codes]


@torch.no_grad()
def _start_experts(network: OPMQNetwork, embeddings: Embeddings) -> None:
    """Give each expert principal directions of its own, dealt out so that variances are balanced.

    Eq. 5 wants experts that are orthogonal. Random matrices nearly are when flattened, yet each of
    them shows the same distances between items, so that all experts cut the items alike and codes
    side by side tell little more than one of them. Directions of their own are orthogonal and tell
    different things; latents beyond an expert's share of the directions start at zero.
    """
    sample = torch.tensor(embeddings[:: max(1, len(embeddings) // _STARTING_ITEMS)])
    x_ND = network.standardizer(sample)
    directions_DD = torch.linalg.eigh(x_ND.T @ x_ND).eigenvectors.flip(1)  # strongest first
    num_experts, dim, latent_dim = network.experts.shape
    network.experts[:dim] = 0.0  # more experts than dimensions: the others stay random
    for rank in range(min(dim, num_experts * latent_dim)):
        lap, place = divmod(rank, num_experts)
        expert = place if lap % 2 == 0 else num_experts - 1 - place
        network.experts[expert, :, lap] = directions_DD[:, rank]


@torch.no_grad()
def _start_codebooks(network: OPMQNetwork, embeddings: Embeddings, config: OPMQ) -> None:
    """Start each expert's codewords with k-means of its untrained latents."""
    rows = np.random.default_rng(config.seed).permutation(len(embeddings))
    sample = embeddings[np.sort(rows[: max(64 * config.num_codes, 1024)])]
    z_ENH = torch.cat([network.encode(x_BD) for x_BD in blocks(sample)], dim=1)
    for expert, z_NH in enumerate(z_ENH):
        codewords = fit_kmeans(
            z_NH.numpy(), num_codes=config.num_codes, num_iterations=10, seed=config.seed + expert
        )
        network.codebooks[expert] = torch.from_numpy(codewords)


def _train(network: OPMQNetwork, embeddings: Embeddings, config: OPMQ) -> None:
    generator = torch.Generator().manual_seed(config.seed)
    means = RunningMeans(network.codebooks.data, config.ema_decay)
    counts_EK = torch.zeros(config.num_levels, config.num_codes, dtype=torch.int64)
    recent: list[Tensor] = []

    def loss(x_BD: Tensor) -> Tensor:
        value, codes_EB, z_EBH = network(x_BD)
        for expert, codes_B in enumerate(codes_EB):
            counts_EK[expert] += torch.bincount(codes_B, minlength=config.num_codes)
        if config.codewords == "ema":
            means.step(codes_EB, z_EBH)
        before = recent[0] if recent else None
        recent[:] = [recent_points(before, z_EBH, config.num_codes, dim=1)]
        return value

    @torch.no_grad()
    def after_epoch(epoch: int) -> None:
        if epoch > config.num_epochs * 3 // 4:
            return
        for expert in range(config.num_levels):
            dead = torch.nonzero(counts_EK[expert] == 0).squeeze(1)
            revive_dead_codes(
                network.codebooks[expert], counts_EK[expert], recent[0][expert], generator
            )
            means.restart(expert, dead)
        counts_EK.zero_()

    train(
        loss,
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        embeddings,
        num_epochs=config.num_epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        generator=generator,
        after_epoch=after_epoch,
    )


class OPMQTokenizer(SemanticTokenizer):
    """A trained OPMQ; `codebooks` `(E, K, H)` lie in the experts' latent spaces."""

    kind = OPMQ.kind

    def __init__(self, *, config: TokenizerConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(config=config, tensors=tensors)
        assert isinstance(config, OPMQ)
        self._network = OPMQNetwork(self.dim, config)
        load_network(self._network, self.tensors)

    @property
    def dim(self) -> int:
        """Dimensions of the embeddings."""
        return len(self.tensors["standardizer.mean"])

    @torch.no_grad()
    def encode(self, embeddings: NDArray[np.floating]) -> Codes:
        """Return each expert's code, int32 `(N, E)`."""
        checked = check_embeddings(embeddings, dim=self.dim)
        codes = [
            np.stack(
                [
                    residual.nearest(z_BH.numpy(), codewords)
                    for z_BH, codewords in zip(
                        self._network.encode(x_BD), self.codebooks, strict=True
                    )
                ],
                axis=1,
            )
            for x_BD in blocks(checked)
        ]
        return np.concatenate(codes)

    @torch.no_grad()
    def decode(self, codes: NDArray[np.integer]) -> Embeddings:
        """Return the decoder's embeddings `(N, D)` of the sums of codewords.

        Experts without a column contribute the mean of their codewords.
        """
        check_codes(codes, num_levels=self.num_levels, num_codes=self.num_codes)
        rest_H = self.codebooks[codes.shape[1] :].mean(axis=1).sum(axis=0)
        sums_NH = residual.decode(codes, self.codebooks) + rest_H.astype(np.float32)
        decoded = [self._network.decode(sums_BH) for sums_BH in blocks(sums_NH)]
        return torch.cat(decoded).numpy() if decoded else np.zeros((0, self.dim), np.float32)

    @torch.no_grad()
    def last_level_distances(
        self, embeddings: NDArray[np.floating], codes: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Return squared distances `(N, K)` of the last expert's latents to its codewords."""
        checked = check_embeddings(embeddings, dim=self.dim)
        z_NH = torch.cat([self._network.encode(x_BD)[-1] for x_BD in blocks(checked)]).numpy()
        squares_K = np.square(self.codebooks[-1]).sum(axis=1)
        distances: NDArray[np.float32] = squares_K - 2.0 * (z_NH @ self.codebooks[-1].T)
        return distances
