"""DIG on the public logs of its section 4.1, and on Open Bandit, whose cross features are native.

farewell train dig_public.open_bandit
farewell train dig_public.kuairec_small
farewell train dig_public.taobao_ad
farewell compare dig_public.main_kuairec_small --seeds 3

docs/public_logs.md tells how to get the files.
"""

from __future__ import annotations

from configs import datasets, dig, dig_studies
from configs.dig_baselines import LONG_TRAINING
from configs.dig_studies import DigLog
from trainer.comparison import Comparison
from trainer.data.static_features import static_dense, static_fields
from trainer.experiment import Experiment
from trainer.modules.learned_tokens import LearnedTokensConfig


def kuairec_big() -> Experiment:
    """On KuaiRec's big matrix: tags, author, music, length, categories, and the caption's text."""
    return dig.with_texts(datasets.kuairec_big(), text_fields=2)


def kuairec_small() -> Experiment:
    """On KuaiRec's small matrix."""
    return dig.with_texts(datasets.kuairec_small(), text_fields=2)


def taobao_ad() -> Experiment:
    """On Taobao's display ads: category, brand, advertiser and price."""
    source = datasets.taobao_ad()
    return dig.experiment(source, LearnedTokensConfig(fields=static_fields(source.data.schema)))


def open_bandit() -> Experiment:
    """On Open Bandit's small version: 160 items, so few and short SIDs."""
    source = datasets.open_bandit()
    schema = source.data.schema
    item = LearnedTokensConfig(
        fields=static_fields(schema),
        dense_columns=static_dense(schema),
        num_levels=2,
        num_codes=16,
    )
    return dig.experiment(source, item)


def kuairec_big_log() -> DigLog:
    """One case a user (last click), as in section 4.1."""
    return DigLog(
        experiment=kuairec_big(),
        name="kuairec_big",
        training=LONG_TRAINING,
        num_cycles=2,
    )


def kuairec_small_log() -> DigLog:
    """One case a user (last click), as in section 4.1."""
    return DigLog(
        experiment=kuairec_small(),
        name="kuairec_small",
        training=LONG_TRAINING,
        num_cycles=2,
    )


def taobao_ad_log() -> DigLog:
    """One case a user (last click), as in section 4.1."""
    return DigLog(experiment=taobao_ad(), name="taobao_ad")


def smoke() -> Experiment:
    """Open Bandit, which is fetched in seconds, is the smoke log of this family."""
    return open_bandit()


def main_kuairec_big() -> Comparison:
    """Table 2: retrieval beside other retrievers; on KuaiRec's big matrix."""
    return dig_studies.main(kuairec_big_log())


def main_kuairec_small() -> Comparison:
    """Table 2: retrieval beside other retrievers; on KuaiRec's small matrix."""
    return dig_studies.main(kuairec_small_log())


def main_taobao_ad() -> Comparison:
    """Table 2: retrieval beside other retrievers; on Taobao's ads."""
    return dig_studies.main(taobao_ad_log())


def ranking_kuairec_big() -> Comparison:
    """Table 3: ranking with and without the retrieval path; on KuaiRec's big matrix."""
    return dig_studies.ranking(kuairec_big_log())


def ranking_kuairec_small() -> Comparison:
    """Table 3: ranking with and without the retrieval path; on KuaiRec's small matrix."""
    return dig_studies.ranking(kuairec_small_log())


def ranking_taobao_ad() -> Comparison:
    """Table 3: ranking with and without the retrieval path; on Taobao's ads."""
    return dig_studies.ranking(taobao_ad_log())


def gap_kuairec_big() -> Comparison:
    """Table 4: the gap between both paths' AUCs; on KuaiRec's big matrix."""
    return dig_studies.gap(kuairec_big_log())


def gap_kuairec_small() -> Comparison:
    """Table 4: the gap between both paths' AUCs; on KuaiRec's small matrix."""
    return dig_studies.gap(kuairec_small_log())


def gap_taobao_ad() -> Comparison:
    """Table 4: the gap between both paths' AUCs; on Taobao's ads."""
    return dig_studies.gap(taobao_ad_log())


def end_to_end_kuairec_big() -> Comparison:
    """Table 5: SIDs that learn against fixed ones; on KuaiRec's big matrix."""
    return dig_studies.end_to_end(kuairec_big_log())


def end_to_end_kuairec_small() -> Comparison:
    """Table 5: SIDs that learn against fixed ones; on KuaiRec's small matrix."""
    return dig_studies.end_to_end(kuairec_small_log())


def end_to_end_taobao_ad() -> Comparison:
    """Table 5: SIDs that learn against fixed ones; on Taobao's ads."""
    return dig_studies.end_to_end(taobao_ad_log())


def u2i_kuairec_big() -> Comparison:
    """Table 6: cross features in training, MLP_u2t in retrieval; on KuaiRec's big matrix."""
    return dig_studies.u2i(kuairec_big_log())


def u2i_kuairec_small() -> Comparison:
    """Table 6: cross features in training, MLP_u2t in retrieval; on KuaiRec's small matrix."""
    return dig_studies.u2i(kuairec_small_log())


def u2i_taobao_ad() -> Comparison:
    """Table 6: cross features in training, MLP_u2t in retrieval; on Taobao's ads."""
    return dig_studies.u2i(taobao_ad_log())


def mean_kuairec_big() -> Comparison:
    """Ablation 3: MLP_u2t against means of tokens; on KuaiRec's big matrix."""
    return dig_studies.mean(kuairec_big_log())


def mean_kuairec_small() -> Comparison:
    """Ablation 3: MLP_u2t against means of tokens; on KuaiRec's small matrix."""
    return dig_studies.mean(kuairec_small_log())


def mean_taobao_ad() -> Comparison:
    """Ablation 3: MLP_u2t against means of tokens; on Taobao's ads."""
    return dig_studies.mean(taobao_ad_log())


def levels_kuairec_big() -> Comparison:
    """Ablation 4: every level supervised, or the last alone; on KuaiRec's big matrix."""
    return dig_studies.levels(kuairec_big_log())


def levels_kuairec_small() -> Comparison:
    """Ablation 4: every level supervised, or the last alone; on KuaiRec's small matrix."""
    return dig_studies.levels(kuairec_small_log())


def levels_taobao_ad() -> Comparison:
    """Ablation 4: every level supervised, or the last alone; on Taobao's ads."""
    return dig_studies.levels(taobao_ad_log())


def completeness_kuairec_big() -> Comparison:
    """Table 7: shares of cross features; on KuaiRec's big matrix."""
    return dig_studies.completeness(kuairec_big_log())


def completeness_kuairec_small() -> Comparison:
    """Table 7: shares of cross features; on KuaiRec's small matrix."""
    return dig_studies.completeness(kuairec_small_log())


def completeness_taobao_ad() -> Comparison:
    """Table 7: shares of cross features; on Taobao's ads."""
    return dig_studies.completeness(taobao_ad_log())
