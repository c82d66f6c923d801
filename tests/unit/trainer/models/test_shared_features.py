"""Towers that know what rows share against the same towers over whole rows."""

import pytest
import torch

from trainer.models.dcn_moe import DCNMoEConfig
from trainer.models.dcn_v2 import DCNv2Config
from trainer.models.shared_features import Repeated, SharedDCNMoE, share_features

SHARED, OWN, REQUESTS, ROWS = 7, 5, 4, 6
SMALL = {"dim": 8, "num_experts": 3, "expert_dim": 6}


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (DCNMoEConfig(num_layers=1, rank=3, **SMALL), SharedDCNMoE),
        (DCNMoEConfig(num_layers=2, rank=3, hidden_dims=(6, 4), **SMALL), SharedDCNMoE),
        (DCNMoEConfig(num_layers=3, rank=2, hidden_dims=(), **SMALL), SharedDCNMoE),
        (DCNMoEConfig(num_layers=2, rank=None, **SMALL), Repeated),
        (DCNv2Config(num_layers=1, hidden_dims=(6,)), Repeated),
    ],
)
@torch.no_grad()
def test_sharing_changes_nothing(config, kind):
    torch.manual_seed(0)
    tower = config.build({"user": SHARED, "target": OWN}).eval()
    shared, own = torch.randn(REQUESTS, SHARED), torch.randn(REQUESTS, ROWS, OWN)
    whole = torch.cat([shared.unsqueeze(1).expand(-1, ROWS, -1), own], dim=2)
    expected = tower(whole.flatten(0, 1)).unflatten(0, (REQUESTS, ROWS))
    made = share_features(tower, shared, dtype=torch.float32)
    assert isinstance(made, kind)
    torch.testing.assert_close(made(own, slice(None)), expected)
    torch.testing.assert_close(made(own[1:3, :2], slice(1, 3)), expected[1:3, :2])
    assert expected.std() > 0.01


@torch.no_grad()
def test_closed_experts_add_nothing():
    torch.manual_seed(0)
    tower = DCNMoEConfig(rank=3, **SMALL).build({"user": SHARED, "target": OWN}).eval()
    router = tower.blocks[-2].router
    router.bias_TO[:] = torch.tensor([-9.0, 0.1, 0.2])
    shared, own = torch.randn(REQUESTS, SHARED), torch.randn(REQUESTS, ROWS, OWN)
    found = share_features(tower, shared, dtype=torch.float32)(own, slice(None))
    tower.blocks[-2].weight_out_TEKD[:, 0] = 1e3  # of the closed expert
    again = share_features(tower, shared, dtype=torch.float32)(own, slice(None))
    torch.testing.assert_close(found, again)
