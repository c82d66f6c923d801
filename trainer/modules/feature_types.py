"""Which features of a ranker are request-level and which are cross: DIG's Types II and III."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sharding.tables import TableSpec
from trainer.modules.next_token_config import ContextRoles


@dataclass(frozen=True, kw_only=True)
class FeatureTypes:
    """Types II and III of DIG's Table 1; those of Type I are in `LearnedTokensConfig`.

    Attributes:
        request: pooled feature of request or user -> dim.
        cross: every other pooled feature -> dim.
        request_dense: places of the dense features of request or user.
        cross_dense: places of the others.
    """

    request: Mapping[str, int]
    cross: Mapping[str, int]
    request_dense: tuple[int, ...]
    cross_dense: tuple[int, ...]

    @classmethod
    def divide(
        cls, tables: Sequence[TableSpec], *, num_dense: int, roles: ContextRoles | None
    ) -> FeatureTypes:
        """Divide the features of a model.

        Args:
            tables: of the pooled features, and others.
            num_dense: dense features.
            roles: which features are of request and user.

        Raises:
            ValueError: without roles, without a dense feature of request or user, or without any
                cross feature.
        """
        if roles is None:
            raise ValueError(
                "a DIG model divides features by whom they describe, but nothing says so; pass "
                "roles=experiment.context_roles"
            )
        dims = {f: t.dim for t in tables if t.pooling != "none" for f in t.features}
        request = (*roles.query_features, *roles.user_features)
        request_dense = sorted({*roles.query_dense, *roles.user_dense})
        found = cls(
            request={name: dims[name] for name in request},
            cross={name: dim for name, dim in dims.items() if name not in request},
            request_dense=tuple(request_dense),
            cross_dense=tuple(at for at in range(num_dense) if at not in request_dense),
        )
        if not found.cross and not found.cross_dense:
            raise ValueError(
                "DIG needs user-item cross features (Type III), but the schema has features of "
                "request and user alone; declare a feature with entity='cross'"
            )
        if not found.request_dense:
            raise ValueError(
                "DIG needs a dense feature of request or user, found none; declare one in the "
                "schema"
            )
        return found

    def cross_dim(self, num_bins: int) -> int:
        """Width of the cross features side by side (d_c), numbers in `num_bins` codes."""
        return sum(self.cross.values()) + num_bins * len(self.cross_dense)
