"""The baselines of STORE's Table 1 on any log: ranking models in which an item is its ID."""

from __future__ import annotations

from configs.datasets import Source
from configs.recipe import id_encoder, ranking_experiment
from configs.sizes import DLRM_MLP, NUM_TOKENS, RANKMIXER, Family, sized
from configs.store_rows import DENSE
from trainer.experiment import Experiment
from trainer.models.autoint import AutoIntConfig
from trainer.models.dcn import DCNConfig
from trainer.models.deepfm import DeepFMConfig
from trainer.models.fm import FMConfig
from trainer.models.gdcn import GDCNConfig
from trainer.models.masknet import MaskNetConfig
from trainer.models.onetrans import OneTransConfig
from trainer.models.pepnet import PEPNetConfig
from trainer.models.tower import TowerConfig
from trainer.models.wide_deep import WideDeepConfig

FIELD_DIM = 16


def id_towers(source: Source) -> dict[str, Family | TowerConfig]:
    """The baselines of the paper's Table 1; all but FM can be given a size."""
    prior = (*source.residual_ids[:1], "candidate")
    families = (
        Family(title="DNN", build=DLRM_MLP.build, unit=8),
        Family(
            title="Wide&Deep",
            build=lambda width, hidden: WideDeepConfig(hidden_dims=(hidden, width)),
            unit=8,
        ),
        Family(
            title="DeepFM",
            build=lambda width, hidden: DeepFMConfig(
                hidden_dims=(hidden, width), field_dim=FIELD_DIM
            ),
            unit=8,
        ),
        Family(
            title="DCN",
            build=lambda width, hidden: DCNConfig(num_layers=3, hidden_dims=(hidden, width)),
            unit=8,
        ),
        Family(
            title="AutoInt",
            build=lambda width, hidden: AutoIntConfig(
                hidden_dims=(hidden, width), field_dim=FIELD_DIM
            ),
            unit=8,
        ),
        Family(
            title="GDCN",
            build=lambda width, hidden: GDCNConfig(num_layers=1, hidden_dims=(hidden, width)),
            unit=4,
        ),
        Family(
            title="MaskNet",
            build=lambda width, hidden: MaskNetConfig(
                num_blocks=2, block_dim=width, reduction=0.125, hidden_dims=(hidden,)
            ),
            unit=8,
        ),
        Family(
            title="PEPNet",
            build=lambda width, hidden: PEPNetConfig(
                hidden_dims=(hidden, width), gate_dim=32, prior_features=prior
            ),
            unit=8,
        ),
        RANKMIXER,
        Family(
            title="OneTrans",
            build=lambda width, hidden: OneTransConfig(
                num_tokens=NUM_TOKENS, dim=width, expansion=hidden / width
            ),
            unit=8,
        ),
    )
    return {"FM": FMConfig(field_dim=FIELD_DIM), **{one.title: one for one in families}}


def id_row(source: Source, title: str, tower: Family | TowerConfig) -> Experiment:
    """A baseline: an item is its ID."""
    name = f"{title.lower().replace('&', '_').replace('-', '_')}_id"

    def make(config: TowerConfig) -> Experiment:
        return ranking_experiment(name, source, item=id_encoder(), tower=config)

    return sized(make, tower, DENSE) if isinstance(tower, Family) else make(tower)
