from dataclasses import replace

import pytest
import torch

from tests.integration.tiny_model import (
    DIM,
    NUM_CODES,
    NUM_DENSE,
    NUM_HISTORIES,
    NUM_LEVELS,
    NUM_TASKS,
    ROLES,
    Case,
    batches_of_ranks,
)
from trainer.data.context_roles import context_roles
from trainer.data.schema import Bag, Categorical, DatasetSchema, Dense
from trainer.models.ranking_model import RankingModel
from trainer.modules.hybrid_tokens import GEN_TOKEN, ItemIdConfig
from trainer.modules.next_token_config import NextTokenConfig

NEXT_TOKEN = NextTokenConfig(dim=8, num_layers=2, num_heads=2, expansion=2.0, weight=0.3)
CASE = Case(name="joint", num_steps=1, batch_size=16, next_token=NEXT_TOKEN)


@pytest.fixture
def batch():
    ((batch,),) = batches_of_ranks(CASE, 1)
    return batch


def build(**changes):
    torch.manual_seed(0)
    return replace(CASE, **changes).model("cpu")


def gradients(model, loss):
    names, weights = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return dict(zip(names, found, strict=True))


def test_loss_is_discriminative_plus_weighted_generative_over_all_impressions(batch):
    model = build()
    loss, outputs = model(batch)
    alone, without = build(next_token=None)(batch)
    torch.testing.assert_close(outputs.logits_BN, without.logits_BN)
    torch.testing.assert_close(outputs.losses["discriminative"], alone.detach())
    assert set(without.losses) == {"discriminative"}
    pooled, items = model.sparse(batch)
    context = model.network.encode_context(batch, pooled, items)
    total, module = 0.0, model.network.next_token
    for row in range(batch.batch_size):
        if not batch.labels_BN[row, 0]:
            continue
        item = int(batch.candidate_B[row])
        at = slice(item * NUM_LEVELS, (item + 1) * NUM_LEVELS)
        codes = batch.items[GEN_TOKEN].values()[at] - NUM_CODES * torch.arange(NUM_LEVELS)
        total += module(
            context.take(torch.tensor([row])),
            items[GEN_TOKEN].values()[at].unsqueeze(0),
            codes.unsqueeze(0),
        ).detach()
    generative = total / batch.batch_size
    torch.testing.assert_close(outputs.losses["next_token"], generative)
    torch.testing.assert_close(loss.detach(), alone.detach() + 0.3 * generative)
    assert not any(part.requires_grad for part in outputs.losses.values())


def test_tower_learns_from_the_discriminative_loss_alone_and_tables_from_both(batch):
    model, twice, without = (
        build(),
        build(next_token=replace(NEXT_TOKEN, weight=0.6)),
        build(next_token=None),
    )
    once, double, plain = (gradients(one, one(batch)[0]) for one in (model, twice, without))
    for name, expected in plain.items():
        torch.testing.assert_close(
            double[name] - once[name], once[name] - expected, atol=1e-6, rtol=1e-4
        )
        if "tower" in name or "heads" in name or "network.history" in name:
            assert torch.equal(once[name], expected), name
    for table in ("gen_token", "mem_token", "pooled_sgd", "pooled_rowwise_adagrad"):
        (name,) = (name for name in plain if f".{table}." in name)
        assert not torch.allclose(once[name], plain[name]), table


def test_context_sees_neither_the_candidate_nor_the_labels(batch):
    model = build().eval()
    pooled, items = model.sparse(batch)
    before = model.network.encode_context(batch, pooled, items).output_BCD
    other = replace(batch, candidate_B=batch.candidate_B.roll(1), labels_BN=1 - batch.labels_BN)
    torch.testing.assert_close(
        model.network.encode_context(other, pooled, items).output_BCD, before
    )
    dense = batch.dense_BF.clone()
    dense[:, 2] += 0.3  # of the item
    other = replace(batch, dense_BF=dense)
    assert torch.equal(model.network.encode_context(other, pooled, items).output_BCD, before)
    dense[:, 0] += 0.3  # of the user
    other = replace(batch, dense_BF=dense)
    assert not torch.equal(model.network.encode_context(other, pooled, items).output_BCD, before)
    nobody = replace(batch, history_T=batch.history_T.flip(0))
    assert not torch.equal(model.network.encode_context(nobody, pooled, items).output_BCD, before)


