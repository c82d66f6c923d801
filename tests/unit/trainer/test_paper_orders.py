from trainer.pair_gains import Gain
from trainer.paper_orders import orders_finding, paper_order

SURE, OTHERWISE, UNSURE = Gain(0.02, 0.01, 0.03), Gain(-0.02, -0.03, -0.01), Gain(0.0, -0.1, 0.1)


def test_orders_that_come_out_otherwise_are_named_by_the_row_above():
    orders = [
        paper_order("a", "b", SURE),
        paper_order("a", "c", OTHERWISE),
        paper_order("b", "c", OTHERWISE),
        paper_order("a", "d", OTHERWISE),
        paper_order("b", "d", UNSURE),
        paper_order("c", "d", None),
    ]
    found = orders_finding("click AUC", orders, "Table 1")
    assert found["kind"] == "worse"
    assert "of 6 orders of two rows in Table 1, 1 come out the same, 3 the other" in found["text"]
    assert "way round, 2 can't be told" in found["text"]
    assert found["text"].endswith(
        "The other way round: c above a (+0.0200), b (+0.0200); d above a (+0.0200)."
    )


def test_nothing_is_named_where_all_come_out_the_same():
    found = orders_finding("click AUC", [paper_order("a", "b", SURE)], "Table 1")
    assert found["kind"] == "note"
    assert "round:" not in found["text"]
