"""Rows as retrievers: measured against loops, described, and told in words."""

import io
from dataclasses import dataclass, replace

import numpy as np
import pytest
from rich.console import Console

from configs import dig
from trainer.buckets import by_count
from trainer.comparison import Comparison
from trainer.data.ragged import Ragged
from trainer.data.schema import RowRange
from trainer.evaluation import EvaluationSplit
from trainer.figure_style import PALETTE
from trainer.metrics import auc
from trainer.report import ReportRow, RowRun, build_report, print_report, render_html, write_report
from trainer.retrieval_figure import retrieval as draw_retrieval
from trainer.retrieval_figure import row_styles
from trainer.retrieval_report import describe_retrieval, gain_of, retrieval_table
from trainer.retrieval_study import (
    LENGTHS,
    RetrievalMeasure,
    RetrievalRow,
    RetrievalRun,
    RetrievalStudy,
)
from trainer.retrieval_task import RetrievalCases
from trainer.retrieval_verdict import retrieval_findings, retrieval_headline

ROWS, START, ITEMS, CASES = 3000, 500, 80, 400


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    users = rng.integers(0, 150, ROWS)
    return EvaluationSplit.from_ids(
        rows=RowRange(START, START + ROWS),
        labels={"like": rng.random(ROWS) < 0.4},
        user_ids=users,
        query_ids=users,
        bucketings={
            "user_activity": by_count("training impressions of the user", users, (1, 61, 121))
        },
    )


@pytest.fixture(scope="module")
def cases(split):
    rng = np.random.default_rng(1)
    row = np.sort(rng.choice(ROWS, CASES, replace=False))
    users = split.user[row]
    order = np.argsort(users, kind="stable")
    return RetrievalCases(
        user=users[order],
        row=START + row[order],
        history=Ragged.from_lengths(np.zeros(0, np.int64), np.zeros(CASES, np.int64)),
        target=rng.integers(0, ITEMS, CASES),
    )


def lists_of(cases, strength, seed):
    """Lists that hold the right answer the nearer to the top, the stronger they are."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((CASES, ITEMS))
    scores[np.arange(CASES), cases.target] += strength
    return np.argsort(-scores, axis=1)[:, : max(LENGTHS)]


def row_of(split, cases, title, strength, *, ranker=False, seeds=(0,)):
    y = split.labels["like"]
    runs = []
    for seed in seeds:
        noise = np.random.default_rng(seed + 50).standard_normal((2, ROWS))
        runs.append(
            RetrievalRun(
                seed=seed,
                lists_CM=lists_of(cases, strength, seed),
                ranked_CM=lists_of(cases, strength + 1, seed) if ranker else None,
                rank_N=y + noise[0] if ranker else None,
                recall_N=0.5 * y + noise[1] if ranker else None,
            )
        )
    return RetrievalRow(title=title, kind="model" if ranker else "retriever", runs=tuple(runs))


def test_estimates_are_those_of_loops(split, cases):
    row = row_of(split, cases, "a", 1.5, ranker=True, seeds=(0, 1, 2))
    found = RetrievalMeasure(cases, split, num_resamples=50).measure(row)
    for at in LENGTHS:
        recalls, gains = [], []
        for run in row.runs:
            places = [
                one[:at].tolist().index(target) if target in one[:at] else None
                for one, target in zip(run.lists_CM, cases.target, strict=True)
            ]
            recalls.append(np.mean([place is not None for place in places]))
            gains.append(np.mean([0 if p is None else 1 / np.log2(p + 2) for p in places]))
        assert found.by_seed[f"recall@{at}"] == pytest.approx(recalls)
        assert found.metrics[f"recall@{at}"].value == pytest.approx(np.median(recalls))
        assert found.metrics[f"ndcg@{at}"].value == pytest.approx(np.median(gains))
        assert found.metrics[f"ranked recall@{at}"].value > found.metrics[f"recall@{at}"].value
    y = split.labels["like"]
    gaps = [auc(y, run.recall_N) - auc(y, run.rank_N) for run in row.runs]
    assert found.by_seed["gap"] == pytest.approx(gaps)
    assert found.metrics["gap"].ci[1] < 0
    low, high = found.metrics["recall@10"].ci
    assert low < found.metrics["recall@10"].value < high


def test_buckets_hold_the_cases_of_their_users(split, cases):
    row = row_of(split, cases, "a", 1.5)
    measure = RetrievalMeasure(cases, split, num_resamples=20)
    found = measure.measure(row)
    assert list(found.buckets) == ["0", "1-60", "61-120", ">120"]
    assert sum(kept.sum() for kept in measure.buckets.values()) == CASES
    hit = (row.runs[0].lists_CM[:, :10] == cases.target[:, None]).any(axis=1)
    kept = (cases.user >= 61) & (cases.user <= 120)
    assert found.buckets["61-120"]["recall@10"].value == pytest.approx(hit[kept].mean())


@dataclass(frozen=True)
class Named:
    title: str

    def build(self, dataset):
        raise NotImplementedError


PUBLISHED = {
    "weak": {"recall@10": 0.3},
    "same": {"recall@10": 0.2},
    "strong": {"recall@10": 0.1},
    "DIG": {"recall@10": 0.4},
}


def plain_main():
    """DIG's main study with its first row alone."""
    full = dig.main_smoke()
    return replace(full, rows=full.rows[:1])


