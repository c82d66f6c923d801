"""What STORE's studies compare on any log: its codes, its tower, its row.

Equal rows are equal experiments, so `farewell compare` trains each of them once, whatever number
of studies it stands in. `configs.store_studies` asks the questions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from configs.datasets import Source, with_tokens
from configs.recipe import ID_DIM, ranking_experiment
from configs.sizes import Family, sized
from tokenization.mem_tokens import MemTokens
from tokenization.opmq import OPMQ
from tokenization.tokenizers import AnyTokenizer
from trainer.data.code_columns import coded_ids
from trainer.experiment import Experiment
from trainer.models.store import StoreConfig
from trainer.models.tower import TowerConfig
from trainer.modules.hybrid_tokens import ItemIdConfig
from trainer.modules.moba import attention_flops
from trainer.modules.parallel_tokens import ParallelTokensConfig
from trainer.sasrec_tokens import SASRecTokensConfig

STORE = "STORE"
DENSE = 600_000
"""Dense parameters of every row of the main table but FM, whose size is that of its features."""
NUM_SIDS = 4
BATCH = 1024
"""Impressions of a batch for which the paper counts FLOPs."""


def tokenized(source: Source, tokenizer: AnyTokenizer) -> Source:
    """The log with parallel or residual codes of a tokenizer, each in a folder of its own."""
    name = f"tokens_{tokenizer.kind}_{tokenizer.num_levels}x{tokenizer.num_codes}"
    return with_tokens(source, name, tokenizer=tokenizer, mem=MemTokens(num_merges=0))


def opmq(source: Source, num_sids: int | None = None) -> Source:
    """OPMQ's codes (section 2.1): as many as asked for, or as the source's own OPMQ has."""
    shape = source.tokens.tokenizer
    if num_sids is None:
        num_sids = shape.num_levels if isinstance(shape, OPMQ) else NUM_SIDS
    return tokenized(source, OPMQ(num_levels=num_sids, num_codes=shape.num_codes))


def of_behaviour(source: Source) -> Source:
    """OPMQ's codes of what SASRec learns from clicks, in the place of what items say."""
    tokens = opmq(source).tokens
    own = SASRecTokensConfig(
        folder=tokens.folder.with_name(f"{tokens.folder.name}_sasrec"),
        embeddings=tokens.embeddings.with_name("item_embeddings_sasrec.parquet"),
        tokenizer=tokens.tokenizer,
        mem=tokens.mem,
    )
    return replace(source, tokens=own)


def groups(source: Source) -> tuple[tuple[str, ...], ...]:
    """Semantic groups of static features: user, item, request and statistics, history.

    IDs that stay in every model (`Source.residual_ids`) are in the group of whom they describe.
    Codes of an ID (`trainer.data.code_columns`) are in none: they are semantic IDs.
    """
    codes = {name for names in coded_ids(source.data.schema).values() for name in names}
    of_entity: dict[str, list[str]] = {"user": [], "item": [], "request": []}
    for feature in source.data.schema.pooled_features:
        if feature.name not in codes:
            entity = "request" if feature.entity == "cross" else feature.entity
            of_entity[entity].append(feature.name)
    of_entity["request"].append("dense")
    history = ("history", "candidate_x_history", "feedback_sum")
    return (*(tuple(names) for names in of_entity.values() if names), history)


def half(num_tokens: int) -> float:
    """Sparsity 1/2, as deployed (section 4); of an odd number of tokens, the smaller half."""
    return (num_tokens // 2) / num_tokens


def tower(source: Source, num_tokens: int, *, group_dim: int, ffn_dim: int) -> StoreConfig:
    """STORE over the features of a log; what has codes there is a semantic ID beside the item."""
    sparsity = half(num_tokens)
    return StoreConfig(
        num_tokens=num_tokens,
        groups=groups(source),
        semantic_ids=(("candidate",), *coded_ids(source.data.schema).values()),
        group_dim=group_dim,
        ffn_dim=ffn_dim,
        sparsity=sparsity,
        block_size=1 if sparsity else None,
    )


def family(source: Source, num_tokens: int) -> Family:
    """STORE towers of a log, by width of a group and hidden width."""
    return Family(
        title=STORE,
        build=lambda width, hidden: tower(source, num_tokens, group_dim=width, ffn_dim=hidden),
        unit=4,
        ratio=8.0,
    )


@dataclass(frozen=True, kw_only=True)
class StoreRow:
    """What a row of STORE is made of.

    Args:
        source: log and tokens.
        raw_ids: an item is its ID, as wide as all codes, cut into as many tokens.
        num_epochs: passes over the training rows.
    """

    source: Source
    raw_ids: bool = False
    num_epochs: int = 1

    def experiment(self, tower: TowerConfig) -> Experiment:
        """With a given tower."""
        num_sids = self.source.tokens.num_levels
        item: ItemIdConfig | ParallelTokensConfig
        if self.raw_ids:
            item = ItemIdConfig(table_dim=num_sids * ID_DIM, item_dim=num_sids * ID_DIM)
        else:
            item = ParallelTokensConfig(num_levels=num_sids, table_dim=ID_DIM)
        train = replace(self.source.train, num_epochs=self.num_epochs)
        name = "store_id" if self.raw_ids else "store"
        return ranking_experiment(name, replace(self.source, train=train), item=item, tower=tower)

    def sized(self, dense: int = DENSE) -> Experiment:
        """With a tower that brings the whole network to `dense` parameters."""
        return sized(self.experiment, family(self.source, self.source.tokens.num_levels), dense)


@functools.cache
def store_tower(source: Source) -> StoreConfig:
    """The tower of STORE's row, which its ablations keep."""
    found = StoreRow(source=opmq(source)).sized().model.tower
    assert isinstance(found, StoreConfig)
    return found


def attention_note(tower: StoreConfig) -> str:
    """FLOPs of scores and weighted sums, which alone sparsity changes, for the paper's batch."""
    head_dim = (ID_DIM + tower.block_dim) // tower.num_heads
    block_size, tokens = tower.block_size, tower.num_tokens
    vanilla = 12 * tokens * tokens * head_dim
    own = vanilla
    if block_size is not None:
        selected = round((1 - tower.sparsity) * tokens / block_size)
        own = attention_flops(tokens, head_dim, block_size=block_size, num_selected=selected)
    per_batch = BATCH * tower.num_layers * tower.num_heads / 1e12
    return (
        f"scores and weighted sums of attention take {own * per_batch:.3g} TFLOPs a batch of "
        f"{BATCH:,}, {vanilla * per_batch:.3g} of vanilla attention by the same products."
    )
