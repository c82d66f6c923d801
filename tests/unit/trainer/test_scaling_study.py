import json
from dataclasses import replace

import numpy as np
import pytest

from configs import dlrm_id
from trainer.buckets import by_count
from trainer.data.schema import RowRange
from trainer.evaluation import EvaluationSplit
from trainer.metrics import log_loss
from trainer.scaling_report import markdown, scaling_figure, tables, write_scaling_report
from trainer.scaling_study import (
    ScaledRun,
    ScalingSide,
    ScalingStudy,
    build_scaling_report,
    scaling_words,
)

ROWS, SIZES = 20_000, (10**5, 10**6, 10**7, 10**8, 10**9)


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(0)
    logit = 1.5 * rng.standard_normal(ROWS)
    return logit, rng.random(ROWS) < 1 / (1 + np.exp(-logit))


@pytest.fixture(scope="module")
def split(truth):
    rng = np.random.default_rng(1)
    return EvaluationSplit.from_ids(
        rows=RowRange(0, ROWS),
        labels={"click": truth[1], "play": truth[1]},
        user_ids=rng.integers(0, 2000, ROWS),
        query_ids=rng.integers(0, 4000, ROWS),
        bucketings={"x": by_count("x", rng.integers(0, 3, ROWS), (1, 2))},
    )


def run(truth, error, *, size=10**5, seeds=2):
    """A model whose logits miss the truth by noise of scale `error`."""
    scores = []
    for seed in range(seeds):
        noise = np.random.default_rng(99 + seed).standard_normal(ROWS)
        p = 1 / (1 + np.exp(-(truth[0] + error * noise)))
        scores.append({"click": p, "play": p})
    return ScaledRun(
        dense_params=size,
        flops_per_batch=10 * size,
        flops_batch=4096,
        samples=1_000_000,
        train_seconds=5.0,
        scores=tuple(scores),
    )


def study():
    experiment = dlrm_id.smoke()
    side = ScalingSide(title="tokens", kind="token", experiments=(experiment,) * len(SIZES))
    return ScalingStudy(
        name="toy",
        sides=(side, replace(side, title="ids", kind="id")),
        baseline=experiment,
        question=("tokens", "ids"),
    )


def curve(truth, beta):
    """Loss above the floor goes with the square of the error: error ~ N^-(beta / 2)."""
    return [run(truth, 1.2 * (size / SIZES[0]) ** (-beta / 2), size=size) for size in SIZES]


@pytest.fixture(scope="module")
def report(truth, split):
    return build_scaling_report(
        study(),
        {"tokens": curve(truth, 0.8), "ids": curve(truth, 0.15)},
        run(truth, 2.0),
        split,
        dataset="toy",
        num_resamples=60,
        machine={"cores": "2"},
        versions={"torch": "2"},
    )


def test_points_are_measured_on_the_main_task(report, truth):
    side = report["sides"][0]
    assert report["task"] == "click"
    assert [point["dense_params"] for point in side["points"]] == list(SIZES)
    first = run(truth, 1.2)
    losses = [log_loss(truth[1], scores["click"]) for scores in first.scores]
    assert side["points"][0]["logloss_by_seed"] == pytest.approx(losses)
    assert side["points"][0]["logloss"] == pytest.approx(np.mean(losses))
    assert side["points"][0]["qauc_gain_ci"][0] > 0
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_steeper_side_is_found_and_said(report):
    steep, shallow = (side["fit"] for side in report["sides"])
    assert steep["exponent_ci"][0] > shallow["exponent"]
    (found,) = report["exponents"]
    assert found["verdict"] == "larger"
    assert report["words"][0].startswith("The data support beta_token > beta_id: tokens 0.")
    assert "larger with tokens in 1, smaller in 0, undecided in 0" in report["words"][1]


@pytest.mark.parametrize(
    ("verdict", "opening"),
    [
        ("larger", "The data support beta_token > beta_id"),
        ("smaller", "The data contradict beta_token > beta_id"),
        ("undecided", "The data do not decide whether beta_token > beta_id"),
    ],
)
def test_words_follow_the_verdict(report, verdict, opening):
    changed = {**report, "exponents": [{**report["exponents"][0], "verdict": verdict}]}
    assert scaling_words(changed)[0].startswith(opening)


def test_a_side_without_exponent_is_named(report):
    fit = {**report["sides"][1]["fit"], "exponent": None, "exponent_ci": [None, None]}
    sides = [report["sides"][0], {**report["sides"][1], "fit": fit}]
    none = {**report["exponents"][0], "ci": [None, None], "verdict": "undecided"}
    words = scaling_words({**report, "sides": sides, "exponents": [none]})
    assert "ids has no exponent; no draw has both exponents." in words[0]
    assert any(word.startswith("Loss does not fall with size for ids") for word in words)


def test_report_is_written_whole(report, tmp_path):
    page = write_scaling_report(tmp_path, report)
    assert json.loads((tmp_path / "scaling.json").read_text()) == report
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    html, text = page.read_text(), (tmp_path / "scaling.md").read_text()
    assert text == markdown(report)
    for shown in (html, text):
        assert "tokens" in shown
        assert "L_inf" in shown
    assert '<img src="http' not in html
    assert [table.title for table in tables(report)] == ["Laws", "Exponents", "Models"]
    assert len(tables(report)[2].rows) == 2 * len(SIZES)


def test_figure_has_logarithmic_sizes_and_both_axes(report):
    figure = scaling_figure(report)
    axes = figure.axes
    labels = [axes[0].xaxis.get_major_formatter()(size) for size in SIZES]
    assert labels == ["100k", "1M", "10M", "100M", "1G"]
    assert [one.get_xscale() for one in axes] == ["log"] * 4
    assert axes[0].get_yscale() == "log"
    np.testing.assert_array_equal(axes[0].lines[0].get_xdata(), SIZES)
    np.testing.assert_array_equal(axes[1].lines[0].get_xdata(), [10 * size for size in SIZES])


def test_too_few_sizes_are_refused():
    with pytest.raises(ValueError, match="3 sizes, expected at least 4"):
        ScalingSide(title="x", kind="id", experiments=(dlrm_id.smoke(),) * 3)


def test_question_must_name_a_token_and_an_id_side():
    with pytest.raises(ValueError, match=r"question is .* expected the titles of a token side"):
        replace(study(), question=("ids", "tokens"))
    with pytest.raises(ValueError, match="a title stands twice"):
        replace(study(), sides=(study().sides[0],) * 2)


def test_sides_must_share_the_log():
    with pytest.raises(ValueError, match="all must share data, schema and split"):
        replace(study(), baseline=dlrm_id.movielens100k())