@pytest.fixture(scope="module")
def report(split, cases):
    study = RetrievalStudy(
        reference="DIG",
        retrievers=tuple(Named(title) for title in ("weak", "same", "strong")),
        published=PUBLISHED,
        free=("weak", "same"),
    )
    rows = [
        row_of(split, cases, "weak", 0.5),
        row_of(split, cases, "same", 1.5),
        row_of(split, cases, "strong", 3.0),
        row_of(split, cases, "DIG", 1.5, ranker=True, seeds=(0, 1)),
    ]
    measure = RetrievalMeasure(cases, split, num_resamples=100)
    retrieval = describe_retrieval(study, rows, measure, num_items=ITEMS)
    scores = {"like": np.random.default_rng(3).random(ROWS)}
    return build_report(
        experiment="s",
        dataset="d",
        split=split,
        rows=[ReportRow(name="DIG", runs=(RowRun(seed=0, scores=scores),))],
        num_resamples=20,
        comparison=plain_main(),
        retrieval=retrieval,
    )


def test_orders_that_differ_from_the_papers_are_named(report):
    outcome = {
        (one["first"], one["second"]): one["outcome"] for one in report["retrieval"]["orders"]
    }
    assert len(outcome) == 6
    assert outcome["DIG", "weak"] == "same"
    assert outcome["weak", "strong"] == outcome["same", "strong"] == "opposite"
    assert outcome["DIG", "strong"] == "opposite"
    text = " ".join(one["text"] for one in report["verdict"]["findings"])
    assert "of 6 orders of two rows in DIG Table 2" in text
    assert "strong above weak" in text
    gain = gain_of(report["retrieval"], "strong", "DIG", "recall@10")
    shown = f"strong {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
    assert f"Above DIG in recall@10, with 95 % intervals: {shown}" in text
    assert "Below DIG in recall@10, with 95 % intervals: weak" in text
    assert "DIG: AUC" in text
    assert "The best row that learns, strong (recall@10 0." in text
    assert "is ABOVE same (0." in text
    assert report["verdict"]["headline"] == "strong retrieves better than DIG"


def test_differences_are_paired(report):
    retrieval = report["retrieval"]
    gain = gain_of(retrieval, "strong", "weak", "recall@10")
    back = gain_of(retrieval, "weak", "strong", "recall@10")
    assert gain.value == pytest.approx(-back.value)
    assert (gain.low, gain.high) == pytest.approx((-back.high, -back.low))
    assert gain_of(retrieval, "weak", "strong", "gap") is None
    values = {row["name"]: row["metrics"]["recall@10"]["value"] for row in retrieval["rows"]}
    assert gain.value == pytest.approx(values["strong"] - values["weak"])


def test_the_report_shows_retrieval(report, tmp_path):
    out = io.StringIO()
    print_report(report, Console(file=out, width=120))
    assert "Retrieval" in out.getvalue()
    assert "400 positives of" in out.getvalue()
    page = render_html(report, {})
    assert "ranked" in page
    assert "paper R@10" in page
    write_report(tmp_path, report)
    assert (tmp_path / "figures" / "retrieval.png").stat().st_size > 10_000
    assert "Retrieval" in (tmp_path / "report.md").read_text()


