import numpy as np
import pytest

from trainer.study_figures import embedding_spectrum, gain_map, norm_variance

STYLES = {"ids": ("k", "o"), "a": ("r", "s"), "b": ("b", "D")}


def pair(name, bucket, difference, ci, *, rows=1000, cut="item_age"):
    return {
        "a": name,
        "task": "click",
        "bucketing": cut,
        "bucket": bucket,
        "rows": rows,
        "difference": difference,
        "ci": ci,
    }


def make(pairs=(), *, heat_map="item_age", geometry=()):
    rows = [
        {"name": name, "kind": "model", "dense_params": 10**6, "tower": "t"}
        for name in ("ids", "a", "b")
    ]
    return {
        "main_task": "click",
        "reference": "ids",
        "rows": rows,
        "bucketings": {"item_age": "item age", "other": "other"},
        "bucket_pairs": list(pairs),
        "study": {"heat_map": heat_map},
        "geometry": list(geometry),
    }


PAIRS = [
    pair("a", "young", 0.02, [0.01, 0.03]),
    pair("a", "old", -0.01, [-0.02, 0.01]),
    pair("b", "old", 0.005, [0.001, 0.01]),
    pair("b", "young", 0.5, [0.4, 0.6], rows=10),
    pair("b", "young", 0.5, [0.4, 0.6], cut="other"),
]


def test_map_holds_gain_of_each_row_and_bucket_and_marks_sure_ones():
    axes = gain_map(make(PAIRS), STYLES).axes[0]
    drawn = axes.images[0].get_array()
    np.testing.assert_array_equal(np.ma.filled(drawn, np.nan), [[0.02, -0.01], [np.nan, 0.005]])
    assert [text.get_text() for text in axes.texts] == ["+0.0200*", "-0.0100", "+0.0050*"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_xticklabels()[0].get_text() == "young\n1k"


def test_map_is_drawn_where_a_study_asks_alone():
    assert gain_map(make(PAIRS, heat_map=None), STYLES) is None
    assert gain_map({**make(PAIRS), "study": None}, STYLES) is None
    assert gain_map(make(), STYLES) is None


def measured(row, *, seed=0, table="item_id", values=(1.0, 2.0)):
    return {
        "row": row,
        "seed": seed,
        "points": [
            {"samples": 100 * n, "table": table, "norm_variance": v, "norm_spread": v / 10}
            for n, v in enumerate(values, 1)
        ],
        "final": {
            table: {"spectrum": [0.75, 0.25], "effective_rank": 1.5, "dim": 2, "rows": 7},
        },
    }


def test_norms_are_a_line_a_row_and_table_of_the_first_seed():
    geometry = [measured("a"), measured("a", seed=1, values=(9.0, 9.0)), measured("b", table="gen")]
    figure = norm_variance(make(geometry=geometry), STYLES)
    variance, spread = figure.axes
    assert [[*line.get_ydata()] for line in variance.lines] == [[1.0, 2.0], [1.0, 2.0]]
    assert [line.get_linestyle() for line in variance.lines] == ["-", "--"]
    assert [*spread.lines[0].get_ydata()] == [0.1, 0.2]
    assert variance.lines[0].get_label() == "a: item_id"


def test_spectrum_and_rank_over_width():
    figure = embedding_spectrum(make(geometry=[measured("a")]), STYLES)
    shares, rank = figure.axes
    np.testing.assert_allclose(shares.lines[0].get_ydata(), [0.75, 0.25])
    assert rank.lines[0].get_ydata() == pytest.approx([0.75])


def test_without_measurements_there_is_no_figure():
    assert norm_variance(make(), STYLES) is None
    assert embedding_spectrum(make(), STYLES) is None
