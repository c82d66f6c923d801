import pytest
import torch

from tests.integration.rank_processes import run_ranks
from tests.integration.tiny_model import Case
from tests.integration.workers import meet_non_finite_loss
from trainer.batch_file import load_batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("non_finite")
    case = Case(name="non_finite", pooled_type="row_wise", item_type="row_wise", num_steps=5)
    run_ranks(meet_non_finite_loss, 2, case, folder)
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_one_ranks_nan_stops_every_rank_before_any_weight_changes(folder, rank):
    seen = torch.load(folder / f"rank_{rank}.pt")
    assert seen["before"].keys() == seen["after"].keys()
    for name, weight in seen["before"].items():
        assert torch.equal(weight, seen["after"][name]), name
        assert weight.isfinite().all(), name


@pytest.mark.parametrize("rank", [0, 1])
def test_message_names_loss_rank_file_and_what_to_do(folder, rank):
    message = torch.load(folder / f"rank_{rank}.pt")["message"]
    path = folder / "non_finite" / f"rank_{rank}.safetensors"
    own = "nan" if rank == 1 else "0."
    assert message.startswith(f"loss is nan over all ranks ({own}")
    assert f"on rank {rank}" in message
    assert str(path) in message
    assert "lower optim.dense_lr" in message


def test_saved_batch_is_the_bad_one(folder):
    bad, fine = (load_batch(folder / "non_finite" / f"rank_{rank}.safetensors") for rank in (1, 0))
    assert bad.dense_BF[4, 1].isnan()
    assert bad.dense_BF.isnan().sum() == 1
    assert fine.dense_BF.isfinite().all()
    assert bad.row_B.tolist() == list(range(12, 24))