def test_scoring_generates_nothing(batch):
    model, calls = build(), []
    model.network.next_token.blocks[0].register_forward_hook(lambda *call: calls.append(call))
    model(batch)
    assert len(calls) == 2  # the context, and the tokens after it
    model.eval()
    _, outputs = model(batch)
    assert len(calls) == 2
    assert set(outputs.losses) == {"discriminative"}


def test_a_batch_without_positives_adds_zero_through_every_parameter(batch):
    model = build()
    loss, outputs = model(replace(batch, labels_BN=torch.zeros_like(batch.labels_BN)))
    assert float(outputs.losses["next_token"]) == 0
    found = gradients(model, loss)
    for name, gradient in found.items():
        assert gradient is not None, name
        assert gradient.isfinite().all()
        if ".next_token." in name:
            assert not gradient.any(), name


@pytest.mark.parametrize("weight", [0.3, 0.0])
def test_tower_reads_the_context_where_it_is_told_to(batch, weight):
    model = build(next_token=replace(NEXT_TOKEN, weight=weight, feeds_tower=True))
    seen = []
    model.network.tower.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    loss, outputs = model(batch)
    pooled, items = model.sparse(batch)
    context = model.network.encode_context(batch, pooled, items)
    torch.testing.assert_close(seen[0][:, -8:], context.output_BCD.mean(1))
    assert ("next_token" in outputs.losses) == bool(weight)
    if weight:
        apart = build(next_token=NEXT_TOKEN)
        # Same weights of the transformer, since they are drawn after the wider tower's.
        apart.network.next_token.load_state_dict(model.network.next_token.state_dict())
        apart.network.feedback_sum.load_state_dict(model.network.feedback_sum.state_dict())
        apart.network.item_encoder.load_state_dict(model.network.item_encoder.state_dict())
        apart.sparse.load_state_dict(model.sparse.state_dict())
        torch.testing.assert_close(
            apart(batch)[1].losses["next_token"], outputs.losses["next_token"]
        )
    for name, gradient in gradients(model, loss).items():
        assert gradient is not None, name
        assert gradient.any(), name


def test_units_of_sharding_are_the_blocks_of_both():
    network, plain = build().network, build(next_token=None).network
    assert network.fsdp_units() == [*network.tower.blocks, *network.next_token.blocks]
    assert plain.fsdp_units() == list(plain.tower.blocks)


def test_bf16_computes_the_same_within_its_precision(batch):
    exact = build()(batch)[1].losses["next_token"]
    model = build()
    model.network.precision = "bf16"
    loss, outputs = model(batch)
    loss.backward()
    torch.testing.assert_close(outputs.losses["next_token"], exact, rtol=0.02, atol=0)


def test_items_that_are_ids_can_not_be_generated():
    by_id = ItemIdConfig(table_dim=DIM, item_dim=8)
    with pytest.raises(
        ValueError,
        match=r"model\.next_token predicts .* model\.item \(ItemIdConfig\) reads item_id",
    ):
        replace(CASE.config(), item=by_id)
    summed = replace(CASE.config().item, gen_tokens=False)
    with pytest.raises(ValueError, match=r"model\.item \(HybridTokensConfig\) reads mem_token"):
        replace(CASE.config(), item=summed)


def test_roles_of_features_are_needed():
    with pytest.raises(ValueError, match="which features are query and user"):
        RankingModel(
            CASE.config(),
            tables=CASE.tables(),
            num_dense=NUM_DENSE,
            num_tasks=NUM_TASKS,
            num_histories=NUM_HISTORIES,
        )


def test_roles_follow_the_entities_of_the_schema():
    schema = DatasetSchema(
        name="log",
        features=(
            Categorical(name="query", entity="request", cardinality=4),
            Dense(name="age_of_item", entity="item"),
            Bag(name="genres", entity="item", cardinality=4),
            Categorical(name="user", entity="user", cardinality=4),
            Dense(name="affinity", entity="cross"),
            Dense(name="hour", entity="request"),
            Categorical(name="pair", entity="cross", cardinality=4),
            Dense(name="activity", entity="user"),
        ),
        labels=("click", "play"),
    )
    assert context_roles(schema) == replace(
        ROLES,
        query_features=("query",),
        user_features=("user",),
        query_dense=(2,),
        user_dense=(3,),
        tasks=("click", "play"),
    )
