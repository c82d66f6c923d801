"""The Mixer with what is a request's worked out, against the Mixer as it trains."""

from dataclasses import replace

import pytest
import torch

from tests.integration.tiny_dig import CONFIG, batches_of_ranks, dig_model, variant
from trainer.models.dcn_v2 import DCNv2Config
from trainer.models.request_mixer import RequestMixer
from trainer.retrieval import DigRetriever, build_index

PREFIXES = 11


def network_and_request(config):
    """After two steps, so that batch norms have statistics; some histories are empty."""
    model = dig_model(config=config)
    for step in batches_of_ranks(2, 24, 1):
        model(step[0])
    network = model.network.eval()
    index = build_index(network, torch.arange(network.encoder.num_items).numpy())
    retriever = DigRetriever(network, index, index.item_ids, width=2)
    with torch.no_grad():
        batch = batches_of_ranks(1, 24, 1)[0][0]
        pooled, _ = model.sparse(batch)
        request = retriever.request(batch, pooled)
    assert not request.past.is_there_BT.any(dim=1).all()
    return network, request


def random_prefixes(network):
    torch.manual_seed(1)
    prefix = torch.randn(24, PREFIXES, network.config.item.dim)
    return prefix, torch.randn(24, PREFIXES, network.cross_dim)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tower": replace(CONFIG.tower, num_layers=3, hidden_dims=())},
        {"tower": replace(CONFIG.tower, rank=None)},
        {"tower": DCNv2Config(num_layers=1, hidden_dims=(6,))},
        {"head_dims": (5,), "retrieval_u2t": "mean"},
        {"retrieval_u2t": "none", "u2t_weight": 0.0},
    ],
)
@torch.no_grad()
def test_equals_the_mixer_that_training_has(changes):
    network, request = network_and_request(variant(**changes))
    prefix, u2t = random_prefixes(network)
    expected = network.recall(request, prefix, u2t)
    for task in range(2):
        mixer = RequestMixer(network, request, task=task)
        found = mixer.recall(prefix, u2t, slice(None))
        torch.testing.assert_close(found, expected[..., task])
        some = mixer.recall(prefix[3:9, :2], u2t[3:9, :2], slice(3, 9))
        torch.testing.assert_close(some, expected[3:9, :2, task])
    assert expected.std() > 1e-3


@torch.no_grad()
def test_is_as_near_as_the_mixer_in_bf16():
    network, request = network_and_request(CONFIG)
    prefix, u2t = random_prefixes(network)
    exact = network.recall(request, prefix, u2t)[..., 0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network.recall(request, prefix, u2t)[..., 0]
        found = RequestMixer(network, request, task=0).recall(prefix, u2t, slice(None))
    off, ours_off = ((one - exact).square().mean().sqrt() for one in (rounded, found))
    assert 0 < ours_off < 1.5 * off
