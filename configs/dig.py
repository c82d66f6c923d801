"""DIG: a ranker with its item tokenizer inside, which retrieves as well.

farewell train dig.movielens1m
"""

from __future__ import annotations

from dataclasses import replace

from configs import datasets, dig_studies
from configs.datasets import Source
from configs.dig_baselines import LONG_TRAINING
from configs.dig_studies import DigLog
from configs.id_vs_tokens import SYNTHETIC_ORACLE
from configs.recipe import ID_DROPOUT, feature_tables
from sharding.tables import TableSpec
from trainer.comparison import Comparison
from trainer.data.static_features import static_dense, static_fields, without_static
from trainer.experiment import Experiment
from trainer.models.dcn_moe import DCNMoEConfig
from trainer.models.dig_config import DigModelConfig
from trainer.modules.learned_tokens import LearnedTokensConfig
from trainer.optim import OptimConfig

BATCH_SIZE = 2048
OPTIM = OptimConfig(dense_lr=1e-3, sparse_lr=0.05, decay="linear")
"""The paper's Adam at 1e-3, falling, so that SIDs come to rest; tables have optimizers of their
own, fused into the backward pass."""
EPOCHS, FIXED_AFTER = 3, 130
"""Of MovieLens-1M's 390 steps an epoch: by then the ranker is nearly as good as it gets, while the
retrieval path goes on learning."""
BEAUTY_EPOCHS, BEAUTY_FIXED_AFTER = 8, 200
"""Of Amazon Beauty's 150 steps an epoch: it has two fifths of MovieLens-1M's rows."""
SHUFFLE_ROWS = 1 << 20
"""Rows that are shuffled together at least: the running statistics of batch normalization are those
of the last batches, which have to look like the whole log."""


def experiment(source: Source, item: LearnedTokensConfig) -> Experiment:
    """DIG with the settings of its section 4.1.

    Args:
        source: log; its token settings are not used.
        item: static features, with those that the schema names.
    """
    data = replace(
        source.data,
        schema=without_static(source.data.schema),
        shuffle_rows=max(source.data.shuffle_rows, SHUFFLE_ROWS),
    )
    source = replace(source, data=data)
    return Experiment(
        name="dig",
        data=source.data,
        tables=(*feature_tables(source), *sid_tables(item)),
        model=DigModelConfig(item=item, tower=DCNMoEConfig(), id_dropout=ID_DROPOUT),
        optim=replace(OPTIM, warmup_steps=source.warmup_steps),
        train=replace(source.train, batch_size=min(BATCH_SIZE, source.train.batch_size)),
    )


def sid_tables(item: LearnedTokensConfig) -> tuple[TableSpec, ...]:
    """One table of SID embeddings for each field of the item (Eq. 5)."""
    return tuple(
        TableSpec(
            name=feature,
            rows=item.table_rows,
            dim=dim,
            features=(feature,),
            role="gen_token",
            pooling="none",
            optimizer="adagrad",
            init_std=0.05,
        )
        for feature, dim in item.table_dims.items()
    )


def with_texts(source: Source, *, text_fields: int, fixed_after: int | None = None) -> Experiment:
    """DIG on a log whose items have static columns and MiniLM embeddings of their texts.

    Args:
        source: log, and where the embeddings are.
        text_fields: fields that the embedding becomes; see `LearnedTokensConfig`.
        fixed_after: steps after which SIDs come to rest.
    """
    schema = source.data.schema
    item = LearnedTokensConfig(
        fields=static_fields(schema),
        dense_columns=static_dense(schema),
        text_dim=384,
        text_fields=text_fields,
        embeddings=source.tokens.embeddings,
        fixed_after=fixed_after,
    )
    return experiment(source, item)


def movielens1m() -> Experiment:
    """On MovieLens-1M: year, genres and the title's MiniLM embedding."""
    return _movielens(datasets.movielens1m())


def movielens1m_last_click() -> Experiment:
    """On MovieLens-1M cut by each user's last likes (leave-one-out)."""
    return _movielens(datasets.movielens1m_last_click())


