"""Experiments that are trained on the test cluster: the smoke log, tables spread over two nodes."""

from dataclasses import replace

from configs import trm_rankmixer


def _smoke(**changes):
    experiment = trm_rankmixer.smoke()
    train = replace(
        experiment.train,
        precision="fp32",
        num_epochs=40,
        max_steps=24,
        log_every=4,
        eval_every=1000,
        checkpoint_every=8,
        keep_checkpoints=3,
    )
    return replace(
        experiment,
        sharding=replace(experiment.sharding, min_partition=4),
        train=replace(train, **changes),
    )


def _pooled_as(sharding_type, name):
    """Pooled tables in one way; those of sequences row-wise, which is what runs on the CPU."""
    experiment = _smoke()
    tables = tuple(
        replace(
            table,
            optimizer="sgd",
            sharding_types=("row_wise",) if table.pooling == "none" else (sharding_type,),
        )
        for table in experiment.tables
    )
    return replace(experiment, name=name, tables=tables)


def short():
    """Some steps with the planner's own choice."""
    return _smoke()


def long():
    """Enough steps for something to happen meanwhile."""
    return _smoke(max_steps=400, checkpoint_every=20)


def table_row_wise():
    """Each pooled table lies on one node, its rows spread over the node's ranks."""
    return _pooled_as("table_row_wise", "table_row_wise")


def grid():
    """Column shards of each pooled table go to nodes, their rows to the nodes' ranks."""
    return _pooled_as("grid_shard", "grid")
