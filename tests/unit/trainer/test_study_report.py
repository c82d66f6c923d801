import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from configs import id_vs_tokens
from trainer.buckets import by_count
from trainer.comparison import ComparedRow, Comparison, PaperGain, Study
from trainer.data.schema import RowRange
from trainer.evaluation import EvaluationSplit
from trainer.pair_gains import Gain, pair_gain
from trainer.report import ReportRow, RowRun, build_report, print_report, render_html
from trainer.study_report import study_findings, study_table

ROWS = 4000
STRENGTH = {"plain": 0.5, "better": 0.9, "same": 0.5, "worse": 0.2}


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    return EvaluationSplit.from_ids(
        rows=RowRange(0, ROWS),
        labels={"click": rng.integers(0, 2, ROWS), "play": rng.random(ROWS) < 0.3},
        user_ids=rng.integers(0, 200, ROWS),
        query_ids=rng.integers(0, 500, ROWS),
        bucketings={"item_age": by_count("item age", rng.integers(0, 40, ROWS), (1, 11, 31))},
    )


def report_row(split, name, tokens="hybrid", dense=1000):
    rng = np.random.default_rng(7)  # equal noise: rows of equal strength are equal
    scores = {
        task: 1 / (1 + np.exp(-STRENGTH[name] * (2 * y - 1) - rng.standard_normal(ROWS)))
        for task, y in split.labels.items()
    }
    return ReportRow(
        name=name, tokens=tokens, dense_params=dense, runs=(RowRun(seed=0, scores=scores),)
    )


def comparison(study, paper):
    experiment = id_vs_tokens.smoke().rows[0].experiment
    return Comparison(
        name="s",
        study=study,
        rows=tuple(
            ComparedRow(title=name, tower="t", experiment=experiment, paper=paper.get(name, ()))
            for name in STRENGTH
        ),
    )


def build(split, *, tokens="hybrid", dense=None, **study):
    paper = {
        "plain": (PaperGain(auc=0.0, qauc=0.0),),
        "better": (PaperGain(auc=0.5),),
        "same": (PaperGain(auc=0.1),),
        "worse": (PaperGain(auc=0.2),),
    }
    settings = {"question": "What helps?", "source": "TRM Table 2", "reference": "plain"}
    return build_report(
        experiment="s",
        dataset="toy",
        split=split,
        rows=[report_row(split, name, tokens, (dense or {}).get(name, 1000)) for name in STRENGTH],
        num_resamples=80,
        comparison=comparison(Study(**{**settings, **study}), paper),
    )


def texts(report):
    return [finding["text"] for finding in report["verdict"]["findings"]]


def test_gains_are_relative_to_the_reference_with_the_papers_beside(split):
    report = build(split)
    values = {row["name"]: row["metrics"]["click"]["auc"] for row in report["rows"]}
    gains = {
        one["row"]: one
        for one in report["study"]["gains"]
        if (one["task"], one["metric"]) == ("click", "auc")
    }
    expected = 100 * (values["better"] / values["plain"] - 1)
    assert gains["better"]["gain_percent"] == pytest.approx(expected)
    assert gains["better"]["ci_percent"][0] < expected < gains["better"]["ci_percent"][1]
    assert gains["better"]["paper_percent"] == 0.5
    assert gains["plain"]["gain_percent"] is None
    assert gains["same"]["gain_percent"] == 0
    assert all(
        one["paper_percent"] is None for one in report["study"]["gains"] if one["task"] == "play"
    )


def test_orders_say_how_each_of_the_papers_pairs_comes_out(split):
    orders = {
        (one["first"], one["second"]): one["outcome"]
        for one in build(split)["study"]["orders"]
        if one["metric"] == "auc"
    }
    assert orders == {
        ("better", "plain"): "same",
        ("same", "plain"): "unclear",
        ("worse", "plain"): "opposite",
        ("better", "same"): "same",
        ("better", "worse"): "same",
        ("worse", "same"): "opposite",
    }


def test_orders_that_differ_from_the_papers_are_named(split):
    (text,) = [text for text in texts(build(split)) if "orders of two rows" in text]
    assert "click AUC: of 6 orders of two rows in TRM Table 2, 3 come out the same, 2" in text
    assert "plain above worse (+0." in text
    assert "same above worse (+0." in text


