import pytest

from trainer.sweep_findings import sweep_findings

AUC = {"id 1": 0.70, "id 2": 0.72, "id 3": 0.71, "sid 1": 0.69, "sid 3": 0.73}


def report(rows=tuple(AUC), *, sure=0.002):
    """Rows of one or two series in any order; intervals reach `sure` to both sides."""
    points = [
        {"row": row, "series": row.split()[0], "value": int(row.split()[1])}
        for row in sorted(rows, key=lambda row: (row.split()[0], -AUC[row]))
    ]
    pairs = [
        {
            "a": a,
            "b": b,
            "task": "click",
            "metric": "auc",
            "difference": AUC[a] - AUC[b],
            "ci": [AUC[a] - AUC[b] - sure, AUC[a] - AUC[b] + sure],
        }
        for a in rows
        for b in rows
        if a < b
    ]
    return {
        "main_task": "click",
        "rows": [{"name": row, "metrics": {"click": {"auc": AUC[row]}}} for row in rows],
        "pairs": pairs,
        "study": {"sweep": {"axis": "epochs", "points": points}},
    }


def test_two_series_are_set_beside_each_other_and_each_is_followed():
    between, of_ids, of_sids = (one["text"] for one in sweep_findings(report()))
    assert "id less sid, by epochs: 1: +0.0100 [+0.0080 +0.0120], 3: -0.0200" in between
    assert "best at 2 (0.7200); 1 is below it (-0.0200 [-0.0220 -0.0180])" in of_ids
    assert "3 is below it (-0.0100" in of_ids
    assert "best at 3 (0.7300); 1 is below it (-0.0400 [-0.0420 -0.0380])." in of_sids


def test_what_can_not_be_told_is_called_so():
    (only,) = sweep_findings(report(("id 1", "id 2", "id 3"), sure=0.015))
    assert "1 is below it" in only["text"]
    assert "3 is not to be told from it (-0.0100 [-0.0250 +0.0050])" in only["text"]


@pytest.mark.parametrize("sweep", [None, {"axis": "n", "points": []}])
def test_nothing_is_said_without_a_sweep(sweep):
    assert sweep_findings({**report(), "study": {"sweep": sweep}}) == []
