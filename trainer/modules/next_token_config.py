"""Settings of the generative objective, and which features it may look at (TRM 3.3)."""

from __future__ import annotations

from dataclasses import dataclass


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
