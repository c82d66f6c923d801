"""The studies of the TRM paper (section 4) as comparisons, on any log.

Rows come from `configs.trm_rows`; `configs.trm` names the studies on the logs that this package
knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from configs.datasets import Source
from configs.recipe import with_all_checkpoints
from configs.sizes import DCN_V2, DHEN, DLRM_MLP, RANKMIXER, TRANSFORMER, WUKONG
from configs.trm_rows import (
    DENSE,
    NEXT_TOKEN,
    TokenRow,
    id_model,
    num_mem,
    onerec,
    other_mem,
    semid,
    tiger,
    trm,
    trm_tower,
)
from tokenization.mem_tokens import MemTokens
from tokenization.ngrams import KGrams, PrefixNGrams
from trainer.baselines.bias import BiasBaseline
from trainer.baselines.boosted_trees import BoostedTreesBaseline
from trainer.comparison import ComparedRow, Comparison, PaperGain, Study
from trainer.models.tower import TowerConfig

TRM = "TRM (RankMixer)"
GEN_ONLY = "gen-tokens alone"
NO_NEXT_TOKEN = "without next-token loss"
DLRM_ID = "DLRM-MLP (ID)"
RANKMIXER_ID = "RankMixer (ID)"

OTHER_SIZES = (
    "The paper's rows differ in dense parameters (7M to 355M); here they are equal, so orders of "
    "towers speak of architecture alone."
)
OTHER_TASKS = (
    "The paper's tasks are click and ten seconds of play; the first and second label of this log "
    "stand in their place."
)
NOT_REPEATED = (
    "Tables 4 and 7 of the paper are an online test and a review of result pages by people: they "
    "can't be repeated from a log. Gains by user activity on held-out impressions stand here "
    "instead; they say nothing of search days, changed queries, likes or comments."
)


def main(name: str, source: Source, oracle: Mapping[str, str] | None = None) -> Comparison:
    """Table 1: every tower with item IDs, every kind of token on RankMixer, TRM on both."""
    gains = {
        DLRM_ID: (0.0, 0.0, 0.0, 0.0),
        "DCN-v2 (ID)": (0.08, 0.06, 0.15, 0.10),
        "DHEN (ID)": (0.29, 0.23, 0.33, 0.31),
        "WuKong (ID)": (0.44, 0.38, 0.59, 0.45),
        "Transformer (ID)": (0.56, 0.46, 0.69, 0.56),
        RANKMIXER_ID: (0.58, 0.48, 0.76, 0.63),
        "Tiger-tokens": (0.45, 0.40, 0.58, 0.45),
        "OneRec-tokens": (0.53, 0.45, 0.64, 0.54),
        "SEMID": (0.56, 0.47, 0.75, 0.61),
        "TRM (Transformer)": (0.61, 0.53, 0.81, 0.68),
        TRM: (0.65, 0.54, 0.85, 0.70),
    }
    families = (DLRM_MLP, DCN_V2, DHEN, WUKONG, TRANSFORMER, RANKMIXER)
    rows = [(f"{family.title} (ID)", family, id_model(source, family)) for family in families]
    rows += [
        ("Tiger-tokens", RANKMIXER, tiger(source).sized("tiger_rankmixer")),
        ("OneRec-tokens", RANKMIXER, onerec(source).sized("onerec_rankmixer")),
        ("SEMID", RANKMIXER, semid(source).sized("semid_rankmixer")),
        ("TRM (Transformer)", TRANSFORMER, trm(source).sized("trm_transformer", TRANSFORMER)),
        (TRM, RANKMIXER, trm(source).sized("trm_rankmixer")),
    ]
    return Comparison(
        name=name,
        baselines=(BiasBaseline(), BoostedTreesBaseline()),
        rows=tuple(
            ComparedRow(
                title=title,
                tower=family.title,
                experiment=experiment,
                paper=_both_tasks(source, gains[title]),
            )
            for title, family, experiment in rows
        ),
        oracle=oracle or {},
        study=Study(
            question="What do six towers reach with item IDs, and what do tokens reach?",
            source="TRM Table 1",
            reference=DLRM_ID,
            equal_dense=True,
            notes=(OTHER_SIZES, OTHER_TASKS),
        ),
    )


def _both_tasks(source: Source, gains: tuple[float, float, float, float]) -> tuple[PaperGain, ...]:
    both = (PaperGain(auc=gains[0], qauc=gains[1]), PaperGain(auc=gains[2], qauc=gains[3]))
    return both[: len(source.data.schema.labels)]


def components(name: str, source: Source) -> Comparison:
    """Table 2: TRM without one of its parts at a time."""
    tower, whole = trm_tower(source), trm(source)
    rows = {
        TRM: (whole, PaperGain(auc=0.0, qauc=0.0)),
        "without alignment": (replace(whole, source=source), PaperGain(auc=-0.05, qauc=-0.03)),
        "without hybrid tokens": (
            replace(whole, mem_tokens=False),
            PaperGain(auc=-0.09, qauc=-0.07),
        ),
        NO_NEXT_TOKEN: (replace(whole, next_token=None), PaperGain(auc=-0.05, qauc=-0.05)),
    }
    return _ablation(
        name,
        rows,
        tower,
        Study(question="What does each part of TRM give?", source="TRM Table 2", reference=TRM),
    )


def next_token(name: str, source: Source) -> Comparison:
    """Table 3: the auxiliary transformer with and without the loss that it is there for."""
    whole = trm(source)
    rows = {NO_NEXT_TOKEN: (replace(whole, next_token=None), PaperGain(qauc=0.0))}
    for num_layers, with_loss, without in ((2, 0.03, 0.00), (4, 0.05, 0.01)):
        for weight, words, gain in (
            (NEXT_TOKEN.weight, "with loss", with_loss),
            (0.0, "without loss", without),
        ):
            config = replace(NEXT_TOKEN, num_layers=num_layers, weight=weight, feeds_tower=True)
            rows[f"{num_layers} blocks, {words}"] = (
                replace(whole, next_token=config),
                PaperGain(qauc=gain),
            )
    return _ablation(
        name,
        rows,
        trm_tower(source),
        Study(
            question="Is it the next-token loss that helps, or the transformer that it needs?",
            source="TRM Table 3",
            reference=NO_NEXT_TOKEN,
            notes=(
                "In all four rows the tower also reads the transformer's context tokens: without "
                "the loss nothing else would train it. In the other studies it does not.",
            ),
        ),
    )


def token_sets(name: str, source: Source) -> Comparison:
    """Table 5: which combinations of codes become tokens of their own."""
    whole, most = trm(source), num_mem(source)
    rows = {
        GEN_ONLY: (replace(whole, mem_tokens=False), PaperGain(auc=0.0, qauc=0.0)),
        "BPE": (whole, PaperGain(auc=0.09, qauc=0.07)),
        "2-grams": (
            replace(whole, source=other_mem(source, "2_grams", KGrams(num_merges=most))),
            PaperGain(auc=0.02, qauc=0.02),
        ),
        "prefix-n-grams": (
            replace(whole, source=other_mem(source, "prefixes", PrefixNGrams(num_merges=most))),
            PaperGain(auc=0.05, qauc=0.03),
        ),
    }
    return _ablation(
        name,
        rows,
        trm_tower(source),
        Study(
            question="Which combinations of codes should have embeddings of their own?",
            source="TRM Table 5",
            reference=GEN_ONLY,
            notes=(f"Every kind may have up to {most:,} tokens; fewer where codes give fewer.",),
        ),
    )


def position(name: str, source: Source) -> Comparison:
    """Table 6: next-token loss against positional encoding of the gen-tokens."""
    whole = trm(source)
    plain = replace(whole, next_token=None)
    rows = {
        NO_NEXT_TOKEN: (plain, PaperGain(auc=0.0, qauc=0.0)),
        "NTP": (whole, PaperGain(auc=0.05, qauc=0.05)),
        "PE": (replace(plain, positions=True), PaperGain(auc=0.02, qauc=0.01)),
        "NTP + PE": (replace(whole, positions=True), PaperGain(auc=0.05, qauc=0.05)),
    }
    return _ablation(
        name,
        rows,
        trm_tower(source),
        Study(
            question="Does the next-token loss give more than the order of tokens?",
            source="TRM Table 6",
            reference=NO_NEXT_TOKEN,
        ),
    )


def mem_tokens(name: str, source: Source) -> Comparison:
    """Figure 5: how many mem-tokens, and for items of which age."""
    whole, most = trm(source), num_mem(source)
    rows = {GEN_ONLY: (replace(whole, mem_tokens=False), PaperGain())}
    for count in (most // 8, most // 4, most // 2):
        tokens = other_mem(source, f"mem_{count}", MemTokens(num_merges=count))
        rows[f"{count:,} mem-tokens"] = (replace(whole, source=tokens), PaperGain())
    rows[f"{most:,} mem-tokens"] = (whole, PaperGain())
    return _ablation(
        name,
        rows,
        trm_tower(source),
        Study(
            question="What do more mem-tokens give, to items of which age at the request?",
            source="TRM Figure 5",
            reference=GEN_ONLY,
            heat_map="item_age",
        ),
    )


def token_types(name: str, source: Source) -> Comparison:
    """Figure 3: gain over item IDs by kind of token, item age and exposure."""
    plain = replace(trm(source), next_token=None)
    kinds = {
        RANKMIXER_ID: id_model(source, RANKMIXER),
        "RQ-VAE": tiger(source).sized("tiger_rankmixer"),
        "RQ-KMeans": replace(plain, mem_tokens=False).sized("gen_rankmixer"),
        "hybrid": plain.sized("hybrid_rankmixer"),
    }
    return Comparison(
        name=name,
        rows=tuple(
            ComparedRow(title=title, tower=RANKMIXER.title, experiment=experiment)
            for title, experiment in kinds.items()
        ),
        study=Study(
            question="Where do tokens gain over item IDs, and where do they lose?",
            source="TRM Figure 3",
            reference=RANKMIXER_ID,
            equal_dense=True,
            heat_map="item_age",
        ),
    )


def activity(name: str, source: Source) -> Comparison:
    """Gain by user activity, in place of the online Table 4."""
    rows = {
        DLRM_ID: (DLRM_MLP, id_model(source, DLRM_MLP)),
        RANKMIXER_ID: (RANKMIXER, id_model(source, RANKMIXER)),
        TRM: (RANKMIXER, trm(source).sized("trm_rankmixer")),
    }
    return Comparison(
        name=name,
        rows=tuple(
            ComparedRow(title=title, tower=family.title, experiment=experiment)
            for title, (family, experiment) in rows.items()
        ),
        study=Study(
            question="Do users of every level of activity gain?",
            source="TRM Table 4",
            reference=DLRM_ID,
            equal_dense=True,
            heat_map="user_activity",
            notes=(NOT_REPEATED,),
        ),
    )


def geometry(
    name: str, source: Source, sizes: tuple[int, ...] = (DENSE, 3 * DENSE, 10 * DENSE)
) -> Comparison:
    """Figure 1 and A.1.5: how ID and token embeddings spread, over training and size."""
    rows = []
    for dense in sizes:
        for title, experiment in (
            ("ID", id_model(source, RANKMIXER, dense)),
            ("TRM", trm(source).sized("trm_rankmixer", RANKMIXER, dense)),
        ):
            rows.append(
                ComparedRow(
                    title=f"{title}, {dense / 1e6:.2g}M",
                    tower=RANKMIXER.title,
                    experiment=with_all_checkpoints(experiment, source),
                )
            )
    return Comparison(
        name=name,
        rows=tuple(rows),
        study=Study(
            question="Do token embeddings spread more evenly than item IDs, and at every size?",
            source="TRM Figure 1",
            reference=rows[0].title,
            geometry=True,
        ),
    )


def _ablation(
    name: str, rows: Mapping[str, tuple[TokenRow, PaperGain]], tower: TowerConfig, study: Study
) -> Comparison:
    """Token rows on one tower; `study.reference` is one of them."""
    return Comparison(
        name=name,
        rows=tuple(
            ComparedRow(
                title=title,
                tower=RANKMIXER.title,
                experiment=row.experiment("trm_rankmixer", tower),
                paper=() if gain == PaperGain() else (gain,),
            )
            for title, (row, gain) in rows.items()
        ),
        study=study,
    )