def _movielens(source: Source) -> Experiment:
    source = replace(source, train=replace(source.train, num_epochs=EPOCHS))
    return with_texts(source, text_fields=2, fixed_after=FIXED_AFTER)


def amazon_beauty() -> Experiment:
    """On Amazon Beauty with a random item beside each review: categories, and MiniLM of titles."""
    source = datasets.amazon_beauty_sampled()
    source = replace(source, train=replace(source.train, num_epochs=BEAUTY_EPOCHS))
    return with_texts(source, text_fields=3, fixed_after=BEAUTY_FIXED_AFTER)


def smoke() -> Experiment:
    """A few steps on a small simulated log, with a small tokenizer."""
    source = datasets.smoke()
    schema = source.data.schema
    item = LearnedTokensConfig(
        fields=static_fields(schema),
        dense_columns=static_dense(schema),
        text_dim=datasets.SMOKE.embedding_dim,
        text_fields=2,
        embedding_column="embedding",
        dim=32,
        num_layers=1,
        num_heads=2,
        num_levels=3,
        num_codes=32,
    )
    return experiment(source, item)


def movielens1m_log() -> DigLog:
    """Five cases a user, since 1,188 users alone have likes in the test part."""
    return DigLog(
        experiment=movielens1m(),
        name="movielens1m",
        cases_per_user=5,
        training=LONG_TRAINING,
        num_cycles=2,
    )


def movielens1m_last_click_log() -> DigLog:
    """One case a user, items of its history left out."""
    return DigLog(
        experiment=movielens1m_last_click(),
        name="movielens1m_last_click",
        leave_out_history=True,
        training=LONG_TRAINING,
        num_cycles=2,
    )


def amazon_beauty_log() -> DigLog:
    """One case a user, items of its history left out."""
    return DigLog(experiment=amazon_beauty(), name="amazon_beauty", leave_out_history=True)


def smoke_log() -> DigLog:
    """A few steps, and small baselines."""
    return DigLog(
        experiment=smoke(), name="smoke", small=True, oracle=SYNTHETIC_ORACLE, cases_per_user=2
    )


def main_movielens1m() -> Comparison:
    """Table 2: retrieval beside other retrievers; on MovieLens-1M."""
    return dig_studies.main(movielens1m_log())


def main_movielens1m_last_click() -> Comparison:
    """Table 2: retrieval beside other retrievers; on MovieLens-1M, leave-one-out."""
    return dig_studies.main(movielens1m_last_click_log())


def main_amazon_beauty() -> Comparison:
    """Table 2: retrieval beside other retrievers; on Amazon Beauty."""
    return dig_studies.main(amazon_beauty_log())


def main_smoke() -> Comparison:
    """Table 2: retrieval beside other retrievers; on a small simulated log."""
    return dig_studies.main(smoke_log())


def ranking_movielens1m() -> Comparison:
    """Table 3: ranking with and without the retrieval path; on MovieLens-1M."""
    return dig_studies.ranking(movielens1m_log())


def ranking_movielens1m_last_click() -> Comparison:
    """Table 3: ranking with and without the retrieval path; on MovieLens-1M, leave-one-out."""
    return dig_studies.ranking(movielens1m_last_click_log())


def ranking_amazon_beauty() -> Comparison:
    """Table 3: ranking with and without the retrieval path; on Amazon Beauty."""
    return dig_studies.ranking(amazon_beauty_log())


def ranking_smoke() -> Comparison:
    """Table 3: ranking with and without the retrieval path; on a small simulated log."""
    return dig_studies.ranking(smoke_log())


def gap_movielens1m() -> Comparison:
    """Table 4: the gap between both paths' AUCs; on MovieLens-1M."""
    return dig_studies.gap(movielens1m_log())


def gap_movielens1m_last_click() -> Comparison:
    """Table 4: the gap between both paths' AUCs; on MovieLens-1M, leave-one-out."""
    return dig_studies.gap(movielens1m_last_click_log())


def gap_amazon_beauty() -> Comparison:
    """Table 4: the gap between both paths' AUCs; on Amazon Beauty."""
    return dig_studies.gap(amazon_beauty_log())


