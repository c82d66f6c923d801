"""The studies of the STORE paper (section 3) as comparisons, on any log.

Rows come from `configs.store_rows` and `configs.store_baselines`; `configs.store` names the studies
on the logs that this package knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from configs.datasets import Source
from configs.recipe import with_all_checkpoints
from configs.store_baselines import id_row, id_towers
from configs.store_rows import (
    DENSE,
    STORE,
    StoreRow,
    attention_note,
    half,
    of_behaviour,
    opmq,
    store_tower,
    tokenized,
)
from tokenization.opq import OPQ
from tokenization.rq_vae import RQVAE
from trainer.baselines.bias import BiasBaseline
from trainer.baselines.boosted_trees import BoostedTreesBaseline
from trainer.comparison import ComparedRow, Comparison, PaperGain, Study, Sweep
from trainer.experiment import Experiment

SWEEP_SIDS = 8
"""Tokens of the sweep over sparsity, so that there is something to leave out."""
STORE_4_EPOCHS = "STORE, 4 epochs"
STORE_SASREC = "STORE, codes of SASRec"
RAW_IDS = "raw item IDs"

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


def main(
    name: str,
    source: Source,
    oracle: Mapping[str, str] | None = None,
    *,
    sasrec: bool = True,
) -> Comparison:
    """Table 1: eleven baselines with item IDs, STORE, and STORE for four epochs.

    Args:
        name: of the comparison.
        source: log and tokens.
        oracle: task -> column of true probabilities.
        sasrec: a row with codes of SASRec's embeddings, as the paper has them (section 3.1.4),
            beside codes of what the source has; leave it out where these are SASRec's.
    """
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
    if sasrec:
        of_sasrec = replace(row, source=of_behaviour(source)).experiment(own)
        rows.append((STORE_SASREC, STORE_SASREC, STORE, of_sasrec))
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
            notes=(FLOPS_NOTE, f"{STORE}: {attention_note(own)}", THROUGHPUT_NOTE),
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
                *(f"{title}: {attention_note(tower)}" for title, tower in towers.items()),
                THROUGHPUT_NOTE,
            ),
        ),
    )


def sources(name: str, source: Source) -> Comparison:
    """Section 3.1.4: codes of SASRec's item embeddings, or of what the catalogue says of items."""
    own, row = store_tower(source), StoreRow(source=opmq(source))
    rows = {
        STORE: row.experiment(own),
        STORE_SASREC: replace(row, source=of_behaviour(source)).experiment(own),
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
    rows = {
        title: with_all_checkpoints(replace(row, raw_ids=raw_ids).experiment(own), source)
        for title, raw_ids in ((RAW_IDS, True), ("semantic IDs", False))
    }
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