def test_findings_and_headline_follow_the_reference(split):
    report = build(split)
    assert report["reference"] == "plain"
    assert report["verdict"]["headline"].startswith("better beats plain by 0.")
    assert any(text.startswith("Above plain in click AUC: better (+") for text in texts(report))
    assert any(text.startswith("Below plain in click AUC: worse (-") for text in texts(report))
    assert "Not to be told from plain in click AUC: same (+0.00 %)." in texts(report)
    other = build(split, reference="better")
    assert other["verdict"]["headline"] == "No row reaches better in click AUC"
    assert {pair["b"] for pair in other["bucket_pairs"]} == {"better"}


def test_the_best_id_row_is_the_reference_of_a_study_that_names_none(split):
    report = build(split, tokens="item_id", reference=None)
    assert report["study"]["reference"] == report["reference"] == "better"


def test_sizes_of_all_rows_are_compared_where_they_are_meant_to_be_equal(split):
    (text,) = [t for t in texts(build(split, equal_dense=True)) if "all 4 rows" in t]
    assert "differ by 0.0 %: equal" in text
    unequal = build(split, equal_dense=True, dense={"worse": 1060})
    (text,) = [t for t in texts(unequal) if "all 4 rows" in t]
    assert "1,000 to 1,060, differ by 6.0 %: NOT equal" in text
    assert not [t for t in texts(build(split)) if "all 4 rows" in t]


def test_notes_question_and_gains_are_shown_on_page_and_in_terminal(split):
    report = build(split, notes=("Online tables can't be repeated.",))
    page = render_html(report, {})
    shown = io.StringIO()
    print_report(report, Console(file=shown, width=140))
    for text in (
        "Online tables can&#39;t be repeated.",
        "What helps?",
        "Gains: click",
    ):
        assert text in page
    assert "Gains: play" in shown.getvalue()
    lines = shown.getvalue().splitlines()
    (line,) = [line for line in lines if line.startswith("better") and "+0.50 %" in line]
    assert "[" in line


def test_a_task_without_the_papers_numbers_does_not_speak_of_them(split):
    report = build(split)
    click, play = (study_table(report, task) for task in ("click", "play"))
    assert click.columns == ("", "AUC", "paper", "QAUC", "paper")
    assert "TRM Table 2" in click.note
    assert play.columns == ("", "AUC", "QAUC")
    assert "paper" not in play.note
    assert play.rows[0][1].text == "reference"


def test_effective_ranks_are_told_in_words(split):
    report = build(split)
    assert not [one for one in study_findings(report) if "Effective rank" in one["text"]]
    geometry = [
        {"row": "plain", "seed": seed, "final": {"item_id": {"effective_rank": rank, "dim": 8}}}
        for seed, rank in enumerate((3.0, 4.0))
    ]
    (told,) = [
        one["text"]
        for one in study_findings({**report, "geometry": geometry})
        if "Effective rank" in one["text"]
    ]
    assert told.endswith("of the width: plain, item_id: 3.5 of 8.")


def test_pair_gain_turns_signs_with_the_direction():
    pair = {"a": "x", "b": "y", "task": "t", "metric": "auc", "difference": 0.1, "ci": [0.0, 0.3]}
    report = {"pairs": [pair]}
    assert pair_gain(report, "x", "y", task="t") == (0.1, 0.0, 0.3)
    assert pair_gain(report, "y", "x", task="t") == (-0.1, -0.3, 0.0)
    with pytest.raises(KeyError, match="no pair of 'x' and 'z' in auc of t"):
        pair_gain(report, "x", "z", task="t")
    report = {"pairs": [{**pair, "difference": None, "ci": [None, None]}]}
    assert pair_gain(report, "x", "y", task="t") is None


@pytest.mark.parametrize(
    ("ends", "kind"), [((0.1, 0.2), "better"), ((-0.2, -0.1), "worse"), ((-0.1, 0.1), "unclear")]
)
def test_kind_of_a_gain(ends, kind):
    assert Gain(0.0, *ends).kind == kind


def test_reference_that_is_no_row_is_refused():
    study = Study(question="?", source="s", reference="nobody")
    with pytest.raises(ValueError, match="the reference is 'nobody', expected one of"):
        comparison(study, {})


def test_more_papers_tasks_than_labels_are_refused():
    study = Study(question="?", source="s")
    good = comparison(study, {})
    rows = (good.rows[0], replace(good.rows[1], paper=(PaperGain(),) * 3))
    with pytest.raises(ValueError, match="gains of 3 tasks, but the schema has 2 labels"):
        replace(good, rows=rows)
