"""The studies of the STORE paper (section 3) as comparisons, on any log.

Rows of all studies are built here once, so that equal rows are equal experiments: `farewell
compare` trains each of them once. `configs.store` names the studies on the logs that this package
knows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from configs.datasets import Source, with_tokens
from configs.recipe import ID_DIM, id_encoder, ranking_experiment
from configs.sizes import DLRM_MLP, NUM_TOKENS, RANKMIXER, Family, sized
from tokenization.mem_tokens import MemTokens
from tokenization.opmq import OPMQ
from tokenization.opq import OPQ
from tokenization.rq_vae import RQVAE
from tokenization.tokenizers import AnyTokenizer
from trainer.baselines.bias import BiasBaseline
from trainer.baselines.boosted_trees import BoostedTreesBaseline
from trainer.comparison import ComparedRow, Comparison, PaperGain, Study, Sweep
from trainer.experiment import Experiment
from trainer.models.autoint import AutoIntConfig
from trainer.models.dcn import DCNConfig
from trainer.models.deepfm import DeepFMConfig
from trainer.models.fm import FMConfig
from trainer.models.gdcn import GDCNConfig
from trainer.models.masknet import MaskNetConfig
from trainer.models.onetrans import OneTransConfig
from trainer.models.pepnet import PEPNetConfig
from trainer.models.store import StoreConfig
from trainer.models.tower import TowerConfig
from trainer.models.wide_deep import WideDeepConfig
from trainer.modules.hybrid_tokens import ItemIdConfig
from trainer.modules.moba import attention_flops
from trainer.modules.parallel_tokens import ParallelTokensConfig
from trainer.sasrec_tokens import SASRecTokensConfig

DENSE = 600_000
"""Dense parameters of every row of the main table but FM, whose size is that of its features."""
NUM_SIDS = 4
SWEEP_SIDS = 8
"""Tokens of the sweep over sparsity, so that there is something to leave out."""
FIELD_DIM = 16
STORE = "STORE"
STORE_4_EPOCHS = "STORE, 4 epochs"
RAW_IDS = "raw item IDs"
BATCH = 1024
"""Impressions of a batch for which the paper counts FLOPs."""

OTHER_REFERENCE = (
    "The paper's gains are those of its public log (Avazu) over its best baseline there (OneTrans, "
    "AUC 0.7461); here gains are over the best item-ID row of this log."
)
FLOPS_NOTE = (
    "FLOPs of the report are those of a batch of 4,096 impressions; the paper's TFlops/Batch is "
    "for 1,024."
)
THROUGHPUT_NOTE = (
    "The paper's 1.84 x throughput is the ratio of its FLOPs, 3.240 / 1.763, not a measured time. "
    "With as few tokens as here, attention is a small part of the network, so sparsity saves "
    "little of the whole; `benchmarks/moba.py` measures attention itself."
)


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
    """
    of_entity: dict[str, list[str]] = {"user": [], "item": [], "request": []}
    for feature in source.data.schema.pooled_features:
        of_entity["request" if feature.entity == "cross" else feature.entity].append(feature.name)
    of_entity["request"].append("dense")
    history = ("history", "candidate_x_history", "feedback_sum")
    return (*(tuple(names) for names in of_entity.values() if names), history)


