"""TRM's Table 1 and Figure 4 as networks: parameters and training FLOPs beside the paper's.

farewell compare towers.trm_table1
farewell compare towers.trm_fig4
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from configs import storage
from sharding.tables import TableSpec
from trainer.models.dcn_v2 import DCNv2Config
from trainer.models.dhen import DHENConfig
from trainer.models.dlrm import DLRMConfig
from trainer.models.ranking_model import RankingModelConfig
from trainer.models.rankmixer import RankMixerConfig
from trainer.models.tower import TowerConfig
from trainer.models.transformer import TransformerConfig
from trainer.models.wukong import WuKongConfig
from trainer.modules.hybrid_tokens import (
    GEN_TOKEN,
    ITEM_ID,
    MEM_TOKEN,
    HybridTokensConfig,
    ItemIdConfig,
)
from trainer.modules.next_token_config import ContextRoles, NextTokenConfig
from trainer.structure import BatchShape, DescribedModel, Published, StructureComparison

ASSUMPTION = """\
The paper gives parameters and FLOPs, not widths or inputs; these are assumed, the same input for \
all rows. 4,096 impressions come from about 820 searches, five to a search, so that a search's 50 \
history items and its candidates make 40,960 distinct items in a batch: ten an impression. (The \
paper's own rows speak for some such number: TIGER-, OneRec- and SEMID-tokens add 3, 7 and 10 M \
parameters to RankMixer and 0.69, 0.78 and 1.03 T, as if these ran on 9, 5 and 4 vectors an \
impression.) Three kinds of feedback; two tasks, a quarter of the impressions positive; eight IDs \
that stay (configs/storage.py, 704 floats); 4,096 dense numbers (frozen embeddings of frames, \
title, audio and query, and counters) that get no gradient, by which an MLP of 7 M parameters can \
cost less than 6 P B, as it does in the paper. Larger models encode items with larger networks, \
whose work on histories is what lies above 6 P B in RankMixer's rows: another split between tower \
and histories could give the same totals. The transformer's weights are of each token, as \
RankMixer's are: shared by sixteen tokens, 326 M parameters would cost about 128 T, not 11. The \
generative module (2 + 2 context tokens, 4 layers) is inside 352 M and 341 M; the 54 M of Table 3 \
do not fit into the 17 M by which TRM exceeds RankMixer, so ours is smaller. Widths are \
then chosen to meet parameters and FLOPs. Change any of it in configs/towers.py, or pass your own \
file: `farewell compare mine.py:comparison`."""

ROLES = ContextRoles(
    query_features=("query_id", "query_bigram"),
    user_features=("user_id", "device_id"),
    query_dense=tuple(range(1024)),
    user_dense=(),
    tasks=("click", "real_play"),
)
BATCH = BatchShape(
    batch_size=4096,
    history_length=50,
    num_distinct_items=40_960,
    num_dense=4096,
    num_tasks=2,
    num_histories=3,
    positive_share=0.25,
    roles=ROLES,
)
DENSE_DIM = 1024
NEXT_TOKEN = NextTokenConfig(dim=320, num_heads=5)

DLRM_MLP_7M = DLRMConfig(hidden_dims=(1024, 640, 256))
DCN_V2_78M = DCNv2Config(num_layers=7, hidden_dims=(4096, 4096, 2048))
DHEN_242M = DHENConfig(num_tokens=16, dim=256, num_layers=12, expansion=2.0, dot_hidden_dim=512)
DHEN_554M = DHENConfig(num_tokens=16, dim=384, num_layers=13, expansion=2.0, dot_hidden_dim=512)
DHEN_1170M = DHENConfig(num_tokens=16, dim=512, num_layers=15, dot_hidden_dim=896)
WUKONG_355M = WuKongConfig(
    num_tokens=256, dim=256, num_layers=13, num_fm_tokens=128, rank=64, hidden_dims=(512,)
)
WUKONG_918M = WuKongConfig(
    num_tokens=512, dim=384, num_layers=12, num_fm_tokens=128, rank=128, hidden_dims=(640,)
)
WUKONG_1900M = WuKongConfig(
    num_tokens=512, dim=512, num_layers=17, num_fm_tokens=128, rank=128, hidden_dims=(832,)
)
TRANSFORMER_326M = TransformerConfig(
    num_tokens=16, dim=640, num_layers=4, num_heads=10, expansion=3.75, weights="per_token"
)


