"""DIG on the public logs of its section 4.1, and on Open Bandit, whose cross features are native.

farewell train dig_public.open_bandit
farewell train dig_public.kuairec_small
farewell train dig_public.taobao_ad

docs/public_logs.md tells how to get the files.
"""

from __future__ import annotations

from configs import datasets, dig
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


def smoke() -> Experiment:
    """Open Bandit, which is fetched in seconds, is the smoke log of this family."""
    return open_bandit()
