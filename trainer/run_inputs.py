"""What a run reads before its first step: tokens, identity of items, samples of the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenization.artifact import TokenArtifact
from tokenization.combinations import mem_config
from tokenization.embedding_table import read_made
from tokenization.tokenizers import tokenizer_config
from trainer.batch import Batch
from trainer.data.batch_builder import BatchBuilder
from trainer.data.dataset import Dataset
from trainer.data.item_features import (
    ItemFeatures,
    item_id_features,
    most_exposed_items,
    raw_item_ids,
    token_features,
)
from trainer.data.ragged import Ragged
from trainer.data.schema import RowRange
from trainer.data.static_features import read_static_features
from trainer.experiment import Experiment, TokensConfig
from trainer.modules.hybrid_tokens import ITEM_ID, MEM_TOKEN
from trainer.modules.learned_tokens import ITEM_ROW, CoClickItemsConfig, LearnedTokensConfig
from trainer.modules.parallel_tokens import TokenItemConfig
from trainer.modules.vq_encoder import StaticFeatures
from trainer.sasrec_tokens import SASRecTokensConfig
from trainer.stored_state import StoredState

logger = logging.getLogger(__name__)

FLOPS_BATCH = 4096
"""Impressions of the batch that FLOPs are counted for, as in TRM's Table 1."""
_SAMPLE_SLICES = 8
_SAMPLE_ROWS = 16_384


def load_tokens(experiment: Experiment) -> TokenArtifact | None:
    """The experiment's token artifact, checked against its settings; None for ID models.

    Raises:
        ValueError: when it is missing or was made with other settings.
    """
    config = experiment.tokenizer
    if config is None:
        return None
    artifact = TokenArtifact.load(config.folder)
    _check_settings(config, artifact)
    manifest = artifact.manifest
    # Of embeddings, of the exposures that mem-tokens follow, and of embeddings of new items.
    known = max(one.get("log_rows", 0) for one in (manifest.get("embeddings", {}), manifest))
    if known:
        dataset = Dataset.open(experiment.data.folder, experiment.data.schema)
        _check_known_rows(config.folder, known, experiment, dataset)
    return artifact


def _check_known_rows(
    source: Path, known_rows: int, experiment: Experiment, dataset: Dataset
) -> None:
    """Embeddings that know clicks of the evaluation would make it look better than it is."""
    train_rows = dataset.split(experiment.data.split).train.stop
    if known_rows > train_rows:
        raise ValueError(
            f"{source}: was made with the first {known_rows} rows of "
            f"the log, but the experiment trains on {train_rows}, so it would be evaluated on "
            "rows that its tokens know; name another folder for tokens and embeddings"
        )


def check_item_embeddings(
    item: LearnedTokensConfig, experiment: Experiment, dataset: Dataset
) -> None:
    """Check what the embeddings of a model that learns its tokens were made of.

    Raises:
        ValueError: of rows of the evaluation, or with other settings than the experiment's.
    """
    if item.embeddings is None:
        return
    made = read_made(item.embeddings)
    _check_known_rows(item.embeddings, made.get("log_rows", 0), experiment, dataset)
    if isinstance(item, CoClickItemsConfig) and made.get("co_clicks") != asdict(item.co_clicks):
        raise ValueError(
            f"{item.embeddings}: was made with co-clicks {made.get('co_clicks')}, but the "
            f"experiment wants {asdict(item.co_clicks)}; name another file for them in "
            "model.item.embeddings, or delete this one to have it made again"
        )


def embeddings_made(item: object) -> dict[str, Any] | None:
    """How the embeddings of a model that learns its tokens were made; None without a file of them.

    With the rows of the log that they know, if any: of other rows they are other vectors.
    """
    if not isinstance(item, LearnedTokensConfig) or item.embeddings is None:
        return None
    return read_made(item.embeddings)


def check_embeddings_made(now: Mapping[str, Any] | None, checkpoint: StoredState) -> None:
    """Check that a checkpoint's encoder was trained on embeddings made in the same way.

    Args:
        now: of `embeddings_made`.
        checkpoint: whose own are set against them, where it has some.

    Raises:
        ValueError: naming the checkpoint and both ways.
    """
    stored = checkpoint.state.get("item_embeddings")
    if stored is not None and now is not None and stored != now:
        raise ValueError(
            f"model.item.embeddings: made with {now}, but {checkpoint.path} was trained on "
            f"embeddings made with {stored}; make them again in that way, with `farewell embed` "
            "(--align-rows for as many rows of the log)"
        )