def rankmixer(dim: int, *, num_layers: int = 4, expansion: float = 4.0) -> RankMixerConfig:
    """RankMixer of sixteen tokens."""
    return RankMixerConfig(num_tokens=16, dim=dim, num_layers=num_layers, expansion=expansion)


RANKMIXER_335M = rankmixer(768)
RANKMIXER_1768M = rankmixer(1536, num_layers=6, expansion=3.8125)
RANKMIXER_OF_SEMID_1843M = rankmixer(1536, num_layers=6, expansion=3.96875)
RANKMIXER_OF_TRM_1888M = rankmixer(1536, num_layers=6, expansion=4.03125)


def trm_table1() -> StructureComparison:
    """TRM's Table 1: dense and sparse parameters, training FLOPs."""
    return StructureComparison(
        name="towers.trm_table1",
        models=(
            described("DLRM-MLP", item_ids(32), DLRM_MLP_7M, paper(7, 7.52, 0.13)),
            described("DCN-v2", item_ids(128), DCN_V2_78M, paper(78, 7.52, 1.92)),
            described("DHEN", item_ids(256), DHEN_242M, paper(242, 7.52, 8.42)),
            described("WuKong", item_ids(), WUKONG_355M, paper(355, 7.52, 18.96)),
            described(
                "Transformer",
                item_ids(768, (2560, 2304)),
                TRANSFORMER_326M,
                paper(326, 7.52, 11.05),
            ),
            described("RankMixer", item_ids(), RANKMIXER_335M, paper(335, 7.52, 13.20)),
            described("TIGER tokens", tiger_tokens(), RANKMIXER_335M, paper(338, 5.06, 13.89)),
            described("OneRec tokens", onerec_tokens(), RANKMIXER_335M, paper(342, 5.06, 13.98)),
            described("SEMID", semid_ngrams(), RANKMIXER_335M, paper(345, 5.08, 14.23)),
            described(
                "TRM, transformer",
                hybrid_tokens(768, (2560, 2304)),
                TRANSFORMER_326M,
                paper(341, 5.07, 12.17),
                next_token=NEXT_TOKEN,
            ),
            described(
                "TRM, RankMixer",
                hybrid_tokens(),
                RANKMIXER_335M,
                paper(352, 5.07, 14.66),
                next_token=NEXT_TOKEN,
            ),
        ),
        batch=BATCH,
        assumption=ASSUMPTION,
    )


def trm_fig4() -> StructureComparison:
    """The sizes that TRM's Figure 4 scales to: those the paper names, and steps on the way."""
    ids, semid, hybrid = item_ids(), semid_ngrams(), hybrid_tokens()
    sweeps: dict[str, tuple[Items, tuple[tuple[TowerConfig, Published], ...]]] = {
        "RankMixer": (
            ids,
            (
                (rankmixer(384), Published()),
                (RANKMIXER_335M, paper(335, 7.52, 13.20)),
                (rankmixer(1152), Published()),
                (RANKMIXER_1768M, paper(1768)),
            ),
        ),
        "SEMID": (
            semid,
            (
                (rankmixer(384), Published()),
                (RANKMIXER_335M, paper(345, 5.08, 14.23)),
                (rankmixer(1152), Published()),
                (RANKMIXER_OF_SEMID_1843M, paper(1843)),
            ),
        ),
        "TRM": (
            hybrid,
            (
                (rankmixer(384), Published()),
                (RANKMIXER_335M, paper(352, 5.07, 14.66)),
                (rankmixer(1152), Published()),
                (RANKMIXER_OF_TRM_1888M, paper(1888)),
            ),
        ),
        "WuKong": (
            ids,
            (
                (WUKONG_355M, paper(355, 7.52, 18.96)),
                (WUKONG_918M, Published()),
                (WUKONG_1900M, paper(1900, 7.52, 124.64)),
            ),
        ),
        "DHEN": (
            item_ids(256),
            (
                (DHEN_242M, paper(242, 7.52, 8.42)),
                (DHEN_554M, Published()),
                (DHEN_1170M, paper(1170, 7.52, 49.75)),
            ),
        ),
    }
    return StructureComparison(
        name="towers.trm_fig4",
        models=tuple(
            described(
                f"{series}, size {step}",
                items,
                tower,
                published,
                series=series,
                next_token=NEXT_TOKEN if series == "TRM" else None,
            )
            for series, (items, sizes) in sweeps.items()
            for step, (tower, published) in enumerate(sizes, start=1)
        ),
        batch=BATCH,
        assumption=ASSUMPTION,
    )


