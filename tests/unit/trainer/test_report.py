import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from trainer.buckets import by_count
from trainer.data.schema import RowRange
from trainer.evaluation import EvaluationSplit
from trainer.metrics import auc
from trainer.report import (
    CurvePoint,
    ReportRow,
    RowRun,
    build_report,
    print_report,
    render_html,
    write_report,
)

ROWS = 3000


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    return EvaluationSplit.from_ids(
        rows=RowRange(9000, 9000 + ROWS),
        labels={"like": rng.integers(0, 2, ROWS), "love": rng.random(ROWS) < 0.3},
        user_ids=rng.integers(0, 150, ROWS),
        query_ids=rng.integers(0, 400, ROWS),
        bucketings={
            "item_exposure": by_count(
                "training impressions", rng.integers(0, 40, ROWS), (1, 11, 31)
            )
        },
    )


def scores(split, strength, seed=0):
    rng = np.random.default_rng(seed)
    return {
        task: 1 / (1 + np.exp(-strength * (2 * y - 1) - rng.standard_normal(ROWS)))
        for task, y in split.labels.items()
    }


def model(split, name, tokens, strength, *, seeds=(0,), tower="rankmixer", dense=1000, noise=0):
    return ReportRow(
        name=name,
        tokens=tokens,
        tower=tower,
        dense_params=dense,
        sparse_params={"item_id" if tokens == "item_id" else "gen_token": 5000},
        sparse_bytes=20_000 if tokens == "item_id" else 5_000,
        flops_per_batch=10**9,
        batch_size=4096,
        details={"distinct tuples": "12 of 13"},
        runs=tuple(
            RowRun(
                seed=seed,
                scores=scores(split, strength + 0.01 * seed, noise),
                curve=(
                    CurvePoint(samples=100, loss=0.7),
                    CurvePoint(samples=200, loss=float("nan")),
                    CurvePoint(samples=300, loss=0.6, valid_auc=0.7),
                ),
                samples_per_s=1000.0 + seed,
                wall_seconds=65,
                peak_rss_bytes=2_000_000_000,
            )
            for seed in seeds
        ),
    )


def baseline(split, name="LightGBM", strength=0.2):
    return ReportRow(
        name=name, kind="baseline", runs=(RowRun(seed=0, scores=scores(split, strength)),)
    )


def build(split, rows, **options):
    return build_report(
        experiment="id_vs_tokens.toy",
        dataset="toy",
        split=split,
        rows=rows,
        num_resamples=60,
        **options,
    )


@pytest.fixture(scope="module")
def report(split):
    rows = [
        baseline(split),
        model(split, "RankMixer (ID)", "item_id", 0.8, seeds=(0, 1, 2)),
        model(split, "RankMixer (gen-tokens only)", "gen_token", 0.4, seeds=(0, 1, 2)),
        model(split, "RankMixer (hybrid = TRM)", "hybrid", 0.6, seeds=(0, 1, 2)),
    ]
    return build(split, rows, machine={"processor": "2 cores"}, versions={"torch": "2.13.0"})


def findings(report, kind):
    return [one["text"] for one in report["verdict"]["findings"] if one["kind"] == kind]


def test_report_has_the_documented_shape_and_is_strict_json(report):
    text = json.dumps(report, allow_nan=False)
    assert json.loads(text) == report
    assert {"experiment", "dataset", "split", "seeds", "machine", "versions", "rows", "pairs"} <= {
        *report
    }
    row = report["rows"][1]
    assert {"auc", "auc_ci", "gauc", "gauc_ci", "qauc", "logloss", "ne"} <= {
        *row["metrics"]["like"]
    }
    assert list(row["sparse_params"]) == [
        "item_id",
        "gen_token",
        "mem_token",
        "residual_id",
        "side",
    ]
    assert row["curves"][0]["points"][1]["loss"] is None
    assert {"a", "b", "task", "metric", "difference", "ci"} == set(report["pairs"][0])


def test_several_seeds_show_the_median_and_list_each(report, split):
    row = report["rows"][1]
    values = [auc(split.labels["like"], scores(split, 0.8 + 0.01 * s)["like"]) for s in (0, 1, 2)]
    found = row["metrics"]["like"]
    assert found["by_seed"]["auc"] == pytest.approx(values)
    assert found["auc"] == pytest.approx(np.median(values))
    assert found["auc_ci"][0] < found["auc"] < found["auc_ci"][1]
    assert row["samples_per_s"] == 1001
    assert report["seeds"] == [0, 1, 2]


