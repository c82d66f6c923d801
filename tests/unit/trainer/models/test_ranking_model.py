from dataclasses import replace

import pytest
import torch

from tests.integration.tiny_model import (
    DIM,
    NUM_DENSE,
    NUM_HISTORIES,
    NUM_TASKS,
    Case,
    batches_of_ranks,
    joined,
)
from trainer.models.dlrm import DLRMConfig
from trainer.models.ranking_model import RankingModel, check_item_features
from trainer.models.rankmixer import RankMixerConfig
from trainer.modules.hybrid_tokens import ItemIdConfig

CASE = Case(name="model", num_steps=1, batch_size=8, mean=("adagrad",))


@pytest.fixture
def batch():
    ((batch,),) = batches_of_ranks(CASE, 1)
    return batch


def build(**changes):
    torch.manual_seed(0)
    settings = {"num_histories": NUM_HISTORIES, "num_dense": NUM_DENSE, "num_tasks": NUM_TASKS}
    return RankingModel(
        changes.pop("config", CASE.config()), tables=CASE.tables(), **{**settings, **changes}
    )


def test_loss_is_the_mean_log_loss_over_rows_and_tasks(batch):
    model = build()
    loss, outputs = model(batch)
    total = 0.0
    for row in range(8):
        for task in range(NUM_TASKS):
            odds = torch.sigmoid(outputs.logits_BN[row, task].double())
            label = batch.labels_BN[row, task]
            total -= torch.log(odds if label else 1 - odds)
    assert float(loss.detach()) == pytest.approx(float(total) / (8 * NUM_TASKS), rel=1e-5)
    assert outputs.logits_BN.dtype == torch.float32
    assert not outputs.logits_BN.requires_grad
    assert torch.equal(outputs.row_B, batch.row_B)
    assert torch.equal(outputs.labels_BN, batch.labels_BN)


def test_pooled_tables_equal_sums_and_means_of_looked_up_rows(batch):
    model = build()
    pooled, items = model.sparse(batch)
    weights = {path.split(".")[-2]: w for path, w in model.sparse.named_parameters()}
    for table in CASE.tables():
        for feature in table.features:
            if table.pooling == "none":
                expected = weights[table.name][batch.items[feature].values()]
                torch.testing.assert_close(items[feature].values(), expected)
                continue
            found, ids = pooled.to_dict()[feature], batch.pooled[feature]
            bags = ids.values().split(ids.lengths().tolist())
            for row, bag in enumerate(bags):
                expected = torch.zeros(DIM)
                for i in bag:
                    expected = expected + weights[table.name][i]
                if table.pooling == "mean" and len(bag):
                    expected = expected / len(bag)
                torch.testing.assert_close(found[row], expected)


def test_tower_sees_features_in_the_order_of_their_tables(batch):
    model = build().eval()
    network = model.network
    pooled, items = model.sparse(batch)
    seen = []
    network.tower.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(batch, pooled, items)
    item_UD = network.item_encoder(items)
    past = (
        item_UD,
        batch.candidate_B,
        batch.history_T,
        batch.history_kind_T,
        batch.history_offsets,
    )
    candidate, history = item_UD[batch.candidate_B], network.history(*past)
    features = [pooled.to_dict()[name] for table in CASE.tables()[:3] for name in table.features]
    dense = network.dense_arch(network.dense_encoding(batch.dense_BF))
    expected = [*features, candidate, history, candidate * history, network.feedback_sum(*past)]
    torch.testing.assert_close(seen[0], torch.cat([*expected, dense], dim=1))


def test_logits_of_a_row_do_not_depend_on_the_other_rows():
    model = build().eval()
    ((whole,),) = batches_of_ranks(CASE, 1)
    (halves,) = batches_of_ranks(CASE, 2)
    expected = model(whole)[1].logits_BN
    found = torch.cat([model(half)[1].logits_BN for half in halves])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model(joined(halves))[1].logits_BN, expected)


def test_same_tower_class_serves_ids_and_tokens():
    by_id = replace(CASE.config(), item=ItemIdConfig(table_dim=DIM, item_dim=8))
    table = replace(CASE.tables()[-1], name="item_id", features=("item_id",), role="item_id")
    model = RankingModel(
        by_id,
        tables=[*CASE.tables()[:3], table],
        num_dense=NUM_DENSE,
        num_tasks=NUM_TASKS,
        num_histories=NUM_HISTORIES,
    )
    hybrid = build()
    shapes = [
        {name: weight.shape for name, weight in one.network.tower.named_parameters()}
        for one in (model, hybrid)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "tower", [DLRMConfig(hidden_dims=(8,)), RankMixerConfig(num_tokens=4, dim=8)]
)
def test_every_weight_of_every_table_looked_up_gets_a_gradient(batch, tower):
    model = build(config=replace(CASE.config(), tower=tower, head_dims=(16,)))
    model(batch)[0].backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


def test_id_dropout_zeroes_whole_residual_ids_of_some_rows_while_training(batch):
    tables = [replace(CASE.tables()[0], role="residual_id"), *CASE.tables()[1:]]
    model = RankingModel(
        replace(CASE.config(), id_dropout=0.5),
        tables=tables,
        num_dense=NUM_DENSE,
        num_tasks=NUM_TASKS,
        num_histories=NUM_HISTORIES,
    )
    seen = []
    model.network.tower.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for _ in range(50):
        model(batch)
    model.eval()
    model(batch)
    whole, trained = seen.pop(), torch.stack(seen)
    first = tables[0].features[0]
    used = batch.pooled[first].lengths() > 0
    kept = trained[:, used, :DIM] == whole[used, :DIM]
    assert (kept.all(-1) | (trained[:, used, :DIM] == 0).all(-1)).all()
    assert 0.35 < kept.all(-1).float().mean() < 0.65
    torch.testing.assert_close(trained[0, :, 2 * DIM :], whole[:, 2 * DIM :])


def test_bf16_runs_products_in_bf16_and_returns_fp32(batch):
    model = build(precision="bf16").eval()
    seen = []
    model.network.heads[0].register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    logits = model(batch)[1].logits_BN
    assert seen == [torch.bfloat16]
    assert logits.dtype == torch.float32
    exact = build().eval()(batch)[1].logits_BN
    torch.testing.assert_close(logits, exact, atol=0.05, rtol=0)
    assert not torch.equal(logits, exact)


def test_tables_must_be_those_that_the_item_encoder_reads():
    config = CASE.config()
    check_item_features(config, CASE.tables())
    with pytest.raises(ValueError, match=r"reads \['gen_token', 'mem_token'\] but .*\['gen_token'"):
        check_item_features(config, CASE.tables()[:-1])
    narrow = [*CASE.tables()[:-1], replace(CASE.tables()[-1], dim=8)]
    with pytest.raises(
        ValueError, match=r"'mem_token': dim is 8, but model\.item\.table_dims has 16"
    ):
        check_item_features(config, narrow)
