"""DIG's SIDs while it trains: how they move, when they stay, what is told of them."""

from dataclasses import replace

import pytest
import torch

from tests.integration import tiny_dig
from tests.integration.tiny_dig import ITEM, NUM_ITEMS, batches_of_ranks, dig_model, variant
from trainer.modules import learned_tokens


@pytest.fixture
def batch():
    return batches_of_ranks(1, 24, 1)[0][0]


def test_fixed_sids_stay(batch):
    model = dig_model(config=variant(item=replace(ITEM, fixed=True)))
    model(batch)
    before = model.network.quantizer.codebooks_LKD.clone()
    codes = model.network.catalogue_codes()
    loss, _ = model(batch)
    loss.backward()
    assert torch.equal(before, model.network.quantizer.codebooks_LKD)
    assert torch.equal(codes, model.network.catalogue_codes())
    assert all(weight.grad is None for weight in model.network.encoder.parameters())


def test_sids_stay_after_some_steps(batch, monkeypatch):
    monkeypatch.setattr(learned_tokens, "SETTLING_STEPS", 1)
    model = dig_model(config=variant(item=replace(ITEM, fixed_after=2)))
    for step in range(7):
        before = model.network.quantizer.codebooks_LKD.clone()
        model.zero_grad()
        loss, outputs = model(batch)
        loss.backward()
        learns = step < 2
        assert torch.equal(before, model.network.quantizer.codebooks_LKD) == (step > 2)
        moved = any(weight.grad.any() for weight in model.network.encoder.parameters())
        assert moved == learns
        assert model.network.item_norm.weight_D.grad.any()
    assert outputs.losses["drift_1"] == outputs.losses["drift"] == 0


def test_a_resting_encoder_is_asked_once_and_again_when_anything_changes(batch):
    model = dig_model(config=variant(item=replace(ITEM, fixed_after=2)))
    network, rows = model.network, torch.arange(NUM_ITEMS)
    for step in range(4):
        assert network.encoder_rests == (step >= 2)
        loss, _ = model(batch)
        loss.backward()
        resting = [id(one) for one in network.waiting_parameters(step)]
        assert resting == ([id(one) for one in network.encoder.parameters()] if step >= 2 else [])
    e = network.encode_catalogue()
    assert network.encode_catalogue() is e
    torch.testing.assert_close(e, network.encoder(rows).detach())
    other = dig_model(config=variant(item=replace(ITEM, fixed_after=2)))
    with torch.no_grad():
        other.network.encoder.project.weight_TIO.neg_()
    steps = network.num_steps.clone()
    network.load_state_dict(other.network.state_dict())
    network.num_steps.copy_(steps)
    torch.testing.assert_close(network.encode_catalogue(), network.encoder(rows).detach())
    assert not torch.allclose(network.encode_catalogue(), e)
    few = tiny_dig.catalogue()
    network.encoder.take_catalogue(few._replace(dense_NF=few.dense_NF + 1))
    torch.testing.assert_close(network.encode_catalogue(), network.encoder(rows).detach())


def test_metrics_of_a_step(batch):
    model = dig_model()
    losses = model(batch)[1].losses
    assert set(losses) >= {"collision_rate", "dead_codes", "u2t_group_1", "u2t_group_3"}
    assert "drift" not in losses  # nothing to compare with
    assert model.network.config.track_every == 2
    assert ["drift" in model(batch)[1].losses for _ in range(2)] == [False, True]
    assert losses["u2t_group_1"] >= losses["u2t_group_3"] >= 1


def test_outcome_of_sids_is_of_the_whole_catalogue_at_its_beginning_and_end():
    model, steps = dig_model(), batches_of_ranks(6, 24, 1)
    network = model.network
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)

    def shared():
        codes = [tuple(one) for one in network.catalogue_codes().tolist()]
        return sum(codes.count(one) > 1 for one in codes) / NUM_ITEMS

    network.quantizer.start(network.encode_catalogue())
    initial = shared()
    network.quantizer.is_started.zero_()
    for (batch,) in steps:
        optimizer.zero_grad()
        model(batch)[0].backward()
        optimizer.step()
    before = network._tracker._codes_NL
    found = network.sids()
    assert found["initial_collision_rate"] == pytest.approx(initial)
    assert found["collision_rate"] == pytest.approx(shared())
    moved = (network.catalogue_codes() != before).any(1).float().mean()
    assert found["drift"] == pytest.approx(float(moved))
    assert initial != shared() or moved > 0
    again = dig_model()
    again.network.load_state_dict(network.state_dict())
    assert again.network.sids()["initial_collision_rate"] == pytest.approx(initial)
