"""The studies of the DIG paper (section 4) as comparisons, on any log.

Rows of all studies are variants of one experiment, so that equal rows are equal experiments:
`farewell compare` trains each of them once. `configs.dig` names the studies on the logs that this
package knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from configs.dig_baselines import FREE, TRAINING, retrievers
from tokenization.co_clicks import CoClicks
from trainer.baselines.bias import BiasBaseline
from trainer.baselines.boosted_trees import BoostedTreesBaseline
from trainer.comparison import ComparedRow, Comparison, PaperGain, Study, Sweep
from trainer.experiment import Experiment
from trainer.generative_retrieval.training import GeneratorTraining
from trainer.models.dig_config import DigModelConfig
from trainer.modules.learned_tokens import CoClickItemsConfig
from trainer.retrieval_study import RetrievalStudy

DIG = "DIG"
CO_CLICKS = "DIG on co-clicks"
RANK_ONLY = "rank only"
FIXED = "fixed SIDs"
NO_STATISTIC = "without training-side u2i"
NO_MLP = "without MLP_u2t"
NEITHER = "without both"
MEAN = "mean u2t"
LAST_LEVEL = "last level alone"
UNCLICKED = "with unclicked negatives"
SHARES = (0.0, 0.25, 0.5, 1.0)
"""Shares of impressions whose cross features are given."""

KUAIREC_SMALL = {
    "TIGER": {"recall@10": 0.0052, "ndcg@10": 0.0081},
    "LETTER": {"recall@10": 0.0063, "ndcg@10": 0.0109},
    "DAS": {"recall@10": 0.0116, "ndcg@10": 0.0216},
    "DOS": {"recall@10": 0.0213, "ndcg@10": 0.0426},
    "ETEGRec": {"recall@10": 0.0275, "ndcg@10": 0.0504},
    DIG: {"recall@10": 0.0418, "ndcg@10": 0.1189},
}
"""DIG's Table 2, on KuaiRec-Small; the order is the same on its other logs."""
RANK_AUC = {DIG: 0.8565, RANK_ONLY: 0.8428}
"""DIG's Table 3, on KuaiRec-Small."""
END_TO_END = {
    DIG: {"rank_auc": 0.8565, "recall_auc": 0.8431, "recall@10": 0.0418},
    FIXED: {"rank_auc": 0.8544, "recall_auc": 0.7562, "recall@10": 0.0275},
}
"""DIG's Table 5, on KuaiRec-Small."""
U2I = {
    DIG: {"recall@10": 0.0019, "ndcg@10": 0.0341},
    NO_STATISTIC: {"recall@10": 0.0014, "ndcg@10": 0.0253},
    NO_MLP: {"recall@10": 0.0016, "ndcg@10": 0.0290},
    NEITHER: {"recall@10": 0.0010, "ndcg@10": 0.0183},
}
"""DIG's Table 6, on Taobao."""
OF_MEAN = {DIG: {"recall@10": 0.0019}, MEAN: {"recall@10": 0.0015}}
"""DIG's Ablation 3, on Taobao."""
OF_LEVELS = {DIG: {"recall@10": 0.0019}, LAST_LEVEL: {"recall@10": 0.0019 * (1 - 0.184)}}
"""DIG's Ablation 4, on Taobao."""

OTHER_LOGS = "The paper's values are of other logs; only the order of rows can carry over."
ONE_ANSWER = (
    "The paper's NDCG is above its Recall, so its lists have several right answers; here each has "
    "one, and NDCG is at most Recall."
)


