"""What DIG's retrieval is compared with (its Table 2): rows that retrieve alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenization.co_clicks import CoClicks
from tokenization.das import DAS
from tokenization.dos import DOS
from tokenization.letter import LETTER
from tokenization.rq_kmeans import RQKMeans
from tokenization.rq_vae import RQVAE
from tokenization.sasrec import SASRec
from trainer.baselines.popularity import PopularityConfig
from trainer.baselines.sasrec_retriever import SASRecRetrieverConfig
from trainer.baselines.transition_counts import TransitionCountsConfig
from trainer.generative_retrieval.etegrec import ETEGRecConfig
from trainer.generative_retrieval.generator import GeneratorConfig
from trainer.generative_retrieval.retriever_configs import (
    CoClickGenerativeConfig,
    GenerativeConfig,
    JointGenerativeConfig,
)
from trainer.generative_retrieval.training import GeneratorTraining
from trainer.modules.learned_tokens import LearnedTokensConfig
from trainer.retrieval_study import RetrieverConfig

TRM = "TRM"
FREE = (PopularityConfig().title, TransitionCountsConfig().title)
"""Rows that train nothing."""

GENERATOR = GeneratorConfig(dim=64, num_layers=2)
TRAINING = GeneratorTraining(num_epochs=24, learning_rate=3e-3, check_every=2, patience=4)
"""Of all generative rows: 24 epochs, the best of the looks at the validation cases, two epochs
apart; fewer where four looks in a row find no better recall."""
LONG_TRAINING = replace(TRAINING, num_epochs=10)
"""The same for logs with long sequences, whose epochs are as much as three of Amazon Beauty's."""


def retrievers(
    item: LearnedTokensConfig,
    *,
    training: GeneratorTraining,
    num_cycles: int,
    co_clicks: CoClicks,
    small: bool,
) -> tuple[RetrieverConfig, ...]:
    """What is free, SASRec, the paper's baselines, and TRM's gen-tokens; all with DIG's codes.

    Args:
        item: levels, codes and content of the tokens, as DIG has them.
        training: of generative rows.
        num_cycles: of ETEGRec's tokenizer.
        co_clicks: of TRM's row.
        small: sizes for seconds of training.
    """
    shape: dict[str, Any] = {"num_levels": item.num_levels, "num_codes": item.num_codes}
    network, behaviour, generator = SASRec(num_epochs=100), SASRec(), GENERATOR
    joint = ETEGRecConfig(tokenizer=RQVAE(**shape), num_cycles=num_cycles)
    if small:
        shape |= {"hidden": (32,), "latent_dim": 16, "num_epochs": 3}
        network = behaviour = SASRec(dim=16, num_layers=1, num_epochs=2)
        generator = GeneratorConfig(dim=16, num_layers=1, num_heads=2, max_items=10)
        training = GeneratorTraining(num_epochs=2, check_every=2)
        joint = ETEGRecConfig(
            tokenizer=RQVAE(**shape), sasrec=behaviour, num_cycles=1, cycle_epochs=2
        )
    collaborative = {**shape, "collaborative_dim": behaviour.dim}
    tokenizers = {
        "TIGER": RQVAE(**shape),
        "LETTER": LETTER(**collaborative),
        "DAS": DAS(**collaborative),
        "DOS": DOS(**collaborative),
    }
    return (
        PopularityConfig(),
        TransitionCountsConfig(),
        SASRecRetrieverConfig(sasrec=network),
        *(
            GenerativeConfig(
                title=title,
                tokenizer=tokenizer,
                content=item,
                sasrec=behaviour,
                generator=generator,
                training=training,
            )
            for title, tokenizer in tokenizers.items()
        ),
        JointGenerativeConfig(joint=joint, generator=generator, training=training),
        CoClickGenerativeConfig(
            title=TRM,
            tokenizer=RQKMeans(num_levels=item.num_levels, num_codes=item.num_codes),
            content=item,
            dim=co_clicks.dim,
            window=co_clicks.window,
            content_weight=co_clicks.content_weight,
            generator=generator,
            training=training,
        ),
    )
