import pytest
import torch

from trainer.modules.token_cross import NoTokenCross, TokenMeans, TokenPredictor


def test_predictor_has_a_network_a_level():
    torch.manual_seed(0)
    made = TokenPredictor(user_dim=3, sid_dim=4, cross_dim=2, num_levels=2, hidden_dim=5)
    user, prefixes = torch.randn(6, 3), torch.randn(6, 2, 4)
    codes = torch.zeros(6, 2, dtype=torch.int64)
    found = made(user, prefixes, codes)
    for level in range(2):
        expected = made.levels[level](torch.cat([user, prefixes[:, level]], dim=1))
        torch.testing.assert_close(found[:, level], expected)
    twice = torch.stack([prefixes, prefixes], dim=1)
    many = made(user[:, None], twice, codes[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(many[:, 1], found)


def test_means_follow_the_impressions_of_each_code():
    torch.manual_seed(0)
    made = TokenMeans(num_levels=2, num_codes=3, cross_dim=2, decay=0.75)
    expected = {}
    for _ in range(3):
        cross, codes = torch.randn(8, 2), torch.randint(0, 3, (8, 2))
        codes[:, 1] = codes[:, 1].clamp_max(1)  # the last code has no impression
        made.follow(cross, codes)
        for level in range(2):
            for code in set(codes[:, level].tolist()):
                mean = cross[codes[:, level] == code].mean(0)
                before = expected.get((level, code), mean)
                expected[level, code] = 0.75 * before + 0.25 * mean
    codes = torch.tensor([[level_0, level_1] for level_0 in range(3) for level_1 in range(3)])
    found = made(torch.randn(9, 4), torch.randn(9, 2, 5), codes)
    for row, pair in enumerate(codes.tolist()):
        for level, code in enumerate(pair):
            mean = expected.get((level, code), torch.zeros(2))
            torch.testing.assert_close(found[row, level], mean)
    assert (1, 2) not in expected


def test_nothing_is_as_wide_as_cross_features():
    made = NoTokenCross(num_levels=2, cross_dim=3)
    found = made(torch.randn(4, 5), torch.randn(4, 2, 6), torch.zeros(4, 2, dtype=torch.int64))
    assert found.shape == (4, 2, 3)
    assert found.abs().sum() == pytest.approx(0.0)
