"""How embeddings lie in space: norm variance over training, spectrum, effective rank.

TRM Figure 1 follows the variance of embedding norms of item IDs and tokens over training; A.1.5
says that token representations keep to fewer directions. Both are read from a run's checkpoints,
so they hold however the tables were sharded. Rows that training never looked up still hold their
initial values and are left out.

Legend: N rows, U items, d table dim, D item dim.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import JaggedTensor

from trainer.checkpoint import Checkpoints, read_state
from trainer.data.dataset import Dataset
from trainer.data.item_features import ItemFeatures
from trainer.data.ragged import Ragged
from trainer.experiment import Experiment
from trainer.metrics import Floats, Ints
from trainer.run_folder import RunFolder
from trainer.run_inputs import item_features, load_tokens
from trainer.stored_state import StoredState

ITEM_VECTOR = "item vector"
"""What the network makes of an item's embeddings; of one width for IDs and tokens."""


def norm_statistics(vectors_Nd: NDArray[np.floating]) -> dict[str, float]:
    """Mean, variance and relative spread (standard deviation over mean) of the rows' norms."""
    norms = np.linalg.norm(np.asarray(vectors_Nd, dtype=np.float64), axis=1)
    mean, variance = float(norms.mean()), float(norms.var())
    return {
        "norm_mean": mean,
        "norm_variance": variance,
        "norm_spread": variance**0.5 / mean if mean else 0.0,
    }


def spectrum(vectors_Nd: NDArray[np.floating]) -> Floats:
    """Share of the variance along each principal direction, falling; zeros for equal rows."""
    centred = np.asarray(vectors_Nd, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    energy = np.maximum(np.linalg.eigvalsh(centred.T @ centred)[::-1], 0.0)
    total = energy.sum()
    return energy / total if total else energy


def effective_rank(shares: Floats) -> float:
    """Exponential of the entropy of the spectrum: how many directions are in use."""
    held = shares[shares > 0]
    return float(np.exp(-(held * np.log(held)).sum())) if len(held) else 0.0


def measure_geometry(experiment: Experiment, run: RunFolder) -> dict[str, Any]:
    """Geometry of an experiment's item tables and item vectors at every checkpoint that it kept.

    Args:
        experiment: that was trained.
        run: its folder.

    Returns:
        `points`: one a checkpoint and table, with `step`, `samples`, `table` and
        `norm_statistics`; `final`: by table, `spectrum`, `effective_rank`, `dim` and `rows` of the
        last one.

    Raises:
        ValueError: when there is no checkpoint, a table is not in it, or the rows of a table are
            managed, so that no id keeps its row.
    """
    managed = [table.name for table in experiment.item_tables.values() if table.managed]
    if managed:
        raise ValueError(
            f"geometry: rows of table {', '.join(managed)} change owners during training; measure "
            "an experiment whose tables give each id a row"
        )
    paths = Checkpoints(run.checkpoints).complete()
    if not paths:
        raise ValueError(f"{run.checkpoints}: no complete checkpoint; set train.checkpoint_every")
    dataset = Dataset.open(experiment.data.folder, experiment.data.schema)
    train = dataset.split(experiment.data.split).train
    seen = np.unique(dataset.read(train, [dataset.schema.item])[dataset.schema.item])
    items_U = dataset.item_rows(seen)
    features = item_features(experiment, dataset, load_tokens(experiment))
    points: list[dict[str, Any]] = []
    final: dict[str, Any] = {}
    for path in paths:
        vectors = item_vectors(experiment, path, features, items_U)
        step = read_state(path)["step"]
        points += [
            {
                "step": step,
                "samples": step * experiment.train.batch_size,
                "table": name,
                **norm_statistics(rows),
            }
            for name, rows in vectors.items()
        ]
        if path == paths[-1]:
            for name, rows in vectors.items():
                shares = spectrum(rows)
                final[name] = {
                    "spectrum": shares.tolist(),
                    "effective_rank": effective_rank(shares),
                    "dim": rows.shape[1],
                    "rows": len(rows),
                }
    return {"points": points, "final": final}


def item_vectors(
    experiment: Experiment, path: Path, features: ItemFeatures, items_U: Ints
) -> dict[str, NDArray[np.float32]]:
    """Rows of each item table that these items read, and the items' vectors (U, D)."""
    saved = StoredState(path)
    tables = {
        name: saved.whole(f"table/{table.name}/weight").float()
        for name, table in experiment.item_tables.items()
    }
    read: dict[str, Ragged] = {key: features.features[key].gather(items_U) for key in tables}
    vectors = {
        name: weight[torch.from_numpy(np.unique(read[name].values))].numpy()
        for name, weight in tables.items()
    }
    encoder = experiment.model.item.build()
    encoder.load_state_dict(
        {name: saved.whole(f"network/item_encoder.{name}/value") for name in encoder.state_dict()}
    )
    encoder.eval()
    with torch.no_grad():
        items = {
            key: JaggedTensor(
                values=tables[key][torch.from_numpy(ragged.values)],
                lengths=torch.from_numpy(np.diff(ragged.offsets)),
            )
            for key, ragged in read.items()
        }
        vectors[ITEM_VECTOR] = encoder(items).numpy()
    return vectors
