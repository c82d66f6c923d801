"""Size and character of a synthetic search log, and the roles of its columns."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.data.causal import NUM_GAP_BUCKETS
from trainer.data.schema import Categorical, DatasetSchema, Dense, ItemSequence

START = 1_700_006_400
"""First second of the log: 2023-11-15 00:00 UTC."""
DAY = 86_400
MAX_HISTORY = 50
NUM_REGIONS = 50


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Size and character of a synthetic log; equal configs give equal logs.

    Args:
        num_rows: Impressions.
        num_items: Items alive at any moment.
        num_users: Users.
        num_queries: Queries.
        days: Days that the log spans.
        churn: Share of the live items that is replaced per day.
        impressions_per_request: Items shown per request.
        idiosyncratic_share: Share of item logit variance that no content tells.
        zipf_exponent: Exposure of the item of rank r is proportional to r ** -zipf_exponent.
        click_rate: Mean of the label `click`.
        play_rate: Mean of the label `play` among clicks.
        branching: Children per node at the three levels of the cluster tree.
        embedding_dim: Width of the observable embedding column.
        seed: Seed of everything.
    """

    num_rows: int = 1_000_000
    num_items: int = 5_000
    num_users: int = 10_000
    num_queries: int = 2_000
    days: int = 14
    churn: float = 0.3
    impressions_per_request: int = 10
    idiosyncratic_share: float = 0.4
    zipf_exponent: float = 0.8
    click_rate: float = 0.2
    play_rate: float = 0.4
    branching: tuple[int, int, int] = (8, 8, 4)
    embedding_dim: int = 32
    seed: int = 1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: naming the field, its value and what it may be.
        """
        counts = ("num_rows", "num_users", "num_queries", "days", "impressions_per_request")
        for name in (*counts, "embedding_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"SyntheticConfig.{name} is {getattr(self, name)}, expected >= 1")
        for name in ("churn", "idiosyncratic_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"SyntheticConfig.{name} is {getattr(self, name)}, expected 0 to 1"
                )
        for name in ("click_rate", "play_rate"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"SyntheticConfig.{name} is {getattr(self, name)}, expected between 0 and 1"
                )
        if min(self.branching) < 1 or self.num_items < self.num_leaves:
            raise ValueError(
                f"SyntheticConfig.num_items is {self.num_items}, expected at least one for each "
                f"of the {self.num_leaves} leaves of branching={self.branching}"
            )

    @property
    def num_leaves(self) -> int:
        """Leaves of the cluster tree."""
        return self.branching[0] * self.branching[1] * self.branching[2]

    @property
    def num_nodes(self) -> tuple[int, int]:
        """Nodes at the first and at the second level of the tree."""
        return self.branching[0], self.branching[0] * self.branching[1]

    @property
    def num_requests(self) -> int:
        """Requests; the last one may show fewer items."""
        return -(-self.num_rows // self.impressions_per_request)

    @property
    def births_per_day(self) -> int:
        """Items that replace others each day."""
        return round(self.churn * self.num_items)

    @property
    def num_items_ever(self) -> int:
        """Items that live at any time of the log; ids are counted in order of birth."""
        return self.num_items + self.births_per_day * self.days


def high_churn(num_rows: int = 1_000_000, seed: int = 1) -> SyntheticConfig:
    """A catalogue of which 30 % is new every day: an item lives for about three days."""
    return SyntheticConfig(num_rows=num_rows, churn=0.3, seed=seed)


def low_churn(num_rows: int = 1_000_000, seed: int = 1) -> SyntheticConfig:
    """The same world with 1 % new items a day: most items live through the whole log."""
    return SyntheticConfig(num_rows=num_rows, churn=0.01, seed=seed)


def schema(config: SyntheticConfig) -> DatasetSchema:
    """Roles of the columns of the log that `config` makes.

    The embedding and title columns of items.parquet are no features: tokens are fitted on them.
    The true probabilities `p_click` and `p_play` stand in the log for evaluation alone.
    """
    top, middle = config.num_nodes
    return DatasetSchema(
        name="synthetic",
        features=(
            Categorical(name="user_id", entity="user", cardinality=config.num_users),
            Categorical(name="user_segment", entity="user", cardinality=top, source="users"),
            Categorical(name="user_region", entity="user", cardinality=NUM_REGIONS, source="users"),
            Categorical(name="category_1", entity="item", cardinality=top, source="items"),
            Categorical(name="category_2", entity="item", cardinality=middle, source="items"),
            Categorical(name="query_id", entity="request", cardinality=config.num_queries),
            Categorical(name="query_cluster", entity="request", cardinality=middle),
            Categorical(
                name="position", entity="request", cardinality=config.impressions_per_request
            ),
            Categorical(name="hour", entity="request", cardinality=24),
            Categorical(name="gap_bucket", entity="request", cardinality=NUM_GAP_BUCKETS),
            Dense(name="user_count", entity="user", transform="log1p"),
            Dense(name="user_mean", entity="user"),
            Dense(name="user_recency", entity="user", transform="log1p"),
            Dense(name="item_count", entity="item", transform="log1p"),
            Dense(name="item_mean", entity="item"),
            Dense(name="user_genre_count", entity="cross", transform="log1p"),
            Dense(name="user_genre_mean", entity="cross"),
        ),
        labels=("click", "play"),
        histories=(
            ItemSequence(name="history", max_length=MAX_HISTORY),
            ItemSequence(name="history_rest", max_length=MAX_HISTORY),
        ),
        query_group="request_id",
    )
