"""Generative retrievers as values; see `trainer.retrieval_study.RetrieverConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenization.base import Embeddings
from tokenization.co_clicks import CoClicks
from tokenization.collisions import Collisions
from tokenization.sasrec import SASRec
from tokenization.tokenizers import AnyTokenizer
from trainer.baselines.retriever import Retriever
from trainer.data.dataset import Dataset
from trainer.data.static_features import read_static_features
from trainer.generative_retrieval.etegrec import ETEGRec, ETEGRecConfig
from trainer.generative_retrieval.generative_retriever import GenerativeRetriever
from trainer.generative_retrieval.generator import GeneratorConfig
from trainer.generative_retrieval.item_tokens import CoClickTokens, FittedTokens
from trainer.generative_retrieval.training import GeneratorTraining
from trainer.modules.learned_tokens import LearnedTokensConfig


@dataclass(frozen=True, kw_only=True)
class GenerativeConfig:
    """A generator on tokens that are fitted first; see `GenerativeRetriever`.

    Args:
        title: of the row.
        tokenizer: of the tokens.
        content: items whose text embeddings are quantized, as a DIG model has them; where it has
            no texts, SASRec's item vectors are.
        collisions: what becomes of items with equal codes.
        sasrec: collaborative embeddings, where the tokenizer wants some or there are no texts.
        generator: sizes.
        training: of the generator.
    """

    title: str
    tokenizer: AnyTokenizer
    content: LearnedTokensConfig
    collisions: Collisions = "keep"
    sasrec: SASRec = field(default_factory=SASRec)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    training: GeneratorTraining = field(default_factory=GeneratorTraining)

    def build(self, dataset: Dataset) -> Retriever:
        """See `RetrieverConfig.build`."""
        source = FittedTokens(
            tokenizer=self.tokenizer,
            content=_texts(dataset, self.content),
            collisions=self.collisions,
            sasrec=self.sasrec,
        )
        return GenerativeRetriever(self.title, source, self.generator, self.training)


@dataclass(frozen=True, kw_only=True)
class CoClickGenerativeConfig:
    """A generator on tokens of co-click vectors and texts; see `CoClickTokens`.

    Args:
        title: of the row.
        tokenizer: of the tokens.
        content: items with text embeddings, as a DIG model has them, or without.
        dim, window, content_weight: of the co-click vectors, and beside them.
        generator: sizes.
        training: of the generator.
    """

    title: str
    tokenizer: AnyTokenizer
    content: LearnedTokensConfig
    dim: int = 128
    window: int = 5
    content_weight: float = 0.5
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    training: GeneratorTraining = field(default_factory=GeneratorTraining)

    def build(self, dataset: Dataset) -> Retriever:
        """See `RetrieverConfig.build`."""
        source = CoClickTokens(
            tokenizer=self.tokenizer,
            content=_texts(dataset, self.content),
            co_clicks=CoClicks(
                dim=self.dim, window=self.window, content_weight=self.content_weight
            ),
        )
        return GenerativeRetriever(self.title, source, self.generator, self.training)


@dataclass(frozen=True, kw_only=True)
class JointGenerativeConfig:
    """Tokens and generator trained in turns; see `ETEGRec`."""

    title: str = "ETEGRec"
    joint: ETEGRecConfig = field(default_factory=ETEGRecConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    training: GeneratorTraining = field(default_factory=GeneratorTraining)

    def build(self, dataset: Dataset) -> Retriever:
        """See `RetrieverConfig.build`."""
        return ETEGRec(
            self.joint, generator=self.generator, training=self.training, title=self.title
        )


def _texts(dataset: Dataset, content: LearnedTokensConfig) -> Embeddings | None:
    """Text embeddings (N, D) by item row; None where items have no texts."""
    if not content.text_dim:
        return None
    embeddings: Embeddings = read_static_features(dataset, content).text_NE.numpy()
    return embeddings
