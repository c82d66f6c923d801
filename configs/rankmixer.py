"""RankMixer with item IDs, with gen-tokens only, and with hybrid tokens (TRM), at equal size.

    farewell train rankmixer.trm_movielens1m

The three differ in what stands for an item; widths of the item encoders are chosen so that dense
parameters agree within 5 %.
"""

from __future__ import annotations

from configs.datasets import Source, movielens1m, movielens100k
from configs.recipe import ID_DIM, ranking_experiment
from trainer.experiment import Experiment, TrainConfig
from trainer.models.rankmixer import RankMixerConfig
from trainer.modules.hybrid_tokens import HybridTokensConfig, ItemIdConfig
from trainer.optim import OptimConfig

ITEM_DIM = 48
TOWER = RankMixerConfig(num_tokens=8, dim=64, num_layers=2, expansion=2.0)
OPTIM = OptimConfig(dense_lr=1e-3, sparse_lr=0.02, warmup_steps=50, decay="linear")
TRAIN = TrainConfig(batch_size=4096, num_epochs=2)


def item_id(source: Source) -> Experiment:
    """An item is its ID."""
    item = ItemIdConfig(table_dim=ID_DIM, item_dim=ITEM_DIM, hidden_dims=(192,))
    return _experiment("rankmixer_id", source, item)


def gen_tokens(source: Source) -> Experiment:
    """An item is its gen-tokens."""
    return _experiment("rankmixer_gen", source, _tokens(source, mem_tokens=False))


def trm(source: Source) -> Experiment:
    """An item is its gen- and mem-tokens: TRM's hybrid tokens."""
    return _experiment("trm_rankmixer", source, _tokens(source, mem_tokens=True))


def id_movielens1m() -> Experiment:
    """Item IDs on MovieLens-1M."""
    return item_id(movielens1m())


def gen_movielens1m() -> Experiment:
    """Gen-tokens on MovieLens-1M."""
    return gen_tokens(movielens1m())


def trm_movielens1m() -> Experiment:
    """Hybrid tokens on MovieLens-1M."""
    return trm(movielens1m())


def smoke() -> Experiment:
    """Hybrid tokens on MovieLens-100K: seconds."""
    return trm(movielens100k())


def _tokens(source: Source, *, mem_tokens: bool) -> HybridTokensConfig:
    return HybridTokensConfig(
        num_levels=source.tokens.tokenizer.num_levels,
        table_dim=ID_DIM,
        item_dim=ITEM_DIM,
        hidden_dims=(96,),
        dropout=0.1,
        mem_tokens=mem_tokens,
    )


def _experiment(name: str, source: Source, item: ItemIdConfig | HybridTokensConfig) -> Experiment:
    return ranking_experiment(name, source, item=item, tower=TOWER, optim=OPTIM, train=TRAIN)
