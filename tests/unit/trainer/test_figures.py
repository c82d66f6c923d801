import numpy as np
import pytest

from trainer.figure_style import row_styles
from trainer.figures import calibration, gain_by_bucket, training_curves
from trainer.storage_figure import quality_against_storage


def row(name, auc=0.8, size=1000, kind="model", tower="t"):
    return {
        "name": name,
        "kind": kind,
        "tower": tower,
        "sparse_bytes": size,
        "metrics": {"like": {"auc": auc, "auc_ci": [auc - 0.01, auc + 0.01]}},
        "curves": [],
        "calibration_bins": {"like": [{"rows": 1, "predicted": 0.25, "observed": 0.75}]},
    }


def make(rows, pairs=()):
    return {
        "main_task": "like",
        "split": {"name": "test"},
        "rows": rows,
        "reference": "ids",
        "bucketings": {"age": "item age"},
        "bucket_pairs": list(pairs),
    }


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_names_stand_at_points_while_they_find_room_and_in_a_legend_otherwise():
    few = make([row("small", 0.79, 10**6), row("large", 0.81, 10**8), row("gbm", 0.75, None)])
    figure = quality_against_storage(few, row_styles(few))
    assert {"small", "large", "gbm"} <= {*texts(figure)}
    assert not figure.legends
    many = make([row(f"a long name of row {index}", 0.8, 1000) for index in range(12)])
    figure = quality_against_storage(many, row_styles(many))
    assert not texts(figure)
    assert len(figure.legends[0].get_texts()) == 12


def test_points_stand_at_their_bytes_and_auc_with_bars():
    report = make([row("small", 0.79, 10**6), row("large", 0.81, 10**8)])
    axes = quality_against_storage(report, row_styles(report)).axes[0]
    drawn = [container.lines[0].get_xydata()[0].tolist() for container in axes.containers]
    assert drawn == [[10**6, 0.79], [10**8, 0.81]]
    assert axes.get_xscale() == "log"


def test_rows_of_equal_size_stand_around_it():
    rows = [row(f"row {index}", 0.8 + index / 1000, 10**6) for index in range(7)]
    report = make([*rows, row("large", 0.81, 10**8)])
    axes = quality_against_storage(report, row_styles(report)).axes[0]
    places = [container.lines[0].get_xydata()[0][0] for container in axes.containers][:-1]
    assert places == sorted(set(places))
    assert np.prod(places) ** (1 / 7) == pytest.approx(10**6)
    assert places[-1] / places[0] < (10**8 / 10**6) ** 0.2


def test_a_baseline_far_away_is_named_at_the_edge_and_leaves_the_scale():
    far = [row("gbm", 0.5, None), row("bias", 0.6, None), row("oracle", 0.95, None)]
    report = make([row("ids", 0.8, 10**6), row("tokens", 0.81, 10**5), *far])
    figure = quality_against_storage(report, row_styles(report))
    low, high = figure.axes[0].get_ylim()
    assert 0.75 < low < high < 0.86
    assert {"\u2193 gbm 0.5000", "\u2193 bias 0.6000", "\u2191 oracle 0.9500"} <= {*texts(figure)}


def test_small_buckets_and_buckets_without_interval_are_left_out():
    pairs = [
        {
            "a": "tokens",
            "task": "like",
            "bucketing": "age",
            "bucket": name,
            "rows": rows,
            "difference": 0.01,
            "ci": ci,
        }
        for name, rows, ci in (
            ("tiny", 199, [0, 0.02]),
            ("held", 200, [0, 0.02]),
            ("void", 500, [None, None]),
        )
    ]
    report = make([row("ids"), row("tokens")], pairs)
    axes = gain_by_bucket(report, row_styles(report)).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["held\n200"]
    assert gain_by_bucket(make([row("ids")]), {"ids": ("k", "o")}) is None


def test_curves_are_block_means_and_absent_without_points():
    report = make([row("ids")])
    assert training_curves(report, row_styles(report)) is None
    points = [{"samples": i, "loss": float(i % 2), "valid_auc": None} for i in range(600)]
    report["rows"][0]["curves"] = [{"seed": 0, "points": points}]
    line = training_curves(report, row_styles(report)).axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), 0.5)
    assert line.get_xdata()[0] == pytest.approx(4.5)


def test_calibration_shows_observed_minus_predicted():
    report = make([row("ids")])
    line = calibration(report, row_styles(report)).axes[0].lines[0]
    assert line.get_xydata().tolist() == [[0.25, 0.5]]


def test_rows_differ_in_colour_and_towers_in_marker():
    rows = [row("a", tower="x"), row("b", tower="x"), row("c", tower="y")]
    styles = row_styles(make([*rows, row("d", kind="baseline")]))
    assert len({color for color, _ in styles.values()}) == 4
    assert styles["a"][1] == styles["b"][1] != styles["c"][1]
