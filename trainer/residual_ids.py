"""Items that keep a row in a table of IDs beside tokens, and whether they still are those.

They are the items with most impressions of the training part. Another log, or one that grew, gives
others, and row n would belong to another item than it was trained for.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import Dataset
from trainer.data.item_features import ItemFeatures
from trainer.experiment import Experiment
from trainer.modules.hybrid_tokens import ITEM_ID
from trainer.modules.parallel_tokens import TokenItemConfig
from trainer.stored_state import StoredState

RESIDUAL_IDS = "residual_ids"
"""Name in a checkpoint's state."""


def residual_ids(
    experiment: Experiment, dataset: Dataset, features: ItemFeatures
) -> NDArray[np.int64] | None:
    """Ids of the items that keep a row, in the order of rows.

    None for models without such a table, and for managed ones, whose map is in the checkpoint.
    """
    item, table = experiment.model.item, experiment.item_tables.get(ITEM_ID)
    if not isinstance(item, TokenItemConfig) or table is None or table.managed is not None:
        return None
    return dataset.item_ids[features.features[ITEM_ID].lengths > 0]


def digest_of(ids: NDArray[np.int64] | None) -> str | None:
    """What tells them apart in a checkpoint."""
    if ids is None:
        return None
    return hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest()


def check_residual_ids(ids: NDArray[np.int64] | None, checkpoint: StoredState) -> None:
    """Check that rows belong to the items that they were trained for.

    Raises:
        ValueError: when they don't.
    """
    stored, now = checkpoint.state.get(RESIDUAL_IDS), digest_of(ids)
    if stored is not None and now is not None and stored != now:
        raise ValueError(
            f"{checkpoint.path}: its rows of item IDs belong to the items with most impressions of "
            "another training part than the log has now; cut the log as it was (data.split by "
            "times), train anew, or use managed rows, which follow a log that grows"
        )
