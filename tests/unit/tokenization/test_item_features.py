import itertools

import numpy as np
import pytest

from tokenization import item_features
from tokenization.item_features import _best_products


def every_product(blocks):
    """All products, and then the best of them."""
    products = [
        one[:, [i]] * other[:, [j]]
        for one, other in itertools.combinations(blocks, 2)
        for i in range(one.shape[1])
        for j in range(other.shape[1])
    ]
    for block in blocks:
        if np.isin(block, (0, 1)).all() and (block.sum(axis=1) > 1).any():
            pairs = itertools.combinations(range(block.shape[1]), 2)
            products += [block[:, [i]] * block[:, [j]] for i, j in pairs]
    return np.concatenate(products, axis=1)


@pytest.mark.parametrize("most", [3, 10, 1_000])
def test_the_products_that_most_items_have_are_kept_in_their_order(most, monkeypatch):
    monkeypatch.setattr(item_features, "MAX_PRODUCTS", most)
    monkeypatch.setattr(item_features, "MIN_ITEMS", 4)
    rng = np.random.default_rng(0)
    genres = (rng.random((60, 5)) < 0.4).astype(np.float32)
    brand = np.eye(4, dtype=np.float32)[rng.integers(0, 4, 60)]
    price = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 60)]
    blocks = [genres, brand, price]
    products = every_product(blocks)
    held = products.sum(axis=0)
    kept = np.argsort(-held, kind="stable")[:most]
    (found,) = _best_products(blocks)
    np.testing.assert_array_equal(found, products[:, np.sort(kept[held[kept] >= 4])])


def test_one_column_of_single_categories_has_no_products():
    assert _best_products([np.eye(4, dtype=np.float32)]) == []