@dataclass(frozen=True, kw_only=True)
class DigLog:
    """DIG on a log, and how retrieval is asked there.

    Args:
        experiment: the whole DIG.
        name: of the log, as names of studies end.
        small: baselines of a size for seconds of training.
        oracle: task -> column of true probabilities.
        cases_per_user: last positives of each user that are asked for.
        leave_out_history: items of a case's history are left out of its list.
        training: of generative rows.
        num_cycles: of ETEGRec's tokenizer.
    """

    experiment: Experiment
    name: str
    small: bool = False
    oracle: Mapping[str, str] = field(default_factory=dict)
    cases_per_user: int = 1
    leave_out_history: bool = False
    training: GeneratorTraining = TRAINING
    num_cycles: int = 5

    @property
    def model(self) -> DigModelConfig:
        """The whole model."""
        found = self.experiment.model
        assert isinstance(found, DigModelConfig)
        return found

    @property
    def click_vectors(self) -> CoClicks:
        """Vectors of what is clicked together."""
        return CoClicks(dim=16 if self.small else 128)

    def variant(self, name: str, **changes: Any) -> Experiment:
        """DIG with other settings of its model."""
        return replace(self.experiment, name=name, model=replace(self.model, **changes))

    def fixed(self) -> Experiment:
        """Fixed SIDs (Ablation 1)."""
        return self.variant(
            "dig_fixed", item=replace(self.model.item, fixed=True, fixed_after=None)
        )

    def rank_only(self) -> Experiment:
        """Without the retrieval path (Table 3)."""
        return self.variant("dig_rank_only", recall_weight=0.0)

    def co_clicks(self) -> Experiment | None:
        """With co-click vectors beside the texts, as TRM has them; None for items without texts."""
        item, of_clicks = self.model.item, self.click_vectors
        if not item.text_dim:
            return None
        settings = {one.name: getattr(item, one.name) for one in fields(item)}
        settings |= {
            "text_dim": item.text_dim + of_clicks.dim,
            "embeddings": self.experiment.data.folder / "co_click_embeddings.parquet",
            "content": item.embeddings,
            "embedding_column": None,
        }
        if item.embedding_column is not None:
            settings["content_column"] = item.embedding_column
        return self.variant(
            "dig_co_clicks", item=CoClickItemsConfig(**settings, co_clicks=of_clicks)
        )

    def retrieval(self, **settings: Any) -> RetrievalStudy:
        """Asked in the same way in every study."""
        return RetrievalStudy(
            reference=DIG,
            cases_per_user=self.cases_per_user,
            leave_out_history=self.leave_out_history,
            **settings,
        )

    def comparison(
        self,
        study: str,
        rows: Mapping[str, Experiment],
        question: Study,
        *,
        retrieval: RetrievalStudy | None = None,
        paper: Mapping[str, tuple[PaperGain, ...]] | None = None,
    ) -> Comparison:
        """A study of some rows, beside the baselines of ranking."""
        return Comparison(
            name=f"dig.{study}_{self.name}",
            baselines=(BiasBaseline(), BoostedTreesBaseline()),
            rows=tuple(
                ComparedRow(
                    title=title,
                    tower="DCN-MoE",
                    experiment=experiment,
                    paper=(paper or {}).get(title, ()),
                )
                for title, experiment in rows.items()
            ),
            oracle=self.oracle,
            study=question,
            retrieval=retrieval,
        )


def main(log: DigLog) -> Comparison:
    """Table 2: DIG beside what is free, SASRec and generative retrievers."""
    rows: dict[str, Experiment] = {DIG: log.experiment}
    notes: tuple[str, ...] = (OTHER_LOGS, ONE_ANSWER)
    of_clicks = log.co_clicks()
    if of_clicks is not None:
        rows[CO_CLICKS] = of_clicks
        notes += (
            f"{CO_CLICKS}: the static features of its items are texts and, beside them, vectors of "
            "what is clicked together in the training rows, as TRM's row has them.",
        )
    return log.comparison(
        "main",
        rows,
        Study(
            question="Does DIG retrieve better than generative retrievers?",
            source="DIG Table 2",
            reference=DIG,
            notes=notes,
        ),
        retrieval=log.retrieval(
            retrievers=retrievers(
                log.model.item,
                training=log.training,
                num_cycles=log.num_cycles,
                co_clicks=log.click_vectors,
                small=log.small,
            ),
            free=FREE,
            published=KUAIREC_SMALL,
        ),
    )


def ranking(log: DigLog) -> Comparison:
    """Table 3: AUC of ranking with and without the retrieval path."""
    gain = PaperGain(auc=100 * (RANK_AUC[DIG] / RANK_AUC[RANK_ONLY] - 1))
    return log.comparison(
        "ranking",
        {RANK_ONLY: log.rank_only(), DIG: log.experiment},
        Study(
            question="Does training the retrieval path too harm ranking?",
            source="DIG Table 3",
            reference=RANK_ONLY,
            notes=(OTHER_LOGS,),
        ),
        paper={DIG: (gain,), RANK_ONLY: (PaperGain(auc=0.0),)},
    )


