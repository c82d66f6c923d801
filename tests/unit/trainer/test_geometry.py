import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import JaggedTensor

from configs import trm_rankmixer
from tests.unit.trainer.stored_checkpoint import whole, write_checkpoint
from trainer.data.item_features import ItemFeatures
from trainer.data.ragged import Ragged
from trainer.geometry import (
    ITEM_VECTOR,
    effective_rank,
    item_vectors,
    norm_statistics,
    spectrum,
)


def test_norm_statistics_are_those_of_the_rows_lengths():
    rows = np.array([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])
    found = norm_statistics(rows)
    assert found["norm_mean"] == pytest.approx(2.0)
    assert found["norm_variance"] == pytest.approx((9 + 1 + 4) / 3)
    assert found["norm_spread"] == pytest.approx((14 / 3) ** 0.5 / 2)
    assert norm_statistics(np.zeros((3, 2)))["norm_spread"] == 0


def test_spectrum_is_the_share_of_variance_by_principal_direction():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((500, 4)) * [5.0, 2.0, 1.0, 0.0] + 10
    variances = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    np.testing.assert_allclose(spectrum(rows), variances / variances.sum(), atol=1e-12)
    assert not spectrum(np.ones((5, 3))).any()


def test_effective_rank_counts_directions_in_use():
    assert effective_rank(np.array([0.25] * 4)) == pytest.approx(4)
    assert effective_rank(np.array([1.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_rank(np.zeros(3)) == 0
    assert 1 < effective_rank(np.array([0.9, 0.1])) < 2


def test_vectors_of_a_checkpoint_are_rows_that_items_read_and_what_the_encoder_makes_of_them(
    tmp_path,
):
    experiment = trm_rankmixer.smoke()
    torch.manual_seed(0)
    encoder = experiment.model.item.build().eval()
    tables = {
        key: torch.randn(table.rows, table.dim) for key, table in experiment.item_tables.items()
    }
    saved = {
        f"network/item_encoder.{name}/value": whole(value)
        for name, value in encoder.state_dict().items()
    }
    saved |= {f"table/{key}/weight": whole(value) for key, value in tables.items()}
    path = write_checkpoint(tmp_path / "step", saved)
    gen = np.array([0, 33, 65, 97, 1, 33, 66, 98, 9, 40, 70, 100])  # three items, four levels
    features = ItemFeatures(
        {
            "gen_token": Ragged(gen, np.array([0, 4, 8, 12])),
            "mem_token": Ragged(np.array([5, 2, 5]), np.array([0, 1, 1, 3])),
        }
    )
    found = item_vectors(experiment, path, features, np.array([0, 2]))
    rows = np.unique(np.concatenate([gen[:4], gen[8:]]))
    np.testing.assert_array_equal(found["gen_token"], tables["gen_token"][rows].numpy())
    np.testing.assert_array_equal(found["mem_token"], tables["mem_token"][[2, 5]].numpy())
    items = {
        "gen_token": JaggedTensor(
            values=tables["gen_token"][np.concatenate([gen[:4], gen[8:]])],
            lengths=torch.tensor([4, 4]),
        ),
        "mem_token": JaggedTensor(
            values=tables["mem_token"][[5, 2, 5]], lengths=torch.tensor([1, 2])
        ),
    }
    with torch.no_grad():
        expected = encoder(items).numpy()
    np.testing.assert_allclose(found[ITEM_VECTOR], expected, rtol=1e-6)
