from dataclasses import replace

import pytest

from trainer.modules.next_token_config import ContextRoles, NextTokenConfig

CONFIG = NextTokenConfig(dim=8, num_layers=2, num_heads=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_query_tokens": -1}, "num_query_tokens is -1"),
        ({"num_query_tokens": 0, "num_user_tokens": 0}, "without a context"),
        ({"history_heads": -1}, "history_heads is -1"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_user_tokens": 0}, "history_heads is 2, but num_user_tokens is 0"),
        ({"num_heads": 3}, r"dim \(8\) must be a multiple of num_heads \(3\)"),
        ({"weight": -0.1}, "weight is -0.1"),
        ({"weight": 0.0}, "neither be trained nor read"),
        ({"weight": 0.0, "feeds_tower": True, "num_sampled": 3}, "no loss to sample"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_query_tokens_need_a_feature_of_the_request():
    bare = ContextRoles(
        query_features=(), user_features=("user",), query_dense=(), user_dense=(), tasks=("click",)
    )
    with pytest.raises(ValueError, match="no feature of the schema has entity 'request'"):
        CONFIG.check(bare, num_codes=7)
    replace(CONFIG, num_query_tokens=0).check(bare, num_codes=7)