def gap(log: DigLog) -> Comparison:
    """Table 4: AUC of the retrieval path less that of the ranking path, and what narrows it."""
    rows = {DIG: log.experiment, UNCLICKED: log.variant("dig_unclicked", unclicked_negatives=True)}
    return log.comparison(
        "gap",
        rows,
        Study(
            question="How far does the retrieval path lag behind the ranking path?",
            source="DIG Table 4",
            reference=DIG,
            notes=(
                "The paper's gaps are -0.0134 to -0.0612, wider with richer cross features.",
                f"{UNCLICKED}: impressions without a click are negatives of the retrieval samples "
                "too. AUC asks what is liked of what is shown, lists of the whole catalogue for "
                "what is shown and liked.",
            ),
        ),
        retrieval=log.retrieval(metric="gap"),
    )


def end_to_end(log: DigLog) -> Comparison:
    """Table 5 (Ablation 1): SIDs that learn against fixed ones."""
    return log.comparison(
        "end_to_end",
        {DIG: log.experiment, FIXED: log.fixed()},
        Study(
            question="Do SIDs that learn with the ranker retrieve better than fixed ones?",
            source="DIG Table 5",
            reference=DIG,
            notes=(OTHER_LOGS,),
        ),
        retrieval=log.retrieval(published=END_TO_END),
    )


def u2i(log: DigLog) -> Comparison:
    """Table 6 (Ablation 2): cross features in training, and MLP_u2t in retrieval."""
    rows = {
        DIG: log.experiment,
        NO_STATISTIC: log.variant("dig_no_statistic", impression_u2t="none"),
        NO_MLP: log.variant("dig_no_mlp", retrieval_u2t="none"),
        NEITHER: log.variant("dig_neither", impression_u2t="none", retrieval_u2t="none"),
    }
    return log.comparison(
        "u2i",
        rows,
        Study(
            question="What do cross features in training and MLP_u2t in retrieval give?",
            source="DIG Table 6",
            reference=DIG,
            notes=(
                OTHER_LOGS,
                ONE_ANSWER,
                f"{NO_STATISTIC}: impressions of L_recall get zeros in place of the statistic of "
                "Eq. 13; c_{u,v} stays in the ranking path, and the statistic as MLP_u2t's "
                f"teacher. {NO_MLP}: retrieval, and the samples that it learns from, get zeros.",
            ),
        ),
        retrieval=log.retrieval(published=U2I),
    )


def mean(log: DigLog) -> Comparison:
    """Ablation 3: MLP_u2t against the mean of a token's impressions, also by user activity."""
    return log.comparison(
        "mean",
        {DIG: log.experiment, MEAN: log.variant("dig_mean", retrieval_u2t="mean")},
        Study(
            question="Is MLP_u2t better than the mean cross features of a token, above all for "
            "users of few impressions?",
            source="DIG Ablation 3",
            reference=DIG,
            notes=(
                OTHER_LOGS,
                "The mean is over all users' impressions of a code, a moving average over "
                "training; a mean for each user and code would need a table of users x codes.",
            ),
        ),
        retrieval=log.retrieval(published=OF_MEAN),
    )


def levels(log: DigLog) -> Comparison:
    """Ablation 4: supervision of every prefix against full SIDs alone."""
    rows = {
        DIG: log.experiment,
        LAST_LEVEL: log.variant("dig_last_level", last_level_only=True),
    }
    return log.comparison(
        "levels",
        rows,
        Study(
            question="Does retrieval need supervision of every level?",
            source="DIG Ablation 4",
            reference=DIG,
            notes=(OTHER_LOGS,),
        ),
        retrieval=log.retrieval(published=OF_LEVELS),
    )


def completeness(log: DigLog) -> Comparison:
    """Table 7: DIG and the rank-only model with cross features of some of the impressions."""
    rows, points = {}, {}
    for share in SHARES:
        for title, word, weight in (
            (DIG, "dig", log.model.recall_weight),
            (RANK_ONLY, "dig_rank_only", 0.0),
        ):
            name = title if share == 1 else f"{title}, {share:.0%} of u2i"
            rows[name] = log.variant(
                f"{word}_{100 * share:.0f}", recall_weight=weight, cross_share=share
            )
            points[name] = (title, 100 * share)
    return log.comparison(
        "completeness",
        rows,
        Study(
            question="Does DIG gain over the rank-only model where cross features are missing?",
            source="DIG Table 7",
            reference=RANK_ONLY,
            sweep=Sweep(axis="impressions with cross features, %", points=points),
            notes=(
                "The paper's logs differ in much else than the share of pairs with cross features; "
                "here they are taken away from the same log, in training and test alike.",
            ),
        ),
    )
