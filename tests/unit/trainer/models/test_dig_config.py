"""What a DIG model refuses to be built of."""

from dataclasses import replace

import pytest
import torch

from tests.integration import tiny_dig
from tests.integration.tiny_dig import CONFIG, ITEM, NUM_ITEMS, dig_model, variant
from trainer.models.ranking_model import RankingModel
from trainer.models.rankmixer_moe import RankMixerMoEConfig
from trainer.modules.learned_tokens import LearnedTokensConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_share": 1.5}, "cross_share is 1.5, expected 0 to 1"),
        ({"retrieval_u2t": "mean", "u2t_scope": "user"}, "one mean a code"),
        ({"num_negatives": -1}, "num_negatives is -1"),
        ({"num_negatives": 0, "unclicked_negatives": True}, "no retrieval samples"),
        ({"track_every": 0}, "track_every is 0"),
        ({"recall_weight": 0.0, "last_level_only": True}, "last_level_only is True, but recall_w"),
        (
            {"recall_weight": 0.0, "retrieval_u2t": "none", "u2t_scope": "user"},
            "leave u2t_scope, retrieval_u2t out",
        ),
    ],
)
def test_settings_of_the_model_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        variant(**changes)


def test_towers_with_a_loss_of_their_own_are_refused():
    tower = RankMixerMoEConfig(num_tokens=4, dim=16, num_layers=1)
    with pytest.raises(ValueError, match="RankMixerMoEConfig adds a loss of its own"):
        dig_model(config=variant(tower=tower))


def test_parts_of_batches_are_refused():
    with pytest.raises(ValueError, match="whole batches"):
        dig_model().train_in_parts(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 10}, "multiple of 16"),
        ({"text_dim": 0}, "exactly one"),
        ({"num_codes": 0}, "num_codes is 0"),
        ({"dim": 0}, "dim is 0"),
        ({"text_fields": 0}, "text_fields is 0"),
        ({"text_dim": 0, "embedding_column": None}, "text_fields is 2, but text_dim is 0"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"fixed_after": 0}, "at least 1 step"),
        ({"fixed": True, "fixed_after": 9}, "with fixed=True"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(ITEM, **changes)


def test_an_item_needs_features():
    with pytest.raises(ValueError, match="nothing tells"):
        LearnedTokensConfig(fields=())


def test_tables_of_other_rows_are_refused():
    config = replace(CONFIG, item=replace(ITEM, num_codes=7))
    with pytest.raises(ValueError, match="3 levels x 7 codes = 21"):
        RankingModel(
            config,
            tables=tiny_dig.tables(ITEM),
            num_dense=4,
            num_tasks=2,
            num_histories=2,
            roles=tiny_dig.ROLES,
        )


def test_texts_of_another_width_are_refused():
    features = tiny_dig.catalogue()._replace(text_NE=torch.zeros(NUM_ITEMS, 5))
    with pytest.raises(ValueError, match="have 5 dimensions"):
        dig_model().network.encoder.take_catalogue(features)
