"""The generative objective: predict a positive item's gen-tokens from query and user (TRM 3.3).

Legend: B impressions, P positives among them, C context tokens, T tokens, L levels, K codes of a
level, d table dim, D dim of the transformer, F dense features, Q bins, N tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainer.modules.gen_tokens import GenTokens
from trainer.modules.next_token_config import ContextRoles, NextTokenConfig
from trainer.modules.recent_history import RecentHistory
from trainer.modules.sampled_softmax import sampled_cross_entropy
from trainer.modules.semi_causal import KeyValues, SemiCausalBlock, semi_causal_mask


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
