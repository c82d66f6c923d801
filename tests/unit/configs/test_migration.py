import pytest

from configs import migration
from trainer.modules.hybrid_tokens import HybridTokensConfig


@pytest.mark.parametrize("name", ["movielens1m", "synthetic_high_churn", "smoke"])
def test_curve_goes_from_a_row_an_item_to_tokens_alone(name):
    comparison = getattr(migration, name)()
    own, *rest = [row.experiment for row in comparison.rows]
    *mixed, tokens = [e for e in rest if isinstance(e.model.item, HybridTokensConfig)]
    shared = [e for e in rest if e not in mixed and e != tokens]
    num_items = own.item_tables["item_id"].rows
    assert {(e.model.item.rows, e.item_tables["item_id"].rows) for e in shared} == {
        (rows, round(num_items * share)) for rows in ("hashed", "managed") for share in (0.5, 0.25)
    }
    assert [e.item_tables["item_id"].rows for e in mixed] == [
        round(num_items * share) for share in (1.0, 0.5, 0.25, 0.1)
    ]
    assert all(e.item_tables["item_id"].role == "residual_id" for e in mixed)
    assert "item_id" not in tokens.item_tables
    storage = [sum(t.num_bytes for t in e.item_tables.values()) for e in [*mixed, tokens]]
    assert storage == sorted(storage, reverse=True)
    # Rows differ in what stands for an item alone.
    for experiment in rest:
        assert experiment.model.tower == own.model.tower
        assert experiment.train == own.train and experiment.optim == own.optim
        assert experiment.data == own.data
    assert comparison.study.reference == comparison.rows[0].title
