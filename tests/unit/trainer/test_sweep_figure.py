from dataclasses import replace

import pytest

from configs import store
from trainer.comparison import Sweep
from trainer.study_report import describe_study
from trainer.sweep_figure import sweep


def report():
    rows = [
        {
            "name": name,
            "kind": "model",
            "metrics": {"click": {"auc": auc, "auc_ci": [auc - 0.01, auc + 0.01]}},
            "flops_per_batch": flops,
            "batch_size": 4096,
        }
        for name, auc, flops in (("a1", 0.6, 4e12), ("a2", 0.7, 8e12), ("b2", 0.65, 2e12))
    ]
    points = [
        {"row": "a2", "series": "a", "value": 2},
        {"row": "a1", "series": "a", "value": 1},
        {"row": "b2", "series": "b", "value": 2},
    ]
    return {"main_task": "click", "rows": rows, "study": {"sweep": {"axis": "n", "points": points}}}


def test_a_line_a_series_in_order_of_size():
    quality, cost = sweep(report(), {}).axes
    lines = {line.get_label(): line for line in quality.lines}
    assert lines["a"].get_xdata().tolist() == [1, 2]
    assert lines["a"].get_ydata().tolist() == [0.6, 0.7]
    assert lines["b"].get_ydata().tolist() == [0.65]
    (a, b) = cost.lines
    assert a.get_ydata().tolist() == pytest.approx([1.0, 2.0])
    assert b.get_ydata().tolist() == pytest.approx([0.5])
    assert quality.get_xlabel() == cost.get_xlabel() == "n"
    intervals = quality.collections[0].get_segments()
    assert intervals[0][:, 1].tolist() == pytest.approx([0.59, 0.61])


def test_nothing_is_drawn_without_a_sweep():
    assert sweep({"main_task": "click", "rows": [], "study": {"sweep": None}}, {}) is None
    assert sweep({"main_task": "click", "rows": [], "study": None}, {}) is None


def test_a_study_describes_its_sweep():
    study = store.epochs_smoke().study
    told = describe_study(study, (), {"tasks": [], "rows": []}, "x")["sweep"]
    assert told["axis"] == "epochs"
    assert told["points"][0] == {
        "row": "raw item IDs, 1 epoch",
        "series": "raw item IDs",
        "value": 1,
    }
    assert len(told["points"]) == 8


def test_a_sweep_over_other_rows_is_refused():
    comparison = store.layers_smoke()
    wrong = replace(comparison.study, sweep=Sweep(axis="layers", points={"x": ("a", 1.0)}))
    with pytest.raises(ValueError, match=r"the sweep names \['x'\], expected rows of"):
        replace(comparison, study=wrong)
