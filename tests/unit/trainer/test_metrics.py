import numpy as np
import pytest
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.metrics import roc_auc_score

from trainer.metrics import (
    auc,
    calibration,
    calibration_bins,
    entropy,
    grouped_auc,
    log_loss,
    normalized_entropy,
)


def pairwise_auc(labels, scores):
    """Every positive against every negative."""
    won = pairs = 0.0
    for y_positive, s_positive in zip(labels, scores, strict=True):
        for y_negative, s_negative in zip(labels, scores, strict=True):
            if y_positive == 1 and y_negative == 0:
                pairs += 1
                won += 1.0 if s_positive > s_negative else 0.5 if s_positive == s_negative else 0.0
    return won / pairs if pairs else float("nan")


def draw(seed, rows, distinct):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    return labels, rng.integers(0, distinct, rows) / distinct


@pytest.mark.parametrize("distinct", [1, 3, 20, 10**9])
def test_auc_equals_pairwise_and_scikit_learn(distinct):
    labels, scores = draw(distinct, 120, distinct)
    assert auc(labels, scores) == pytest.approx(pairwise_auc(labels, scores), abs=1e-12)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auc_of_a_single_class_is_nan():
    assert np.isnan(auc([1, 1], [0.1, 0.2]))
    assert np.isnan(auc([0], [0.1]))


@pytest.mark.parametrize("distinct", [2, 10, 10**9])
def test_grouped_auc_equals_a_loop_over_groups(distinct):
    labels, scores = draw(7, 400, distinct)
    groups = np.random.default_rng(8).integers(-5, 60, 400) * 1_000_003
    values, weights, used = [], [], []
    for group in np.unique(groups):
        rows = groups == group
        if 0 < labels[rows].sum() < rows.sum():
            values.append(pairwise_auc(labels[rows], scores[rows]))
            weights.append(rows.sum())
            used.append(group)
    found = grouped_auc(labels, scores, groups)
    assert found.num_groups == len(used) < len(np.unique(groups))
    np.testing.assert_array_equal(found.group, used)
    np.testing.assert_allclose(found.auc, values, atol=1e-12)
    np.testing.assert_array_equal(found.impressions, weights)
    assert found.value == pytest.approx(np.average(values, weights=weights), abs=1e-12)


def test_grouped_auc_without_a_mixed_group_is_nan():
    found = grouped_auc([1, 0, 1], [0.5, 0.2, 0.1], [1, 2, 3])
    assert np.isnan(found.value)
    assert found.num_groups == 0


def test_losses_equal_their_definitions():
    labels, scores = draw(3, 500, 1000)
    scores = 0.01 + 0.98 * scores
    assert log_loss(labels, scores) == pytest.approx(sk_log_loss(labels, scores), abs=1e-12)
    rate = labels.mean()
    base = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert normalized_entropy(labels, scores) == pytest.approx(log_loss(labels, scores) / base)
    assert normalized_entropy(labels, np.full(500, rate)) == pytest.approx(1.0)
    assert calibration(labels, scores) == pytest.approx(scores.sum() / labels.sum())


def test_certain_and_wrong_is_finite_and_empty_classes_are_nan():
    assert 20 < log_loss([1], [0.0]) < 40
    assert np.isnan(normalized_entropy([1, 1], [0.5, 0.5]))
    assert np.isnan(calibration([0, 0], [0.5, 0.5]))
    np.testing.assert_array_equal(entropy(np.array([0.0, 1.0])), [0.0, 0.0])


def test_calibration_bins_partition_the_rows():
    labels, scores = draw(5, 103, 1000)
    bins = calibration_bins(labels, scores, num_bins=10)
    assert [one.rows for one in bins] == [11, 11, 11, 10, 10, 10, 10, 10, 10, 10]
    assert sum(one.rows * one.observed for one in bins) == pytest.approx(labels.sum())
    assert sum(one.rows * one.predicted for one in bins) == pytest.approx(scores.sum())
    assert [one.predicted for one in bins] == sorted(one.predicted for one in bins)
    assert len(calibration_bins([0, 1], [0.1, 0.2], num_bins=10)) == 2


@pytest.mark.parametrize(
    ("metric", "labels", "scores", "message"),
    [
        (auc, [0, 1], [0.5], "differ in length: 2 and 1"),
        (auc, [], [], "no rows"),
        (auc, [[0, 1]], [[0.1, 0.2]], "vectors"),
        (auc, [0, 2], [0.1, 0.2], r"found 2.0 at position 1"),
        (auc, [0, float("nan")], [0.1, 0.2], r"found nan at position 1"),
        (auc, [0, 1], [0.1, float("nan")], r"finite numbers, found nan at position 1"),
        (log_loss, [0, 1], [0.1, 1.5], r"probabilities in \[0, 1\], found 1.5"),
        (normalized_entropy, [0, 1], [-0.1, 0.5], "apply the sigmoid"),
        (calibration, [0, 1], [-0.1, 0.5], "apply the sigmoid"),
        (calibration_bins, [0, 1], [-0.1, 0.5], "apply the sigmoid"),
    ],
)
def test_wrong_arguments_are_refused(metric, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        metric(labels, scores)


def test_groups_of_another_length_are_refused():
    with pytest.raises(ValueError, match="groups and labels differ in length: 3 and 2"):
        grouped_auc([0, 1], [0.1, 0.2], [1, 1, 1])
