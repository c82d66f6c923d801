"""What planning reads of a log: how often each table is read, and the network's size."""

import numpy as np

from sharding.dry_run import DenseReserve
from trainer.data.dataset import Dataset
from trainer.modules.hybrid_tokens import GEN_TOKEN
from trainer.run_inputs import FLOPS_BATCH
from trainer.table_use import dense_reserve, measured_tables


def test_every_row_of_sid_embeddings_is_read_each_step(dig_experiment):
    tables, note = measured_tables(dig_experiment, 512)
    assert note == f"ids per impression from {FLOPS_BATCH:,} impressions of the log"
    sids = [table for table in tables if table.role == "gen_token"]
    assert len(sids) == len(dig_experiment.model.item.field_names)
    for table in sids:
        assert table.pooling_factors == (table.rows / 512,)
    by_name = {table.name: table for table in tables}
    assert by_name["user_id"].pooling_factors == (1.0,)
    assert isinstance(dense_reserve(dig_experiment), DenseReserve)


def test_item_tables_are_read_once_for_each_item_of_a_batch(smoke):
    tables, _ = measured_tables(smoke, 512)
    dataset = Dataset.open(smoke.data.folder, smoke.data.schema)
    train = dataset.split(smoke.data.split).train
    item, history = dataset.schema.item, [one.name for one in dataset.schema.histories]
    rows = dataset.read(train, [item])[item][-FLOPS_BATCH:]
    (table,) = (one for one in tables if GEN_TOKEN in one.features)
    levels = smoke.tokenizer.tokenizer.num_levels
    found = table.pooling_factors[table.features.index(GEN_TOKEN)] * FLOPS_BATCH / levels
    assert history
    assert len(np.unique(rows)) <= found <= dataset.num_items
    assert found == int(found)