def test_where_one_class_leaves_no_auc_the_report_is_written(report):
    nothing = {"value": None, "ci": [None, None], "by_seed": [None]}
    unknown = dict.fromkeys(("rank_auc", "recall_auc", "gap"), nothing)
    rows = [
        {**row, "metrics": {**row["metrics"], **unknown}} for row in report["retrieval"]["rows"]
    ]
    pairs = [
        {**pair, "difference": None, "ci": [None, None]} if pair["metric"] in unknown else pair
        for pair in report["retrieval"]["pairs"]
    ]
    retrieval = {**report["retrieval"], "metric": "gap", "rows": rows, "pairs": pairs}
    without = {**report, "retrieval": retrieval}
    assert draw_retrieval(without, {}) is None
    assert retrieval_headline(without)[0] == "DIG: gap not measured"
    assert retrieval_findings(without)
    table = retrieval_table(without)
    assert [cell.text for cell in table.rows[0]][-4:-1] == ["-", "-", "-"]


def test_rows_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="width is 10"):
        RetrievalStudy(reference="a", width=10)
    smoke = dig.main_smoke()
    with pytest.raises(ValueError, match=r"\['other'\] are no rows"):
        Comparison(name="s", rows=smoke.rows, retrieval=RetrievalStudy(reference="other"))
    with pytest.raises(ValueError, match=r"\['absent'\] are no rows"):
        Comparison(
            name="s",
            rows=smoke.rows,
            retrieval=RetrievalStudy(reference="DIG", free=("absent",)),
        )
    with pytest.raises(ValueError, match="stands twice"):
        Comparison(
            name="s",
            rows=smoke.rows,
            retrieval=RetrievalStudy(reference="DIG", retrievers=(Named("DIG"),)),
        )


@pytest.mark.parametrize(
    ("difference", "headline"),
    [
        (0.05, "strong: retrieval keeps up with ranking better than in DIG"),
        (-0.05, "In no row does retrieval keep up with ranking as well as in DIG"),
        (0.0, "DIG and strong can't be told apart in gap"),
    ],
)
def test_headline_of_a_study_of_gaps_is_about_gaps(report, difference, headline):
    retrieval = report["retrieval"]
    own = next(row for row in retrieval["rows"] if row["name"] == "DIG")["metrics"]["gap"]
    rows = [
        {**row, "metrics": {**row["metrics"], "gap": own}} if row["name"] == "strong" else row
        for row in retrieval["rows"]
    ]
    pair = {"a": "strong", "b": "DIG", "metric": "gap", "difference": difference}
    pair["ci"] = [difference - 0.01, difference + 0.01]
    pairs = [one for one in retrieval["pairs"] if one["metric"] != "gap"] + [pair]
    changed = {**report, "retrieval": {**retrieval, "metric": "gap", "rows": rows, "pairs": pairs}}
    assert retrieval_headline(changed)[0] == headline


def test_the_beams_of_a_study_that_leaves_histories_out_are_told(report):
    assert "beams of 50 SIDs. R, N" in retrieval_table(report).note
    left_out = {**report, "retrieval": {**report["retrieval"], "leave_out_history": True}}
    assert "one more for each item of the longest history" in retrieval_table(left_out).note


def test_each_bucket_of_few_impressions_has_one_line_above_and_one_below(report):
    found = [one for one in report["verdict"]["findings"] if one["text"].startswith("Users with")]
    pairs = [p for p in report["retrieval"]["bucket_pairs"] if p["metric"] == "recall@10"]
    for word, kind, title in (("above", "better", "strong"), ("below", "worse", "weak")):
        (line,) = (one for one in found if one["kind"] == kind and "1-60 " in one["text"])
        (pair,) = (p for p in pairs if p["bucket"] == "1-60" and p["a"] == title)
        low, high = pair["ci"]
        assert f"({pair['cases']:,} cases), {word} DIG in recall@10" in line["text"]
        assert f"{title} {pair['difference']:+.4f} ({low:+.4f} to {high:+.4f})" in line["text"]


@pytest.mark.parametrize("num_models", [0, 1, 2, 8])
def test_no_two_rows_look_alike(num_models):
    models = {f"model {number}": (PALETTE[number], "o") for number in range(num_models)}
    names = [*(f"retriever {number}" for number in range(20)), *models]
    found = row_styles(names, models)
    assert {name: found[name] for name in models} == models
    assert len(set(found.values())) == len(names)