def test_pairs_are_later_minus_earlier_row(report):
    auc_of = {row["name"]: row["metrics"]["like"]["auc"] for row in report["rows"]}
    pairs = [p for p in report["pairs"] if p["task"] == "like" and p["metric"] == "auc"]
    assert len(pairs) == 6
    for pair in pairs:
        assert pair["difference"] == pytest.approx(auc_of[pair["a"]] - auc_of[pair["b"]])
        assert pair["ci"][0] <= pair["difference"] <= pair["ci"][1]
    assert {p["b"] for p in report["bucket_pairs"]} == {"RankMixer (ID)"}


@pytest.mark.parametrize(
    ("token", "item_id", "noise", "kind", "words"),
    [
        (0.9, 0.5, 0, "better", "beats the best item-ID row by"),
        (0.5, 0.9, 0, "worse", "falls short of the best item-ID row by"),
        (0.7, 0.7, 5, "unclear", "cannot be told apart"),
    ],
)
def test_verdict_follows_the_numbers(split, token, item_id, noise, kind, words):
    rows = [
        model(split, "ids", "item_id", item_id),
        model(split, "tokens", "hybrid", token, noise=noise),
    ]
    report = build(split, rows)
    assert words in report["verdict"]["headline"]
    pair = next(p for p in report["pairs"] if p["task"] == "like" and p["metric"] == "auc")
    assert f"{pair['difference']:+.4f}" in report["verdict"]["summary"]
    assert "5 kB against 20 kB (25 %)" in report["verdict"]["summary"]
    love = [one for one in report["verdict"]["findings"] if one["text"].startswith("love:")]
    assert [one["kind"] for one in love] == [kind]
    places = [text for text in findings(report, kind) if text.startswith("Where tokens")]
    assert bool(places) == (kind != "unclear")
    assert any(text.startswith("One seed (0)") for text in findings(report, "note"))


def test_verdict_names_rows_against_baseline_ceiling_and_unequal_towers(split):
    truth = ReportRow(
        name="true logit", kind="oracle", runs=(RowRun(seed=0, scores=scores(split, 3.0)),)
    )
    rows = [
        baseline(split, strength=0.6),
        truth,
        model(split, "strong", "item_id", 1.2, dense=1000),
        model(split, "weak", "gen_token", 0.1, dense=1200),
    ]
    report = build(split, rows)
    assert any(
        t.startswith("Above the best baseline, LightGBM") for t in findings(report, "better")
    )
    assert any(
        t.startswith("Below the best baseline") and "weak (" in t for t in findings(report, "worse")
    )
    assert any("best possible AUC" in t and "true logit" in t for t in findings(report, "note"))
    assert any("differ by 20.0 %: NOT equal" in t for t in findings(report, "note"))
    assert report["reference"] == "strong"


def test_report_of_baselines_alone_compares_nothing(split, tmp_path):
    report = build(split, [baseline(split)])
    assert report["reference"] is None
    assert "LightGBM has the best like AUC" in report["verdict"]["headline"]
    write_report(tmp_path, report)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["calibration.png"]


def test_what_data_names_is_escaped_too(tmp_path):
    """Labels, data set, buckets and machine are named outside of this project."""
    rng = np.random.default_rng(0)
    bad = "<script>alert(1)</script>"
    split = EvaluationSplit.from_ids(
        rows=RowRange(0, ROWS),
        labels={f"{bad}like": rng.integers(0, 2, ROWS)},
        user_ids=rng.integers(0, 150, ROWS),
        query_ids=rng.integers(0, 400, ROWS),
        bucketings={f"{bad}cut": by_count(f"{bad}count", rng.integers(0, 40, ROWS), (1, 11, 31))},
    )
    row = model(split, "ids", "item_id", 0.5, tower=f"{bad}tower")
    other = model(split, "tokens", "hybrid", 0.7)
    rows = [row, replace(other, details={f"{bad}detail": f"{bad}value"})]
    report = build_report(
        experiment=f"{bad}experiment",
        dataset=f"{bad}data",
        split=split,
        rows=rows,
        machine={f"{bad}part": f"{bad}processor"},
        versions={f"{bad}package": "1"},
        num_resamples=20,
    )
    html = write_report(tmp_path, report).read_text(encoding="utf-8")
    assert "<script" not in html
    for what in ("like", "experiment", "data", "detail", "value", "processor", "package"):
        assert f"&lt;script&gt;alert(1)&lt;/script&gt;{what}" in html, what


