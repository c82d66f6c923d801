"""What TRM's studies compare on any log: item IDs, its own tokens and those of others.

Equal rows are equal experiments, so `farewell compare` trains each of them once, whatever number
of studies it stands in. `configs.trm_studies` asks the questions.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.datasets import Source, with_tokens
from configs.recipe import id_encoder, ranking_experiment, token_encoder
from configs.sizes import RANKMIXER, Family, sized
from tokenization.alignment import Alignment
from tokenization.balanced_kmeans import BalancedRQKMeans
from tokenization.combinations import AnyMem
from tokenization.ngrams import PrefixNGrams
from tokenization.rq_vae import RQVAE
from trainer.experiment import Experiment
from trainer.models.tower import TowerConfig
from trainer.modules.next_token_config import NextTokenConfig

DENSE = 340_000
"""Dense parameters of every row of the main table, the auxiliary transformer included."""
NEXT_TOKEN = NextTokenConfig(dim=32, num_layers=4)


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """What a token row is made of.

    Args:
        source: log and tokens.
        gen_tokens, mem_tokens, positions: see `HybridTokensConfig`.
        next_token: the generative objective.
    """

    source: Source
    gen_tokens: bool = True
    mem_tokens: bool = True
    positions: bool = False
    next_token: NextTokenConfig | None = None

    def experiment(self, name: str, tower: TowerConfig) -> Experiment:
        """With a given tower."""
        item = token_encoder(
            self.source,
            gen_tokens=self.gen_tokens,
            mem_tokens=self.mem_tokens,
            positions=self.positions,
        )
        return ranking_experiment(
            name, self.source, item=item, tower=tower, next_token=self.next_token
        )

    def sized(self, name: str, family: Family = RANKMIXER, dense: int = DENSE) -> Experiment:
        """With a tower that brings the whole network to `dense` parameters."""
        return sized(lambda tower: self.experiment(name, tower), family, dense)


def id_model(source: Source, family: Family, dense: int = DENSE) -> Experiment:
    """An item is its ID; any tower."""
    name = f"{family.title.lower().replace('-', '_')}_id"
    return sized(
        lambda tower: ranking_experiment(name, source, item=id_encoder(), tower=tower),
        family,
        dense,
    )


def aligned(source: Source) -> Source:
    """Tokens of TRM: fitted on embeddings aligned with co-clicks (section 3.1)."""
    return with_tokens(source, "tokens_aligned", alignment=Alignment())


def trm(source: Source) -> TokenRow:
    """Everything that TRM is: alignment, hybrid tokens, the generative objective."""
    return TokenRow(source=aligned(source), next_token=NEXT_TOKEN)


def tiger(source: Source) -> TokenRow:
    """Gen-tokens of an RQ-VAE, of as many levels and codes as TRM's."""
    shape = source.tokens.tokenizer
    tokenizer = RQVAE(num_levels=shape.num_levels, num_codes=shape.num_codes)
    return TokenRow(
        source=with_tokens(source, "tokens_tiger", tokenizer=tokenizer), mem_tokens=False
    )


def onerec(source: Source) -> TokenRow:
    """Gen-tokens of balanced RQ-KMeans: fewer levels of more codes, as OneRec has them."""
    tokenizer = BalancedRQKMeans(num_levels=3, num_codes=2 * source.tokens.tokenizer.num_codes)
    return TokenRow(
        source=with_tokens(source, "tokens_onerec", tokenizer=tokenizer), mem_tokens=False
    )


def semid(source: Source) -> TokenRow:
    """SEMID: prefixes of all lengths of RQ-VAE codes, summed, without gen-tokens.

    There may be a token an item, so that short prefixes, which come first, are all there.
    """
    shape = source.tokens.tokenizer
    tokens = with_tokens(
        source,
        "tokens_semid",
        tokenizer=RQVAE(num_levels=shape.num_levels, num_codes=shape.num_codes),
        mem=PrefixNGrams(min_length=1, num_merges=source.num_items),
    )
    return TokenRow(source=tokens, gen_tokens=False)


def num_mem(source: Source) -> int:
    """Mem-tokens of the source, which every other kind of combination gets too."""
    return source.tokens.mem.num_merges


def other_mem(source: Source, name: str, mem: AnyMem) -> Source:
    """TRM's gen-tokens with other combinations of codes."""
    return with_tokens(aligned(source), f"tokens_aligned_{name}", mem=mem)


def trm_tower(source: Source) -> TowerConfig:
    """The tower of TRM's row, which its ablations keep."""
    return trm(source).sized("trm_rankmixer").model.tower
