"""RankMixer's sparse mixture of experts: every token has experts and routers of its own.

Legend: B impressions, T tokens, D token dim, E experts of a token, K hidden dim of an expert,
C rows that the busiest expert sees.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from trainer.modules.per_token import PerTokenLinear

MoETraining = Literal["dense", "sparse"]
"""`dense`: a softmax router trains every expert beside the sparse one (DTSI); `sparse`: ReLU alone.
"""
DEAD_BELOW = 1e-4
"""An expert that fewer than one in ten thousand rows reach counts as dead."""
_MEMORY = 0.99


class Router(PerTokenLinear):
    """One score an expert and token; at first every expert is open to every row."""

    def reset_parameters(self) -> None:
        """As a linear layer, with a bias of 1 / E."""
        super().reset_parameters()
        nn.init.constant_(self.bias_TO, 1 / self.bias_TO.shape[1])


class PerTokenMoE(nn.Module):
    """The per-token network as a gated sum of E networks (RankMixer section 3.4).

    `v_t = sum_e G_te * expert_te(s_t)` with `G_te = ReLU(h(s_t))`: the number of open experts
    differs by token and row, and an l1 penalty on the gates, see :meth:`pop_penalty`, closes those
    that give little. With dense training and sparse inference (DTSI) there are two routers: in
    training each row goes, by a fair coin, through a softmax router without penalty, so that every
    expert keeps learning, or through the ReLU router, which alone is penalised and alone is left
    in evaluation. The paper does not say how the two share a training step; a coin for each row
    shows the ReLU router the very outputs that it will have to do with.

    In training all experts are computed as one batched product. In evaluation each expert
    computes the rows that its gate is open for, padded to the busiest expert's.

    Args:
        num_tokens: T.
        dim: D.
        hidden_dim: K.
        num_experts: E.
        training_mode: see :data:`MoETraining`.

    Shape:
        (B, T, D) -> (B, T, D).
    """

    open_share_TE: Tensor

    def __init__(
        self,
        *,
        num_tokens: int,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        training_mode: MoETraining,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.router = Router(num_tokens, dim, num_experts)
        self.dense_router = (
            Router(num_tokens, dim, num_experts) if training_mode == "dense" else None
        )
        self.weight_in_TDEK = nn.Parameter(torch.empty(num_tokens, dim, num_experts, hidden_dim))
        self.bias_in_TEK = nn.Parameter(torch.empty(num_tokens, num_experts, hidden_dim))
        self.weight_out_TEKD = nn.Parameter(torch.empty(num_tokens, num_experts, hidden_dim, dim))
        self.bias_out_TED = nn.Parameter(torch.empty(num_tokens, num_experts, dim))
        self.register_buffer("open_share_TE", torch.ones(num_tokens, num_experts))
        self._penalty: Tensor | None = None
        self._open_now_TE: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each expert as two `torch.nn.Linear` would be."""
        for weight, bias, fan_in in (
            (self.weight_in_TDEK, self.bias_in_TEK, self.weight_in_TDEK.shape[1]),
            (self.weight_out_TEKD, self.bias_out_TED, self.weight_out_TEKD.shape[2]),
        ):
            bound = 1 / math.sqrt(fan_in)
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Route, compute, sum."""
        gate_BTE = self.router(x_BTD).relu()
        if not self.training:
            return self._sparse(x_BTD.transpose(0, 1), gate_BTE.transpose(0, 1)).transpose(0, 1)
        self._penalty = gate_BTE.float().sum(dim=(1, 2)).mean()
        self._open_now_TE = (gate_BTE.detach() > 0).float().mean(dim=0)
        if self.dense_router is not None:
            dense_BTE = self.dense_router(x_BTD).softmax(dim=2).to(gate_BTE.dtype)
            coin_B11 = torch.rand(x_BTD.shape[0], 1, 1, device=x_BTD.device) < 0.5
            gate_BTE = torch.where(coin_B11, dense_BTE, gate_BTE)
        return self._dense(x_BTD.transpose(0, 1), gate_BTE.transpose(0, 1)).transpose(0, 1)

    def every_expert(self, x_BTD: Tensor) -> Tensor:
        """What evaluation gives, by all experts for all rows; faster where most gates are open."""
        gate_TBE = self.router(x_BTD).relu().transpose(0, 1)
        return self._dense(x_BTD.transpose(0, 1), gate_TBE).transpose(0, 1)

    def pop_penalty(self) -> tuple[Tensor, Tensor]:
        """Sum of the ReLU gates (mean over rows, L_reg) and each expert's open share, once.

        Raises:
            RuntimeError: when no training forward pass came before.
        """
        if self._penalty is None or self._open_now_TE is None:
            raise RuntimeError(
                "the penalty of a mixture of experts belongs to a training forward pass; "
                "there was none since the last call"
            )
        found = self._penalty, self._open_now_TE
        self._penalty = self._open_now_TE = None
        return found

    def remember(self, open_TE: Tensor) -> None:
        """Follow the share of rows that each expert is open for, as a running mean."""
        self.open_share_TE.lerp_(open_TE, 1 - _MEMORY)

    @property
    def num_dead(self) -> int:
        """Experts that hardly any row reached lately."""
        return int((self.open_share_TE < DEAD_BELOW).sum())

    def _dense(self, x_TBD: Tensor, gate_TBE: Tensor) -> Tensor:
        """All experts side by side: their gates scale the hidden layer, one product sums them."""
        hidden_TBEK = gelu(
            torch.baddbmm(
                self.bias_in_TEK.flatten(1).unsqueeze(1), x_TBD, self.weight_in_TDEK.flatten(2)
            )
        ).unflatten(2, (self.num_experts, -1))
        gated_TBH = (hidden_TBEK * gate_TBE.unsqueeze(3)).flatten(2)
        return torch.baddbmm(
            torch.bmm(gate_TBE, self.bias_out_TED), gated_TBH, self.weight_out_TEKD.flatten(1, 2)
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _sparse(self, x_TBD: Tensor, gate_TBE: Tensor) -> Tensor:
        """Each expert computes its open rows alone; exact, since none is dropped."""
        num_tokens, num_rows, dim = x_TBD.shape
        gate_XB = gate_TBE.transpose(1, 2).flatten(0, 1)
        busiest = int((gate_XB > 0).sum(dim=1).amax()) if num_rows else 0
        gate_XC, row_XC = gate_XB.topk(busiest, dim=1)
        token_X1 = torch.arange(num_tokens, device=x_TBD.device).repeat_interleave(
            self.num_experts
        )[:, None]
        at_N = (token_X1 * num_rows + row_XC).flatten()
        rows_XCD = x_TBD.reshape(-1, dim)[at_N].view(*row_XC.shape, dim)
        hidden_XCK = gelu(
            torch.baddbmm(
                self.bias_in_TEK.flatten(0, 1).unsqueeze(1),
                rows_XCD,
                self.weight_in_TDEK.transpose(1, 2).flatten(0, 1),
            )
        )
        out_XCD = torch.baddbmm(
            self.bias_out_TED.flatten(0, 1).unsqueeze(1),
            hidden_XCK,
            self.weight_out_TEKD.flatten(0, 1),
        )
        out_XCD = out_XCD * gate_XC.unsqueeze(2).to(out_XCD.dtype)
        summed = out_XCD.new_zeros(num_tokens * num_rows, dim)
        return summed.index_add(0, at_N, out_XCD.flatten(0, 1)).view(num_tokens, num_rows, dim)
