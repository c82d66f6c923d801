"""What holds for every tower, whatever its equations."""

import dataclasses

import pytest
import torch
import tyro

from trainer.initialize import initialize, parameters_on_meta
from trainer.models.autoint import AutoIntConfig
from trainer.models.dcn import DCNConfig
from trainer.models.dcn_v2 import DCNv2Config
from trainer.models.deepfm import DeepFMConfig
from trainer.models.dhen import DHENConfig
from trainer.models.dlrm import DLRMConfig
from trainer.models.fm import FMConfig
from trainer.models.gdcn import GDCNConfig
from trainer.models.masknet import MaskNetConfig
from trainer.models.onetrans import OneTransConfig
from trainer.models.pepnet import PEPNetConfig
from trainer.models.ranking_model import RankingModelConfig
from trainer.models.rankmixer import RankMixerConfig
from trainer.models.rankmixer_moe import RankMixerMoEConfig
from trainer.models.store import StoreConfig
from trainer.models.tower import TowerConfig
from trainer.models.transformer import TransformerConfig
from trainer.models.wide_deep import WideDeepConfig
from trainer.models.wukong import WuKongConfig
from trainer.modules.hybrid_tokens import ItemIdConfig

FEATURES = {"user": 7, "candidate": 7, "dense": 7}
TOKENS = {"num_tokens": 4, "dim": 8}
TOWERS = {
    "dlrm": DLRMConfig(hidden_dims=(12, 8)),
    "deepfm": DeepFMConfig(hidden_dims=(12, 8)),
    "deepfm_projected": DeepFMConfig(hidden_dims=(12, 8), field_dim=5),
    "fm": FMConfig(),
    "fm_projected": FMConfig(field_dim=4),
    "wide_deep": WideDeepConfig(hidden_dims=(12, 8)),
    "dcn": DCNConfig(num_layers=2, hidden_dims=(12, 8)),
    "gdcn_parallel": GDCNConfig(num_layers=2, hidden_dims=(12, 8)),
    "gdcn_stacked": GDCNConfig(num_layers=2, hidden_dims=(12,), structure="stacked"),
    "autoint": AutoIntConfig(num_layers=2, head_dim=4),
    "autoint_plus_projected": AutoIntConfig(head_dim=4, hidden_dims=(12, 8), field_dim=6),
    "masknet_serial": MaskNetConfig(num_blocks=2, block_dim=8, structure="serial"),
    "masknet_parallel": MaskNetConfig(num_blocks=2, block_dim=8, hidden_dims=(12,)),
    "ppnet": PEPNetConfig(hidden_dims=(12, 8), gate_dim=6, prior_features=("user",)),
    "pepnet": PEPNetConfig(
        hidden_dims=(12, 8),
        gate_dim=6,
        prior_features=("user", "candidate"),
        domain_features=("dense",),
    ),
    "onetrans": OneTransConfig(**TOKENS, sequence_features=("user", "dense")),
    "dcn_v2_full_parallel": DCNv2Config(num_layers=2, hidden_dims=(12, 8)),
    "dcn_v2_low_rank_stacked": DCNv2Config(
        num_layers=2, hidden_dims=(12,), rank=3, structure="stacked"
    ),
    "dhen_sum": DHENConfig(**TOKENS, dot_hidden_dim=6),
    "dhen_concat_low_rank": DHENConfig(
        **TOKENS, ensemble="concat", interactions=("linear", "cross"), cross_rank=3
    ),
    "wukong": WuKongConfig(**TOKENS, num_fm_tokens=1, rank=3, hidden_dims=(10,)),
    "transformer_shared": TransformerConfig(**TOKENS),
    "transformer_per_token": TransformerConfig(**TOKENS, weights="per_token", num_heads=2),
    "rankmixer": RankMixerConfig(**TOKENS),
    "rankmixer_moe_dense": RankMixerMoEConfig(**TOKENS, num_experts=3),
    "rankmixer_moe_sparse": RankMixerMoEConfig(**TOKENS, num_experts=3, training="sparse"),
    "store": StoreConfig(
        num_tokens=7,
        groups=(("user",), ("dense",)),
        group_dim=4,
        group_hidden_dim=8,
        num_heads=3,
        ffn_dim=16,
        sparsity=4 / 7,
    ),
    "store_vanilla_not_rotated": StoreConfig(
        num_tokens=7,
        groups=(("user", "dense"),),
        group_dim=8,
        group_hidden_dim=8,
        num_heads=3,
        ffn_dim=16,
        sparsity=0.0,
        block_size=None,
        rotation="none",
    ),
}


@pytest.fixture(params=list(TOWERS.values()), ids=list(TOWERS))
def config(request):
    return request.param


def build(config):
    torch.manual_seed(0)
    return config.build(FEATURES)


def test_config_is_a_frozen_tower_config(config):
    assert isinstance(config, TowerConfig)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dropout = 1


def test_output_has_the_width_that_it_says(config):
    tower = build(config)
    assert tower(torch.randn(5, 21)).shape == (5, tower.out_dim)
    assert tower.eval()(torch.randn(1, 21)).shape == (1, tower.out_dim)


def test_every_input_and_every_weight_gets_a_gradient(config):
    tower = build(config)
    x_BF = torch.randn(64, 21, requires_grad=True)
    out = tower(x_BF)
    (out * torch.randn_like(out)).sum().backward()
    assert (x_BF.grad != 0).any(0).all()
    for name, weight in tower.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


def test_rows_do_not_see_each_other(config):
    tower = build(config).double().eval()
    x_BF = torch.randn(6, 21, dtype=torch.float64)
    with torch.no_grad():
        alone = torch.cat([tower(row[None]) for row in x_BF])
        torch.testing.assert_close(tower(x_BF), alone)


def test_same_seed_same_tower_and_same_output(config):
    x_BF = torch.randn(4, 21)
    towers = build(config), build(config)
    for left, right in zip(towers[0].parameters(), towers[1].parameters(), strict=True):
        torch.testing.assert_close(left, right, atol=0, rtol=0)
    out = []
    for tower in towers:
        torch.manual_seed(1)
        out.append(tower(x_BF))
    torch.testing.assert_close(*out, atol=0, rtol=0)


def test_most_weights_lie_in_blocks(config):
    tower = build(config)
    inside = sum(weight.numel() for weight in tower.blocks.parameters())
    assert inside > 0.5 * sum(weight.numel() for weight in tower.parameters())


def test_shape_can_be_built_without_memory(config):
    with torch.device("meta"):
        tower = config.build(FEATURES)
    assert all(weight.is_meta for weight in tower.parameters())
    sizes = [weight.shape for weight in tower.parameters()]
    assert sizes == [weight.shape for weight in build(config).parameters()]


def test_every_weight_can_be_drawn_later(config):
    with parameters_on_meta():
        tower = config.build(FEATURES)
    initialize(tower, seed=0, device=torch.device("cpu"))
    assert all(weight.isfinite().all() for weight in tower.parameters())


def test_sizes_are_options_of_the_command_line(config):
    """A field typed by the protocol is narrowed to the class of its default."""
    model = RankingModelConfig(item=ItemIdConfig(table_dim=4, item_dim=8), tower=config)
    values = {"num_layers": 3, "num_blocks": 3, "field_dim": 3, "dropout": 0.5}
    field = next(name for name in values if hasattr(config, name))
    changed = tyro.cli(
        tyro.conf.AvoidSubcommands[RankingModelConfig],
        default=model,
        args=[f"--tower.{field.replace('_', '-')}", str(values[field])],
    )
    assert changed.tower == dataclasses.replace(config, **{field: values[field]})