def _check_settings(config: TokensConfig, artifact: TokenArtifact) -> None:
    """Tokens made in another way than the experiment says would be trained on unnoticed."""
    manifest = artifact.manifest
    settings = {
        "tokenizer": (tokenizer_config(manifest["tokenizer"]), config.tokenizer),
        "mem": (mem_config(manifest["mem"]), config.mem),
        "collisions": (manifest.get("collisions", "keep"), config.collisions),
        "alignment": (_settings(manifest.get("embeddings", {})), _alignment(config)),
        "sasrec": (manifest.get("embeddings", {}).get("sasrec"), _sasrec(config)),
    }
    for name, (made_with, wanted) in settings.items():
        if made_with != wanted:
            raise ValueError(
                f"{config.folder}: tokens were made with {name} {made_with}, but the experiment "
                f"wants {wanted}; name another folder for them in tokenizer.folder, or make these "
                "again with `farewell tokenize`"
            )


def _alignment(config: TokensConfig) -> Any:
    """Settings of the alignment as a manifest has them; embeddings may have been aligned before."""
    if config.alignment is not None:
        return json.loads(json.dumps([asdict(config.alignment), config.feature_columns]))
    return _settings(read_made(config.embeddings) if config.embeddings.exists() else {})


def _sasrec(config: TokensConfig) -> Any:
    """Settings of the SASRec that gave embeddings; None where none did."""
    if isinstance(config, SASRecTokensConfig):
        return json.loads(json.dumps(asdict(config.sasrec)))
    return read_made(config.embeddings).get("sasrec") if config.embeddings.exists() else None


def _settings(made: Mapping[str, Any]) -> Any:
    """What alignment and columns embeddings were made with; None without alignment."""
    return [made["alignment"], made["feature_column"]] if "alignment" in made else None


def item_features(
    experiment: Experiment, dataset: Dataset, tokens: TokenArtifact | None
) -> ItemFeatures:
    """The ids that stand for each item in this experiment."""
    item = experiment.model.item
    if isinstance(item, LearnedTokensConfig):
        every_row = np.arange(dataset.num_items)
        return ItemFeatures({ITEM_ROW: Ragged(every_row, np.arange(dataset.num_items + 1))})
    if not isinstance(item, TokenItemConfig):
        if item.rows == "managed":
            return ItemFeatures({ITEM_ID: raw_item_ids(dataset)})
        return item_id_features(
            dataset,
            cardinality=experiment.item_tables[ITEM_ID].rows,
            hashed=item.rows == "hashed",
        )
    assert tokens is not None
    mem_rows = experiment.item_tables[MEM_TOKEN].rows if item.mem_tokens else 1
    features = dict(token_features(dataset, tokens, mem_rows=mem_rows).features)
    if item.residual_id_dim is not None:
        features[ITEM_ID] = _residual_ids(experiment, dataset)
    return ItemFeatures({key: features[key] for key in item.features})


def catalogue(experiment: Experiment, dataset: Dataset) -> StaticFeatures | None:
    """What a tokenizer inside the model reads of each item; None for other models."""
    item = experiment.model.item
    if not isinstance(item, LearnedTokensConfig):
        return None
    found = read_static_features(dataset, item)
    check_item_embeddings(item, experiment, dataset)
    return found


def _residual_ids(experiment: Experiment, dataset: Dataset) -> Ragged:
    """IDs beside tokens: a row for the most exposed items, or any id for a managed table."""
    table = experiment.item_tables[ITEM_ID]
    if table.managed is not None:
        return raw_item_ids(dataset)
    train = dataset.split(experiment.data.split).train
    kept = most_exposed_items(dataset, rows=train, num_rows=table.rows)
    logger.info(
        "table %r: %d of %d items keep a row", table.name, len(kept.values), dataset.num_items
    )
    return kept


def sample_dense(dataset: Dataset, features: ItemFeatures, rows: RowRange) -> np.ndarray[Any, Any]:
    """Dense features of rows from evenly spaced places (S, F): the same on every rank."""
    builder = BatchBuilder(dataset, features)
    part = -(-len(rows) // _SAMPLE_SLICES)
    samples = [
        builder.build(dataset.block(RowRange(start, min(start + _SAMPLE_ROWS, rows.stop)))).dense_BF
        for start in range(rows.start, rows.stop, part)
    ]
    return torch.cat(samples).numpy()


def last_batch(dataset: Dataset, features: ItemFeatures, rows: RowRange, size: int) -> Batch:
    """The last `size` rows of a range as one batch: late rows have histories of usual length."""
    start = max(rows.start, rows.stop - size)
    return BatchBuilder(dataset, features).build(dataset.block(RowRange(start, rows.stop)))