def half(num_tokens: int) -> float:
    """Sparsity 1/2, as deployed (section 4); of an odd number of tokens, the smaller half."""
    return (num_tokens // 2) / num_tokens


def tower(source: Source, num_tokens: int, *, group_dim: int, ffn_dim: int) -> StoreConfig:
    """STORE over the features of a log."""
    sparsity = half(num_tokens)
    return StoreConfig(
        num_tokens=num_tokens,
        groups=groups(source),
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


def id_towers(source: Source) -> dict[str, Family | TowerConfig]:
    """The baselines of the paper's Table 1; all but FM can be given a size."""
    prior = (*source.residual_ids[:1], "candidate")
    families = (
        Family(title="DNN", build=DLRM_MLP.build, unit=8),
        Family(
            title="Wide&Deep",
            build=lambda width, hidden: WideDeepConfig(hidden_dims=(hidden, width)),
            unit=8,
        ),
        Family(
            title="DeepFM",
            build=lambda width, hidden: DeepFMConfig(
                hidden_dims=(hidden, width), field_dim=FIELD_DIM
            ),
            unit=8,
        ),
        Family(
            title="DCN",
            build=lambda width, hidden: DCNConfig(num_layers=3, hidden_dims=(hidden, width)),
            unit=8,
        ),
        Family(
            title="AutoInt",
            build=lambda width, hidden: AutoIntConfig(
                hidden_dims=(hidden, width), field_dim=FIELD_DIM
            ),
            unit=8,
        ),
        Family(
            title="GDCN",
            build=lambda width, hidden: GDCNConfig(num_layers=1, hidden_dims=(hidden, width)),
            unit=4,
        ),
        Family(
            title="MaskNet",
            build=lambda width, hidden: MaskNetConfig(
                num_blocks=2, block_dim=width, reduction=0.125, hidden_dims=(hidden,)
            ),
            unit=8,
        ),
        Family(
            title="PEPNet",
            build=lambda width, hidden: PEPNetConfig(
                hidden_dims=(hidden, width), gate_dim=32, prior_features=prior
            ),
            unit=8,
        ),
        RANKMIXER,
        Family(
            title="OneTrans",
            build=lambda width, hidden: OneTransConfig(
                num_tokens=NUM_TOKENS, dim=width, expansion=hidden / width
            ),
            unit=8,
        ),
    )
    return {"FM": FMConfig(field_dim=FIELD_DIM), **{one.title: one for one in families}}


def id_row(source: Source, title: str, tower: Family | TowerConfig) -> Experiment:
    """A baseline: an item is its ID."""
    name = f"{title.lower().replace('&', '_').replace('-', '_')}_id"

    def make(config: TowerConfig) -> Experiment:
        return ranking_experiment(name, source, item=id_encoder(), tower=config)

    return sized(make, tower, DENSE) if isinstance(tower, Family) else make(tower)


AVAZU_AUC = {
    "FM": 0.7291,
    "DNN": 0.7231,
    "Wide&Deep": 0.7356,
    "DeepFM": 0.7404,
    "DCN": 0.7344,
    "AutoInt": 0.7439,
    "GDCN": 0.7370,
    "MaskNet": 0.7426,
    "PEPNet": 0.7411,
    "RankMixer": 0.7450,
    "OneTrans": 0.7461,
    STORE: 0.7479,
    STORE_4_EPOCHS: 0.7488,
}
"""STORE's Table 1."""
ABLATION_AUC = {
    STORE_4_EPOCHS: 0.6855,
    STORE: 0.6804,
    "OPQ": 0.6787,
    "RQ-VAE": 0.6768,
    "without rotation": 0.6780,
    "vanilla attention": 0.6812,
}
"""STORE's Table 2."""


def _gain(published: Mapping[str, float], title: str, reference: str) -> tuple[PaperGain, ...]:
    if title not in published:
        return ()
    return (PaperGain(auc=100 * (published[title] / published[reference] - 1)),)


def main(name: str, source: Source, oracle: Mapping[str, str] | None = None) -> Comparison:
    """Table 1: eleven baselines with item IDs, STORE, and STORE for four epochs."""
    rows = [
        (f"{title} (ID)", title, title, id_row(source, title, tower))
        for title, tower in id_towers(source).items()
    ]
    row = StoreRow(source=opmq(source))
    own = store_tower(source)
    rows += [
        (STORE, STORE, STORE, row.experiment(own)),
        (
            STORE_4_EPOCHS,
            STORE_4_EPOCHS,
            STORE,
            replace(row, num_epochs=4).experiment(own),
        ),
    ]
    return Comparison(
        name=name,
        baselines=(BiasBaseline(), BoostedTreesBaseline()),
        rows=tuple(
            ComparedRow(
                title=title,
                tower=tower,
                experiment=experiment,
                paper=_gain(AVAZU_AUC, published, "OneTrans"),
            )
            for title, published, tower, experiment in rows
        ),
        oracle=oracle or {},
        study=Study(
            question="Is STORE better than ranking models with item IDs?",
            source="STORE Table 1",
            notes=(
                OTHER_REFERENCE,
                f"Dense parameters of all rows but FM are equal ({DENSE:,}); the paper's are not "
                "given.",
            ),
        ),
    )


def components(name: str, source: Source) -> Comparison:
    """Table 2, and raw item IDs in the place of semantic ones."""
    own, with_opmq = store_tower(source), opmq(source)
    shape = with_opmq.tokens.tokenizer
    opq = OPQ(num_levels=shape.num_levels, num_codes=shape.num_codes)
    rq_vae = RQVAE(num_levels=shape.num_levels, num_codes=shape.num_codes)
    row = StoreRow(source=with_opmq)
    rows = {
        STORE: row.experiment(own),
        STORE_4_EPOCHS: replace(row, num_epochs=4).experiment(own),
        "OPQ": replace(row, source=tokenized(source, opq)).experiment(own),
        "RQ-VAE": replace(row, source=tokenized(source, rq_vae)).experiment(own),
        RAW_IDS: replace(row, raw_ids=True).experiment(own),
        "without rotation": row.experiment(replace(own, rotation="none")),
        "vanilla attention": row.experiment(replace(own, sparsity=0.0, block_size=None)),
    }
    return _study(
        name,
        rows,
        Study(
            question="What does each part of STORE give?",
            source="STORE Table 2",
            reference=STORE,
            notes=(FLOPS_NOTE, f"{STORE}: {_attention_note(own)}", THROUGHPUT_NOTE),
        ),
        ABLATION_AUC,
    )


def epochs(name: str, source: Source, most: int = 4) -> Comparison:
    """Figure 2 (a): one to four epochs with item IDs and with semantic IDs."""
    own, row = store_tower(source), StoreRow(source=opmq(source))
    rows: dict[str, Experiment] = {}
    points: dict[str, tuple[str, float]] = {}
    for raw_ids, words in ((True, RAW_IDS), (False, "semantic IDs")):
        for count in range(1, most + 1):
            title = f"{words}, {count} epoch{'s' if count > 1 else ''}"
            changed = replace(row, raw_ids=raw_ids, num_epochs=count)
            rows[title] = changed.experiment(own)
            points[title] = (words, count)
    return _study(
        name,
        rows,
        Study(
            question="Do more epochs harm item IDs (the one-epoch effect), and not semantic IDs?",
            source="STORE Figure 2 (a)",
            reference=f"{RAW_IDS}, 1 epoch",
            sweep=Sweep(axis="epochs", points=points),
            notes=("Each row is a training of its own, whose schedule ends with its last epoch.",),
        ),
    )


def num_sids(name: str, source: Source, counts: tuple[int, ...] = (2, 4, 8)) -> Comparison:
    """Figure 2 (b): semantic IDs of an item; as many tokens and rotations."""
    own = store_tower(source)
    rows = {}
    for count in counts:
        sparsity = half(count)
        changed = replace(
            own, num_tokens=count, sparsity=sparsity, block_size=1 if sparsity else None
        )
        rows[f"{count} semantic IDs"] = StoreRow(source=opmq(source, count)).experiment(changed)
    return _study(
        name,
        rows,
        Study(
            question="Do more semantic IDs help?",
            source="STORE Figure 2 (b)",
            reference=next(iter(rows)),
            sweep=_sweep("semantic IDs of an item", rows, counts),
            notes=("Widths stay, so a model of more semantic IDs also has more parameters.",),
        ),
    )


def layers(name: str, source: Source, counts: tuple[int, ...] = (1, 2, 3, 4)) -> Comparison:
    """Figure 2 (c): layers of attention."""
    own, row = store_tower(source), StoreRow(source=opmq(source))
    rows = {
        f"{count} layer{'s' if count > 1 else ''}": row.experiment(replace(own, num_layers=count))
        for count in counts
    }
    return _study(
        name,
        rows,
        Study(
            question="Do more layers help?",
            source="STORE Figure 2 (c)",
            reference=next(iter(rows)),
            sweep=_sweep("layers", rows, counts),
        ),
    )


def sparsity(name: str, source: Source, count: int = SWEEP_SIDS) -> Comparison:
    """Figure 2 (d): share of tokens that a token does not attend to; 0 is vanilla attention."""
    own = replace(store_tower(source), num_tokens=count)
    row = StoreRow(source=opmq(source, count))
    shares = {"0 (vanilla)": 0.0, "1/4": 0.25, "1/2": 0.5, "3/4": 0.75}
    towers = {
        f"sparsity {words}": replace(own, sparsity=share, block_size=1 if share else None)
        for words, share in shares.items()
    }
    return _study(
        name,
        {title: row.experiment(tower) for title, tower in towers.items()},
        Study(
            question="What does it cost to attend to fewer tokens?",
            source="STORE Figure 2 (d)",
            reference=next(iter(towers)),
            sweep=_sweep("share of tokens not attended to", towers, tuple(shares.values())),
            notes=(
                FLOPS_NOTE,
                *(f"{title}: {_attention_note(tower)}" for title, tower in towers.items()),
                THROUGHPUT_NOTE,
            ),
        ),
    )


def sources(name: str, source: Source) -> Comparison:
    """Section 3.1.4: codes of SASRec's item embeddings, or of what the catalogue says of items."""
    own, row = store_tower(source), StoreRow(source=opmq(source))
    rows = {
        STORE: row.experiment(own),
        "codes of SASRec": replace(row, source=of_behaviour(source)).experiment(own),
    }
    return _study(
        name,
        rows,
        Study(
            question="Which embeddings should semantic IDs be made of?",
            source="STORE section 3.1.4",
            reference=STORE,
            notes=(
                "The paper takes SASRec's embeddings. Here that of an item without clicks in the "
                "training part is the mean of all, so that such items share their codes.",
            ),
        ),
    )


def ranks(name: str, source: Source) -> Comparison:
    """Section 1's claim that item IDs give embeddings of low rank: spectra of both."""
    own, row = store_tower(source), StoreRow(source=opmq(source))
    every = max(1, source.warmup_steps // 2)
    rows = {}
    for title, raw_ids in ((RAW_IDS, True), ("semantic IDs", False)):
        experiment = replace(row, raw_ids=raw_ids).experiment(own)
        train = replace(experiment.train, checkpoint_every=every, keep_checkpoints=1_000)
        rows[title] = replace(experiment, train=train)
    return _study(
        name,
        rows,
        Study(
            question="Are embeddings of item IDs of lower rank than those of semantic IDs?",
            source="STORE section 1",
            reference=RAW_IDS,
            geometry=True,
        ),
    )


def _study(
    name: str,
    rows: Mapping[str, Experiment],
    study: Study,
    published: Mapping[str, float] | None = None,
) -> Comparison:
    """Rows of STORE; gains of the paper where it has them."""
    return Comparison(
        name=name,
        rows=tuple(
            ComparedRow(
                title=title,
                tower=STORE,
                experiment=experiment,
                paper=_gain(published or {}, title, STORE),
            )
            for title, experiment in rows.items()
        ),
        study=study,
    )


def _sweep(axis: str, titles: Iterable[str], values: tuple[float, ...]) -> Sweep:
    """One series: each title's size."""
    points = {title: (STORE, value) for title, value in zip(titles, values, strict=True)}
    return Sweep(axis=axis, points=points)


def _attention_note(tower: StoreConfig) -> str:
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
