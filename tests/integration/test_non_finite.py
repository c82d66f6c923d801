import json
import re

import pytest
import torch

from tests.integration.non_finite_workers import meet_causes
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


@pytest.mark.faults
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


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """By case and cause, what both ranks said."""
    folder = tmp_path_factory.mktemp("causes")
    spread = {"pooled_type": "row_wise", "item_type": "row_wise", "num_steps": 4}
    cases = [
        Case(name="replicated", **spread),
        Case(name="sharded", fsdp=True, checkpointed=True, parts=2, **spread),
    ]
    run_ranks(meet_causes, 2, cases, folder)
    return [json.loads((folder / f"said_{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.faults
@pytest.mark.parametrize("case", ["replicated", "sharded"])
@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ("feature", r"rank 1: dense feature 'price' is nan in row 16 of the log \(1 rows of"),
        ("label", r"rank 1: label 'play' is inf in row 14 of the log"),
        ("table", r"rank 1: table 'pooled_adagrad' holds inf in row 28, .* 25 of the 26 rows"),
        ("weight", r"weight network\.heads\.0\.0\.weight holds nan in row 0"),
        ("layer", r"the output of layer network\.dense_arch\.0 \(Linear\) is the first"),
        ("layer", r"dense feature 'rank' is 7e\+09 in row 0 of the log, which is extreme"),
    ],
)
def test_message_names_feature_row_weight_or_layer_on_every_rank(said, case, cause, message):
    for rank in range(2):
        assert re.search(message, said[rank][f"{case} {cause}"]), said[rank][f"{case} {cause}"]
