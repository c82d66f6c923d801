"""The world behind the synthetic search log: items, users, queries and their true tastes.

Items hang in a tree of clusters. An item has a semantic latent, its cluster path plus a
deviation, of which its content (embedding, categories, title) is a noisy view, and an
idiosyncratic latent of the same size, of which nothing observable tells. Every part of a logit
that depends on the item uses both, in the shares that `idiosyncratic_share` sets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainer.data.ragged import Ragged
from trainer.data.synthetic_config import DAY, NUM_REGIONS, START, SyntheticConfig
from trainer.data.writer import ragged_column

Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]

LATENT_DIM = 16
LEVEL_VARIANCE = (0.5, 0.25, 0.15, 0.1)
"""Share of the semantic variance at each tree level, and of the item within its leaf."""
EMBEDDING_NOISE = 0.2
"""Share of the embedding column's variance that is noise."""
MISLABELLED = 0.05
"""Share of items, users and queries whose observed category is drawn at random."""
NUM_SYNONYMS = 3
NUM_NOISE_WORDS = 500


class SyntheticWorld:
    """Everything about items, users and queries, drawn from the seed.

    The catalogue has `num_items` slots, each with a leaf of the tree and a Zipf weight. An item
    lives in a slot until another is born there, so exposure and tree stay the same in the large
    while the items change.

    Attributes:
        semantic_ID: float32, what content tells of each item (I items ever, D latent dims).
        idiosyncratic_ID: float32, what it does not tell.
        user_UD, query_QD: float32 tastes and intents.
        user_bias_U, query_bias_Q: part of the click logit.
        quality_2D: directions of what makes an item clicked and played by everyone.
        slot_I, born_I: int64 slot and second of birth.
        category_1_I, category_2_I: observed tree nodes.
    """

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        # A stream of its own for each part: worlds that differ in churn share all the rest.
        tree, places, items, people = np.random.default_rng([config.seed, 0]).spawn(4)
        top, middle = config.num_nodes
        level_nodes = (top, middle, config.num_leaves)
        steps = [
            tree.normal(0, np.sqrt(share), (count, LATENT_DIM))
            for share, count in zip(LEVEL_VARIANCE, level_nodes, strict=False)
        ]
        leaves = np.arange(config.num_leaves)
        self.leaf_centre_LD = (
            steps[0][leaves // (config.num_leaves // top)]
            + steps[1][leaves // config.branching[2]]
            + steps[2]
        )
        self.quality_2D = tree.standard_normal((2, LATENT_DIM), dtype=np.float32)
        self._place_items(places)
        self._draw_items(items)
        self._draw_users_and_queries(people)

    def items_at(self, slots: Ints, seconds: Ints) -> Ints:
        """Item that lives in each slot at each time.

        Args:
            slots: (R,) slots.
            seconds: (R,) seconds since the start of the log.
        """
        keys = slots * (self.config.days * DAY) + seconds
        return self._item_by_birth[np.searchsorted(self._birth_keys, keys, side="right") - 1]

    def sample_slots(self, uniforms: Doubles, nodes: Ints | None = None) -> Ints:
        """Draw slots by Zipf weight, from the whole catalogue or within second-level nodes.

        Args:
            uniforms: (R,) numbers in [0, 1).
            nodes: (R,) second-level node to draw from.
        """
        low: Any = 0.0
        high: Any = self._cumulative[-1]
        if nodes is not None:
            low = self._cumulative[self._node_start[nodes]]
            high = self._cumulative[self._node_start[nodes + 1]]
        slots = np.searchsorted(self._cumulative, low + uniforms * (high - low), side="right") - 1
        return np.minimum(slots, self.config.num_items - 1)

    def item_table(self) -> pa.Table:
        """items.parquet: all items ever, with what can be observed of them."""
        columns: dict[str, Any] = {
            "item_id": np.arange(self.config.num_items_ever),
            "created_at": self.born_I,
            "category_1": self.category_1_I.astype(np.int32),
            "category_2": self.category_2_I.astype(np.int32),
            "title": self._titles(),
            "embedding": ragged_column(
                Ragged.from_lengths(
                    self._embedding().ravel(),
                    np.full(self.config.num_items_ever, self.config.embedding_dim),
                )
            ),
        }
        return pa.table(columns)

    def user_table(self) -> pa.Table:
        """users.parquet: user ids with an observed segment and a region that means nothing."""
        rng = np.random.default_rng([self.config.seed, 1])
        columns: dict[str, Any] = {
            "user_id": np.arange(self.config.num_users),
            "user_segment": self.user_segment_U.astype(np.int32),
            "user_region": rng.integers(NUM_REGIONS, size=self.config.num_users, dtype=np.int32),
        }
        return pa.table(columns)

    def _place_items(self, rng: np.random.Generator) -> None:
        """Choose slots, their leaves and weights, and who is born where and when."""
        config = self.config
        self._leaf_of_slot = np.arange(config.num_items) * config.num_leaves // config.num_items
        node_of_slot = self._leaf_of_slot // config.branching[2]
        nodes = np.arange(config.num_nodes[1] + 1)
        self._node_start = np.searchsorted(node_of_slot, nodes)
        weights = zipf_weights(config.num_items, config.zipf_exponent)
        self._cumulative = np.concatenate([[0], np.cumsum(rng.permutation(weights))])

        # Items that are there at the start were born within the time that an item lives.
        lifetime = DAY / max(config.churn, 1 / 60)
        age = (rng.random(config.num_items) * lifetime).astype(np.int64)
        slots, seconds = [np.arange(config.num_items)], [np.zeros(config.num_items, np.int64)]
        for day in range(config.days):
            slots.append(rng.choice(config.num_items, config.births_per_day, replace=False))
            seconds.append(np.sort(rng.integers(day * DAY, (day + 1) * DAY, config.births_per_day)))
        self.slot_I, second_I = np.concatenate(slots), np.concatenate(seconds)
        self.born_I = START + second_I
        self.born_I[: config.num_items] -= age
        self.leaf_I = self._leaf_of_slot[self.slot_I]
        keys = self.slot_I * (config.days * DAY) + second_I
        self._item_by_birth = np.argsort(keys, kind="stable")
        self._birth_keys = keys[self._item_by_birth]

    def _draw_items(self, rng: np.random.Generator) -> None:
        config = self.config
        own = rng.standard_normal((config.num_items_ever, 2, LATENT_DIM), dtype=np.float32)
        deviation = np.sqrt(LEVEL_VARIANCE[-1]) * own[:, 0]
        self.semantic_ID = (self.leaf_centre_LD[self.leaf_I] + deviation).astype(np.float32)
        self.idiosyncratic_ID = np.ascontiguousarray(own[:, 1])
        node_I = self.leaf_I // config.branching[2]
        self.category_2_I = mislabel(rng, node_I, config.num_nodes[1])
        self.category_1_I = self.category_2_I // config.branching[1]

    def _draw_users_and_queries(self, rng: np.random.Generator) -> None:
        config = self.config
        self.user_UD = rng.standard_normal((config.num_users, LATENT_DIM), dtype=np.float32)
        self.user_bias_U = rng.normal(0, 0.4, config.num_users)
        top_centres = self.leaf_centre_LD.reshape(config.branching[0], -1, LATENT_DIM).mean(1)
        favourite_U = np.argmax(self.user_UD @ top_centres.T, axis=1)
        self.user_segment_U = mislabel(rng, favourite_U, config.num_nodes[0])
        self.user_weight_cumulative = np.cumsum(
            rng.permutation(zipf_weights(config.num_users, 0.5))
        )
        leaf_Q = rng.integers(config.num_leaves, size=config.num_queries)
        deviation = rng.normal(0, 0.5, (config.num_queries, LATENT_DIM))
        self.query_QD = (self.leaf_centre_LD[leaf_Q] + deviation).astype(np.float32)
        self.query_bias_Q = rng.normal(0, 0.3, config.num_queries)
        self.query_node_Q = leaf_Q // config.branching[2]
        self.query_cluster_Q = mislabel(rng, self.query_node_Q, config.num_nodes[1])
        self.query_weight_cumulative = np.cumsum(zipf_weights(config.num_queries, 0.8))

    def _embedding(self) -> NDArray[np.float32]:
        """Observed embedding (I, embedding_dim): a random projection of semantics, plus noise."""
        rng = np.random.default_rng([self.config.seed, 2])
        projection = rng.normal(0, 1 / np.sqrt(LATENT_DIM), (LATENT_DIM, self.config.embedding_dim))
        seen = self.semantic_ID @ projection
        noise = rng.normal(0, np.sqrt(EMBEDDING_NOISE / (1 - EMBEDDING_NOISE)), seen.shape)
        return (seen + noise * seen.std()).astype(np.float32)

    def _titles(self) -> Any:
        """A word for each node of the item's path, one of few synonyms, and a word of noise."""
        rng = np.random.default_rng([self.config.seed, 3])
        top, middle = self.config.num_nodes
        first_word, words = 0, []
        leaf_I = self.leaf_I
        paths = (leaf_I // (self.config.num_leaves // top), leaf_I // self.config.branching[2])
        for nodes, count in zip(
            (*paths, leaf_I), (top, middle, self.config.num_leaves), strict=True
        ):
            synonym = rng.integers(NUM_SYNONYMS, size=len(leaf_I))
            words.append(first_word + nodes * NUM_SYNONYMS + synonym)
            first_word += count * NUM_SYNONYMS
        words.append(first_word + rng.integers(NUM_NOISE_WORDS, size=len(leaf_I)))
        vocabulary = _vocabulary(rng, first_word + NUM_NOISE_WORDS)
        columns: list[Any] = [vocabulary.take(ids) for ids in words]
        return pc.binary_join_element_wise(*columns, " ")


def zipf_weights(count: int, exponent: float) -> Doubles:
    """Weights (count,) of ranks 1, 2, ..., which sum to 1."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def mislabel(rng: np.random.Generator, labels: Ints, cardinality: int) -> Ints:
    """Replace a few labels by random ones."""
    random = rng.integers(cardinality, size=len(labels))
    return np.where(rng.random(len(labels)) < MISLABELLED, random, labels)


def _vocabulary(rng: np.random.Generator, size: int) -> pa.Array[Any]:
    """Distinct pronounceable words: a number in syllables."""
    syllables = np.array([a + b for a in "bdfgklmnprstvz" for b in "aeiou"])
    base, length = len(syllables), 3
    while base**length < 2 * size:
        length += 1
    numbers = rng.choice(base**length, size, replace=False)
    digits = numbers[:, None] // base ** np.arange(length) % base
    words = syllables[digits].astype(object).sum(axis=1)
    return pa.array(words, type=pa.string())
