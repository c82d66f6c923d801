"""Tables at the scale of the TRM paper: item IDs, semantic tokens, and tokens for everything.

farewell compare storage.trm_paper
"""

from __future__ import annotations

from collections.abc import Sequence

from sharding.compare import StorageComparison, StorageSystem
from sharding.hardware import a100, b200, cpu, h100, h200
from sharding.tables import TableKernel, TableRole, TableSpec

ITEM_DIM = 192
ITEM_ROWS = 12_800_000_000
"""The item-ID set of TRM section 4.1, 1.3e10 in the paper's rounding; with 192 floats 2.458T."""
NUM_ITEMS_READ = 1.0 + 50.0
"""Ids an impression: the candidate and a history of 50."""
IN_DEVICE_MEMORY: tuple[TableKernel, ...] = ("fused",)

ASSUMPTION = """\
The paper gives totals (Table 1), the size of the item-ID set (1.3e10), 5 x 4,096 gen-tokens \
and at most 2e7 mem-tokens; it does not give tables. Assumed here: item IDs are one table of \
1.28e10 rows x 192 floats (2.458T, the difference of the paper's totals); the other 5.06T are \
IDs that stay in every system: users, queries, authors, devices and hashed crosses of these, \
with 64 to 128 floats. Token systems replace the item table by token tables of the same width; \
TIGER with 4 levels of 256, OneRec with 3 of 8,192, SEMID with hashed token n-grams. The last \
row also replaces users, queries and their crosses by tokens. All tables lie in device memory \
(`kernels=("fused",)`), fp32 with row-wise Adagrad; a checkpoint holds weights and state. Steps \
are those of the tables alone, by TorchRec's estimator and vendors' peak bandwidths: they rank \
plans, they do not promise speed. Change any of it in configs/storage.py, or pass your own \
file: `farewell compare mine.py:comparison`."""


def trm_paper() -> StorageComparison:
    """TRM's Table 1 (sparse parameters) as sets of tables."""
    return StorageComparison(
        name="storage.trm_paper",
        systems=(
            StorageSystem(
                title="Item IDs",
                tables=(item_id(), *RESIDUAL_IDS),
                published_parameters=7.52e12,
            ),
            StorageSystem(
                title="TIGER tokens",
                tables=(gen_tokens(levels=4, codes=256), *RESIDUAL_IDS),
                published_parameters=5.06e12,
            ),
            StorageSystem(
                title="OneRec tokens",
                tables=(gen_tokens(levels=3, codes=8192), *RESIDUAL_IDS),
                published_parameters=5.06e12,
            ),
            StorageSystem(
                title="SEMID n-grams",
                tables=(ngrams(rows=120_000_000, grams_an_item=5.0), *RESIDUAL_IDS),
                published_parameters=5.08e12,
            ),
            StorageSystem(
                title="TRM hybrid tokens",
                tables=(gen_tokens(levels=5, codes=4096), mem_tokens(), *RESIDUAL_IDS),
                published_parameters=5.07e12,
            ),
            StorageSystem(
                title="Tokens for users and queries too",
                tables=(
                    gen_tokens(levels=5, codes=4096),
                    mem_tokens(),
                    *entity_tokens("user"),
                    *entity_tokens("query"),
                    *(table for table in RESIDUAL_IDS if table.name in ENTITIES_THAT_STAY),
                ),
            ),
        ),
        machines=(a100(), h100(), h200(), b200(), cpu()),
        batch_size=512,
        assumption=ASSUMPTION,
    )


def smoke() -> StorageComparison:
    """Two systems of a few tables on one machine: a second."""
    items = item_id(rows=200_000_000)
    stay = tuple(table for table in RESIDUAL_IDS if table.name in ENTITIES_THAT_STAY)
    return StorageComparison(
        name="storage.smoke",
        systems=(
            StorageSystem(title="Item IDs", tables=(items, *stay)),
            StorageSystem(
                title="TRM hybrid tokens",
                tables=(gen_tokens(levels=5, codes=4096), mem_tokens(), *stay),
            ),
        ),
        machines=(h100(),),
        batch_size=512,
        assumption="A thirtieth of the tables of storage.trm_paper.",
    )


def item_id(rows: int = ITEM_ROWS) -> TableSpec:
    """One row an item, read for candidate and history."""
    return _table("item_id", rows, ITEM_DIM, "item_id", (NUM_ITEMS_READ,))


def gen_tokens(*, levels: int, codes: int) -> TableSpec:
    """One row a code of a level; an item reads one of each level."""
    return _table("gen_token", levels * codes, ITEM_DIM, "gen_token", (levels * NUM_ITEMS_READ,))


def mem_tokens(rows: int = 20_000_000) -> TableSpec:
    """BPE merges; an item reads about two."""
    return _table("mem_token", rows, ITEM_DIM, "mem_token", (2 * NUM_ITEMS_READ,))


def ngrams(*, rows: int, grams_an_item: float) -> TableSpec:
    """Hashed n-grams of codes."""
    return _table("gen_ngram", rows, ITEM_DIM, "gen_token", (grams_an_item * NUM_ITEMS_READ,))


def entity_tokens(name: str) -> tuple[TableSpec, TableSpec]:
    """Gen- and mem-tokens of users or queries, of the size of the items'."""
    return (
        _table(f"{name}_gen_token", 20_480, 128, "gen_token", (5.0,)),
        _table(f"{name}_mem_token", 20_000_000, 128, "mem_token", (2.0,)),
    )


def _table(
    name: str, rows: int, dim: int, role: TableRole, factors: Sequence[float] = (1.0,)
) -> TableSpec:
    return TableSpec(
        name=name,
        rows=rows,
        dim=dim,
        features=(name,),
        role=role,
        pooling_factors=tuple(factors),
        kernels=IN_DEVICE_MEMORY,
    )


RESIDUAL_IDS = (
    _table("user_id", 2_000_000_000, 128, "residual_id"),
    _table("query_id", 10_000_000_000, 128, "residual_id"),
    _table("user_x_query", 20_000_000_000, 64, "residual_id"),
    _table("user_x_author", 14_000_000_000, 64, "residual_id"),
    _table("query_x_author", 16_000_000_000, 64, "residual_id"),
    _table("author_id", 1_000_000_000, 128, "residual_id"),
    _table("device_id", 1_500_000_000, 64, "residual_id"),
    _table("query_bigram", 1_500_000_000, 64, "residual_id", (8.0,)),
)
ENTITIES_THAT_STAY = ("author_id", "device_id")
