"""The generative objective: predict a positive item's gen-tokens from query and user (TRM 3.3).

Legend: B impressions, P positives among them, C context tokens, L levels, K codes of a level,
d table dim, D dim of the transformer, F dense features, Q bins, S sampled codes, N tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainer.modules.recent_history import RecentHistory
from trainer.modules.semi_causal import KeyValues, SemiCausalBlock, semi_causal_mask


@dataclass(frozen=True, kw_only=True)
class ContextRoles:
    """Which features are X_Q and X_U of TRM section 3.3.

    What describes the item, or user and item together, is in neither: a context must not tell what
    is to be generated.

    Args:
        query_features: pooled features of the request.
        user_features: pooled features of the user.
        query_dense: columns of the dense features that describe the request.
        user_dense: columns of the dense features that describe the user.
        tasks: labels in their order.
    """

    query_features: tuple[str, ...]
    user_features: tuple[str, ...]
    query_dense: tuple[int, ...]
    user_dense: tuple[int, ...]
    tasks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """The auxiliary transformer and its loss (TRM Eq. 6, 7; defaults are the paper's).

    Args:
        dim: D.
        num_query_tokens: N_q, context tokens made of the request's features.
        num_user_tokens: N_u, context tokens made of the user's features and history.
        num_layers: blocks.
        num_heads: attention heads of a block.
        expansion: hidden dim of a block's feed-forward network over D.
        weight: lambda. At 0 the loss and the parameters that it alone trains are left out and the
            transformer stays (Table 3, "w/o NTP loss"), which makes sense with `feeds_tower` only.
        num_sampled: codes a level that the softmax is estimated with; None for all codes. Worth it
            where codebooks are large.
        positive_task: label that says which impressions are positive; None for the main task.
        history_heads: vectors that the history is summed up in for the user's tokens beside the
            plain sum, some of them with an eye on its latest items (`RecentHistory`).
        feeds_tower: the tower also reads the mean of the transformer's context tokens. The paper
            does not say that it does: its loss alone connects the two. Scoring costs more then.
    """

    dim: int
    num_query_tokens: int = 2
    num_user_tokens: int = 2
    num_layers: int = 4
    num_heads: int = 4
    expansion: float = 4.0
    weight: float = 0.1
    num_sampled: int | None = None
    positive_task: str | None = None
    history_heads: int = 2
    feeds_tower: bool = False

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: naming the field, what was found and what is expected.
        """
        for name in ("num_query_tokens", "num_user_tokens", "history_heads"):
            if getattr(self, name) < 0:
                raise ValueError(f"next_token.{name} is {getattr(self, name)}, expected 0 or more")
        if self.num_context < 1:
            raise ValueError(
                "next_token: num_query_tokens and num_user_tokens are both 0; without a context "
                "there is nothing to generate from"
            )
        if self.history_heads and not self.num_user_tokens:
            raise ValueError(
                f"next_token.history_heads is {self.history_heads}, but num_user_tokens is 0, so "
                "nothing would read them; set history_heads=0"
            )
        if self.num_layers < 1:
            raise ValueError(f"next_token.num_layers is {self.num_layers}, expected at least 1")
        if self.dim % self.num_heads:
            raise ValueError(
                f"next_token.dim ({self.dim}) must be a multiple of num_heads ({self.num_heads})"
            )
        if self.weight < 0:
            raise ValueError(f"next_token.weight is {self.weight}, expected 0 or more")
        if self.weight == 0 and not self.feeds_tower:
            raise ValueError(
                "next_token.weight is 0 and feeds_tower is False, so the transformer would neither "
                "be trained nor read; set next_token=None, or feeds_tower=True for the arm that "
                "keeps the transformer without its loss"
            )
        if self.weight == 0 and self.num_sampled is not None:
            raise ValueError(
                f"next_token.num_sampled is {self.num_sampled} but weight is 0: there is no loss "
                "to sample for; set num_sampled=None"
            )

    @property
    def num_context(self) -> int:
        """C = N_q + N_u."""
        return self.num_query_tokens + self.num_user_tokens

    def positive_column(self, tasks: tuple[str, ...]) -> int:
        """Column of the label that says which impressions are positive.

        Raises:
            ValueError: when the task is none of `tasks`.
        """
        if self.positive_task is None:
            return 0
        if self.positive_task not in tasks:
            raise ValueError(
                f"next_token.positive_task is {self.positive_task!r}, but the labels are "
                f"{', '.join(tasks)}"
            )
        return tasks.index(self.positive_task)

    def check(self, roles: ContextRoles, *, num_codes: int) -> None:
        """Check against the features and the codebooks.

        Args:
            roles: of the schema's features.
            num_codes: K.

        Raises:
            ValueError: naming the field, what was found and what is expected.
        """
        self.positive_column(roles.tasks)
        if self.num_query_tokens and not (roles.query_features or roles.query_dense):
            raise ValueError(
                f"next_token.num_query_tokens is {self.num_query_tokens}, but no feature of the "
                "schema has entity 'request'; set num_query_tokens=0"
            )
        if self.num_sampled is not None and not 1 <= self.num_sampled < num_codes:
            raise ValueError(
                f"next_token.num_sampled is {self.num_sampled}, expected 1 to {num_codes - 1}: a "
                f"level has {num_codes} codes, and None takes them all"
            )


class EncodedContext(NamedTuple):
    """Context tokens after the transformer.

    Attributes:
        output_BCD: of the last block.
        past: keys and values of each block, which gen-tokens read.
    """

    output_BCD: Tensor
    past: list[KeyValues]

    def take(self, rows: Tensor) -> EncodedContext:
        """Those of some rows, in the order of `rows` (int64)."""
        return EncodedContext(
            self.output_BCD.index_select(0, rows), [past.take(rows) for past in self.past]
        )


class NextToken(nn.Module):
    """Query and user -> context tokens -> semi-causal transformer -> codes, level by level.

    After the context stand a start token and the gen-tokens of the levels before the one that is
    predicted, as the item side's own table embeds them: the loss trains these embeddings, the
    history's and the user's beside the tower that shares them.

    Args:
        config: sizes.
        roles: of the features.
        pooled_dims: dims of the pooled features.
        num_bins: Q, values that a dense feature is encoded as.
        history_dim: width of the history's plain sum, and of an item's vector.
        num_histories: kinds of feedback.
        token_dim: d.
        num_levels: L.
        num_codes: K.
    """

    def __init__(
        self,
        config: NextTokenConfig,
        *,
        roles: ContextRoles,
        pooled_dims: Mapping[str, int],
        num_bins: int,
        history_dim: int,
        num_histories: int,
        token_dim: int,
        num_levels: int,
        num_codes: int,
    ) -> None:
        super().__init__()
        config.check(roles, num_codes=num_codes)
        self.config = config
        self.roles = roles
        self.num_levels = num_levels
        self.num_codes = num_codes
        self.positive_column = config.positive_column(roles.tasks)
        query_width = sum(pooled_dims[name] for name in roles.query_features)
        query_width += num_bins * len(roles.query_dense)
        user_width = sum(pooled_dims[name] for name in roles.user_features)
        user_width += num_bins * len(roles.user_dense) + history_dim * (1 + config.history_heads)
        widths = ((config.num_query_tokens, query_width), (config.num_user_tokens, user_width))
        self.query_project, self.user_project = (
            nn.Linear(width, num_tokens * config.dim) if num_tokens else None
            for num_tokens, width in widths
        )
        self.history = (
            RecentHistory(history_dim, num_kinds=num_histories, num_heads=config.history_heads)
            if config.history_heads
            else None
        )
        self.context_norm = nn.LayerNorm(config.dim)
        self.blocks = nn.ModuleList(
            SemiCausalBlock(dim=config.dim, num_heads=config.num_heads, expansion=config.expansion)
            for _ in range(config.num_layers)
        )
        self.tokens = (
            GenTokens(
                dim=config.dim, token_dim=token_dim, num_levels=num_levels, num_codes=num_codes
            )
            if config.weight
            else None
        )

    def positives(self, labels_BN: Tensor) -> Tensor:
        """Rows whose item is to be generated, int64 (P,)."""
        return (labels_BN[:, self.positive_column] > 0.5).nonzero().squeeze(1)

    def context(
        self,
        by_feature: Mapping[str, Tensor],
        dense_BFQ: Tensor,
        history_BD: Tensor,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Project X_Q and X_U to context tokens (B, C, D), or (P, C, D) of `rows`.

        Args:
            by_feature: pooled embeddings.
            dense_BFQ: encoded dense features.
            history_BD: what the history is summed up in, without looking at the candidate: its
                plain sum, and what `history` makes of it.
            rows: positions to take, int64 (P,); None for all.
        """
        roles, tokens = self.roles, []
        for project, names, columns, others in (
            (self.query_project, roles.query_features, roles.query_dense, []),
            (self.user_project, roles.user_features, roles.user_dense, [history_BD]),
        ):
            if project is None:
                continue
            parts = [by_feature[name] for name in names]
            parts += [dense_BFQ[:, list(columns)].flatten(1), *others]
            x_BF = torch.cat([part.float() for part in parts], dim=1)
            if rows is not None:
                x_BF = x_BF.index_select(0, rows)
            tokens.append(project(x_BF).unflatten(1, (-1, self.config.dim)))
        return self.context_norm(torch.cat(tokens, dim=1))

    def encode(self, context_BCD: Tensor) -> EncodedContext:
        """Pass the context, all of it mutually visible, through the blocks."""
        past = []
        for block in self.blocks:
            context_BCD, seen = block(context_BCD)
            past.append(seen)
        return EncodedContext(context_BCD, past)

    def decode(self, x_BTD: Tensor, past: list[KeyValues]) -> tuple[Tensor, list[KeyValues]]:
        """Pass tokens that follow `past`, causally, through the blocks.

        Returns:
            (B, T, D), and keys and values of everything so far.
        """
        num_tokens, num_past = x_BTD.shape[1], past[0].key_BHTh.shape[2]
        mask = semi_causal_mask(num_past, num_tokens, device=x_BTD.device)[num_past:]
        seen = []
        for block, before in zip(self.blocks, past, strict=True):
            x_BTD, after = block(x_BTD, mask, before)
            seen.append(after)
        return x_BTD, seen

    def forward(self, context: EncodedContext, gen_PLd: Tensor, codes_PL: Tensor) -> Tensor:
        """Cross-entropy summed over positives and levels (Eq. 6 before its expectation); scalar.

        Args:
            context: of the positives.
            gen_PLd: embeddings of their items' gen-tokens (teacher forcing).
            codes_PL: int64 codes of their items.
        """
        assert self.tokens is not None
        hidden_PLD, _ = self.decode(self.tokens.embed(gen_PLd[:, :-1]), context.past)
        hidden_LPD = self.tokens.out_norm(hidden_PLD).transpose(0, 1)
        if self.config.num_sampled is None:
            logits_LPK = self.tokens.logits(hidden_LPD)
            return cross_entropy(
                logits_LPK.flatten(0, 1).float(), codes_PL.T.flatten(), reduction="sum"
            )
        return sampled_cross_entropy(
            hidden_LPD,
            codes_PL.T,
            self.tokens.weight_LKD,
            self.tokens.bias_LK,
            num_sampled=self.config.num_sampled,
        )


class GenTokens(nn.Module):
    """What the generative loss alone trains: the tokens' way in, and one head a level.

    Args:
        dim: D.
        token_dim: d.
        num_levels: L.
        num_codes: K.
    """

    def __init__(self, *, dim: int, token_dim: int, num_levels: int, num_codes: int) -> None:
        super().__init__()
        self.project = nn.Linear(token_dim, dim)
        self.in_norm = nn.LayerNorm(dim)
        self.position = nn.Embedding(num_levels, dim)
        self.out_norm = nn.LayerNorm(dim)
        self.weight_LKD = nn.Parameter(torch.empty(num_levels, num_codes, dim))
        self.bias_LK = nn.Parameter(torch.empty(num_levels, num_codes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each level's head as `torch.nn.Linear` would."""
        bound = 1 / math.sqrt(self.weight_LKD.shape[2])
        nn.init.uniform_(self.weight_LKD, -bound, bound)
        nn.init.uniform_(self.bias_LK, -bound, bound)

    def start(self, num_rows: int) -> Tensor:
        """The start token of each row (B, 1, D): the first position, with nothing in it."""
        return self.position.weight[0].expand(num_rows, 1, -1)

    def follow(self, gen_BTd: Tensor, *, level: int) -> Tensor:
        """Inputs (B, T, D) that stand for the gen-tokens of level `level` and those after it."""
        num_tokens = gen_BTd.shape[1]
        position_TD = self.position.weight[level + 1 : level + 1 + num_tokens]
        return self.in_norm(self.project(gen_BTd)) + position_TD

    def embed(self, gen_BTd: Tensor) -> Tensor:
        """Start token and gen-tokens from level 0 on (B, 1 + T, D)."""
        return torch.cat([self.start(gen_BTd.shape[0]), self.follow(gen_BTd, level=0)], dim=1)

    def logits(self, hidden_LPD: Tensor) -> Tensor:
        """Logits of every code (L, P, K) from normed outputs."""
        return torch.baddbmm(self.bias_LK.unsqueeze(1), hidden_LPD, self.weight_LKD.transpose(1, 2))

    def level_logits(self, out_BD: Tensor, level: int) -> Tensor:
        """Logits (B, K) of one level from outputs of the last block."""
        return nn.functional.linear(
            self.out_norm(out_BD), self.weight_LKD[level], self.bias_LK[level]
        )


def sampled_cross_entropy(
    hidden_LPD: Tensor,
    codes_LP: Tensor,
    weight_LKD: Tensor,
    bias_LK: Tensor,
    *,
    num_sampled: int,
) -> Tensor:
    """Cross-entropy with the softmax's denominator estimated from a sample; summed, scalar.

    S codes a level are drawn with replacement, half of the probability even over the codes and
    half as the batch's own codes are. Each draw's logit is lowered by log(S q) (log-Q correction)
    and draws of the right code are left out, so the denominator's expectation is the exact one.

    Args:
        hidden_LPD: normed outputs.
        codes_LP: int64 right codes.
        weight_LKD: heads.
        bias_LK: heads' biases.
        num_sampled: S.
    """
    num_levels, num_codes, _ = weight_LKD.shape
    num_rows = codes_LP.shape[1]
    counts_LK = torch.zeros(num_levels, num_codes, device=codes_LP.device)
    counts_LK.scatter_add_(1, codes_LP, torch.ones_like(codes_LP, dtype=counts_LK.dtype))
    share = 0.5 if num_rows else 0.0
    proposal_LK = (1 - share) / num_codes + share * counts_LK / max(1, num_rows)
    drawn_LS = torch.multinomial(proposal_LK, num_sampled, replacement=True)
    level_L1 = torch.arange(num_levels, device=codes_LP.device).unsqueeze(1)
    right_LP = (hidden_LPD * weight_LKD[level_L1, codes_LP]).sum(-1).float()
    right_LP = right_LP + bias_LK[level_L1, codes_LP]
    correction_LS = (num_sampled * proposal_LK.gather(1, drawn_LS)).log()
    drawn_LPS = torch.bmm(hidden_LPD, weight_LKD[level_L1, drawn_LS].transpose(1, 2)).float()
    drawn_LPS = drawn_LPS + (bias_LK.gather(1, drawn_LS) - correction_LS).unsqueeze(1)
    drawn_LPS = drawn_LPS.masked_fill(drawn_LS.unsqueeze(1) == codes_LP.unsqueeze(2), float("-inf"))
    total_LP = torch.cat([right_LP.unsqueeze(2), drawn_LPS], dim=2).logsumexp(2)
    return (total_LP - right_LP).sum()