def test_written_report_is_self_contained_and_escaped(split, tmp_path):
    name = "<script>alert('x')</script> & $x_y$"
    rows = [model(split, "ids", "item_id", 0.5), model(split, name, "hybrid", 0.7)]
    report = build(split, rows)
    path = write_report(tmp_path / "run", report)
    html = path.read_text(encoding="utf-8")
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; $x_y$") > 3
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([\w:/]+)""", html)
    assert links == ["data:image/png"] * 4
    assert html.startswith("<!doctype html>")
    assert html.count("data:image/png;base64,iVBOR") == 4
    figures = sorted(file.name for file in (tmp_path / "run" / "figures").iterdir())
    assert figures == [
        "calibration.png",
        "gain_by_bucket.png",
        "quality_against_storage.png",
        "training_curves.png",
    ]
    for figure in figures:
        assert (tmp_path / "run" / "figures" / figure).read_bytes().startswith(b"\x89PNG")
    saved = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert saved == report
    assert render_html(saved, {}).count("<table>") == 3


def test_markdown_holds_what_the_page_holds(split, tmp_path):
    rows = [
        baseline(split),
        model(split, "A | B", "hybrid", 0.6),
        model(split, "C", "gen_token", 0.4),
    ]
    report = build(split, rows, command="farewell compare toy --seeds 1")
    write_report(tmp_path, report)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith(f"# id_vs_tokens.toy\n\n**{report['verdict']['headline']}.** ")
    assert "* command: farewell compare toy --seeds 1\n" in text
    assert all(one["text"] in text for one in report["verdict"]["findings"])
    table = [line for line in text.splitlines() if line.startswith("| A \\| B |")]
    assert f"{report['rows'][1]['metrics']['like']['auc']:.4f}" in table[0]
    linked = re.findall(r"\]\((figures/[a-z_]+\.png)\)", text)
    assert linked and all((tmp_path / path).is_file() for path in linked)


def test_terminal_tables_fit_120_columns_and_take_names_literally(report, split):
    def shown(one):
        console = Console(file=io.StringIO(), width=120)
        print_report(one, console)
        return console.file.getvalue()

    text = shown(report)
    assert max(map(len, text.splitlines())) <= 120
    for row in report["rows"]:
        assert sum(line.startswith(row["name"] + " ") for line in text.splitlines()) >= 3
    low, high = report["rows"][3]["metrics"]["like"]["auc_ci"]
    assert f"[{low:.4f} {high:.4f}]".replace("0.", ".") in text
    assert report["verdict"]["headline"] in text
    assert "[bold]x[/]" in shown(build(split, [model(split, "[bold]x[/]", "hybrid", 0.5)]))


def test_wrong_rows_are_refused(split):
    with pytest.raises(ValueError, match="row 'x': expected one run a seed, found seeds"):
        ReportRow(name="x", runs=())
    with pytest.raises(ValueError, match="unknown table roles users"):
        ReportRow(
            name="x", runs=(RowRun(seed=0, scores={}),), sparse_params={"item_id": 1, "users": 2}
        )
    with pytest.raises(ValueError, match="distinct names"):
        build(split, [baseline(split), baseline(split)])
    with pytest.raises(ValueError, match="distinct names, found"):
        build(split, [])
    short = ReportRow(name="short", runs=(RowRun(seed=0, scores={"like": [0.5], "love": [0.5]}),))
    with pytest.raises(ValueError, match="row 'short': labels and scores differ in length"):
        build(split, [short])


def test_rows_of_one_class_are_said_to_have_no_auc(split):
    positives = replace(split, labels={"like": np.ones(ROWS), "love": split.labels["love"]})
    found = build(positives, [baseline(split)])
    text = " ".join(findings(found, "note"))
    assert "like: the test rows hold one class, so there are no AUCs." in text
    assert "love: the test" not in text