def smoke() -> StructureComparison:
    """Two small models: a second."""
    tower = RankMixerConfig(num_tokens=4, dim=16, num_layers=1)
    return StructureComparison(
        name="towers.smoke",
        models=(
            described("RankMixer", item_ids(16), tower, Published()),
            described(
                "TRM",
                hybrid_tokens(16, (16,)),
                tower,
                Published(),
                next_token=NextTokenConfig(dim=16),
            ),
        ),
        batch=replace(BATCH, batch_size=64, num_distinct_items=640),
        assumption="Small towers on the tables of storage.trm_paper.",
    )


def paper(
    dense_millions: float,
    sparse_trillions: float | None = None,
    flops_trillions: float | None = None,
) -> Published:
    """What the paper reports, in its units."""
    return Published(
        dense_parameters=dense_millions * 1e6,
        sparse_parameters=None if sparse_trillions is None else sparse_trillions * 1e12,
        training_flops=None if flops_trillions is None else flops_trillions * 1e12,
    )


@dataclass(frozen=True, kw_only=True)
class Items:
    """What stands for an item: its encoder, and the tables that it reads."""

    config: ItemIdConfig | HybridTokensConfig
    tables: tuple[TableSpec, ...]


def described(
    title: str,
    items: Items,
    tower: TowerConfig,
    published: Published,
    *,
    series: str | None = None,
    next_token: NextTokenConfig | None = None,
    reason: str = "",
) -> DescribedModel:
    """A tower on these items and the IDs that stay in every system."""
    return DescribedModel(
        title=title,
        series=series or title,
        model=RankingModelConfig(
            item=items.config,
            tower=tower,
            dense_bins=1,
            dense_dim=DENSE_DIM,
            next_token=next_token,
        ),
        tables=(*items.tables, *storage.RESIDUAL_IDS),
        published=published,
        reason=reason,
    )


def item_ids(item_dim: int = 1024, hidden_dims: tuple[int, ...] | None = None) -> Items:
    """Item IDs; without `hidden_dims`, the large models' item network, or none when small."""
    if hidden_dims is None:
        hidden_dims = (3072, 3072) if item_dim >= 1024 else ()
    config = ItemIdConfig(table_dim=storage.ITEM_DIM, item_dim=item_dim, hidden_dims=hidden_dims)
    return Items(config=config, tables=(_sequence(storage.item_id(), ITEM_ID),))


def tiger_tokens() -> Items:
    """TIGER: the codes of an RQ-VAE side by side."""
    config = _gen_tokens(levels=4, hidden_dims=(3072, 3072))
    return Items(
        config=config, tables=(_sequence(storage.gen_tokens(levels=4, codes=256), GEN_TOKEN),)
    )


def onerec_tokens() -> Items:
    """OneRec: the codes of balanced k-means side by side."""
    config = _gen_tokens(levels=3, hidden_dims=(3456, 3456))
    return Items(
        config=config, tables=(_sequence(storage.gen_tokens(levels=3, codes=8192), GEN_TOKEN),)
    )


def semid_ngrams() -> Items:
    """SEMID: hashed prefix n-grams of codes, summed."""
    config = HybridTokensConfig(
        num_levels=5,
        table_dim=storage.ITEM_DIM,
        item_dim=1024,
        hidden_dims=(3712, 3712),
        gen_tokens=False,
    )
    table = storage.ngrams(rows=120_000_000, grams_an_item=5.0)
    return Items(config=config, tables=(_sequence(table, MEM_TOKEN),))


def hybrid_tokens(item_dim: int = 1024, hidden_dims: tuple[int, ...] = (3072, 3072)) -> Items:
    """TRM: gen-tokens deep, mem-tokens wide."""
    config = HybridTokensConfig(
        num_levels=5, table_dim=storage.ITEM_DIM, item_dim=item_dim, hidden_dims=hidden_dims
    )
    tables = (
        _sequence(storage.gen_tokens(levels=5, codes=4096), GEN_TOKEN),
        _sequence(storage.mem_tokens(), MEM_TOKEN),
    )
    return Items(config=config, tables=tables)


def _gen_tokens(*, levels: int, hidden_dims: tuple[int, ...]) -> HybridTokensConfig:
    return HybridTokensConfig(
        num_levels=levels,
        table_dim=storage.ITEM_DIM,
        item_dim=1024,
        hidden_dims=hidden_dims,
        mem_tokens=False,
    )


def _sequence(table: TableSpec, feature: str) -> TableSpec:
    """The table as item encoders read it: one vector an id, under their own key."""
    return replace(table, features=(feature,), pooling="none")
