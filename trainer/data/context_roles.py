"""Which features of a schema may stand in the context that items are generated from."""

from __future__ import annotations

from trainer.data.schema import DatasetSchema
from trainer.modules.next_token_config import ContextRoles


def context_roles(schema: DatasetSchema) -> ContextRoles:
    """X_Q and X_U of TRM section 3.3: features of the request and of the user, and no others.

    Features of the item, and those of user and item together, would tell what is to be generated;
    the entity that the schema declares for each feature decides.
    """
    pooled = schema.pooled_features
    dense = schema.dense_features
    return ContextRoles(
        query_features=tuple(one.name for one in pooled if one.entity == "request"),
        user_features=tuple(one.name for one in pooled if one.entity == "user"),
        query_dense=tuple(at for at, one in enumerate(dense) if one.entity == "request"),
        user_dense=tuple(at for at, one in enumerate(dense) if one.entity == "user"),
        tasks=schema.labels,
    )