def gap_smoke() -> Comparison:
    """Table 4: the gap between both paths' AUCs; on a small simulated log."""
    return dig_studies.gap(smoke_log())


def end_to_end_movielens1m() -> Comparison:
    """Table 5: SIDs that learn against fixed ones; on MovieLens-1M."""
    return dig_studies.end_to_end(movielens1m_log())


def end_to_end_movielens1m_last_click() -> Comparison:
    """Table 5: SIDs that learn against fixed ones; on MovieLens-1M, leave-one-out."""
    return dig_studies.end_to_end(movielens1m_last_click_log())


def end_to_end_amazon_beauty() -> Comparison:
    """Table 5: SIDs that learn against fixed ones; on Amazon Beauty."""
    return dig_studies.end_to_end(amazon_beauty_log())


def end_to_end_smoke() -> Comparison:
    """Table 5: SIDs that learn against fixed ones; on a small simulated log."""
    return dig_studies.end_to_end(smoke_log())


def u2i_movielens1m() -> Comparison:
    """Table 6: cross features in training, MLP_u2t in retrieval; on MovieLens-1M."""
    return dig_studies.u2i(movielens1m_log())


def u2i_movielens1m_last_click() -> Comparison:
    """Table 6: cross features in training, MLP_u2t in retrieval; on MovieLens-1M, leave-one-out."""
    return dig_studies.u2i(movielens1m_last_click_log())


def u2i_amazon_beauty() -> Comparison:
    """Table 6: cross features in training, MLP_u2t in retrieval; on Amazon Beauty."""
    return dig_studies.u2i(amazon_beauty_log())


def u2i_smoke() -> Comparison:
    """Table 6: cross features in training, MLP_u2t in retrieval; on a small simulated log."""
    return dig_studies.u2i(smoke_log())


def mean_movielens1m() -> Comparison:
    """Ablation 3: MLP_u2t against means of tokens; on MovieLens-1M."""
    return dig_studies.mean(movielens1m_log())


def mean_movielens1m_last_click() -> Comparison:
    """Ablation 3: MLP_u2t against means of tokens; on MovieLens-1M, leave-one-out."""
    return dig_studies.mean(movielens1m_last_click_log())


def mean_amazon_beauty() -> Comparison:
    """Ablation 3: MLP_u2t against means of tokens; on Amazon Beauty."""
    return dig_studies.mean(amazon_beauty_log())


def mean_smoke() -> Comparison:
    """Ablation 3: MLP_u2t against means of tokens; on a small simulated log."""
    return dig_studies.mean(smoke_log())


def levels_movielens1m() -> Comparison:
    """Ablation 4: every level supervised, or the last alone; on MovieLens-1M."""
    return dig_studies.levels(movielens1m_log())


def levels_movielens1m_last_click() -> Comparison:
    """Ablation 4: every level supervised, or the last alone; on MovieLens-1M, leave-one-out."""
    return dig_studies.levels(movielens1m_last_click_log())


def levels_amazon_beauty() -> Comparison:
    """Ablation 4: every level supervised, or the last alone; on Amazon Beauty."""
    return dig_studies.levels(amazon_beauty_log())


def levels_smoke() -> Comparison:
    """Ablation 4: every level supervised, or the last alone; on a small simulated log."""
    return dig_studies.levels(smoke_log())


def completeness_movielens1m() -> Comparison:
    """Table 7: shares of cross features; on MovieLens-1M."""
    return dig_studies.completeness(movielens1m_log())


def completeness_movielens1m_last_click() -> Comparison:
    """Table 7: shares of cross features; on MovieLens-1M, leave-one-out."""
    return dig_studies.completeness(movielens1m_last_click_log())


def completeness_amazon_beauty() -> Comparison:
    """Table 7: shares of cross features; on Amazon Beauty."""
    return dig_studies.completeness(amazon_beauty_log())


def completeness_smoke() -> Comparison:
    """Table 7: shares of cross features; on a small simulated log."""
    return dig_studies.completeness(smoke_log())
