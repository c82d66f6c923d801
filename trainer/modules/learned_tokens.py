"""What an item is to DIG: static features, from which its SID is learned inside the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sharding.tables import TableSpec
from tokenization.co_clicks import CoClicks

ITEM_ROW: Final = "item_row"
"""Key of the item KeyedJaggedTensor: the item's row in items.parquet."""
SETTLING_STEPS: Final = 50
"""Steps that codebooks follow an encoder that learns no more, until they are the means of what is
assigned to them."""


@dataclass(frozen=True, kw_only=True)
class StaticField:
    """One categorical or bag column of items.parquet (Type I of DIG's Table 1).

    Args:
        name: of the column.
        rows: ids there are.
        bag: a list of ids an item, not one.
        hashed: ids of any size are hashed into `rows` buckets.
    """

    name: str
    rows: int
    bag: bool = False
    hashed: bool = False


@dataclass(frozen=True, kw_only=True)
class LearnedTokensConfig:
    """Items as DIG (section 3.2) sees them; the defaults are those of its section 4.1.

    The encoder's output e_v has one part for each field, `dim / number of fields` wide. The SID
    embeddings (Eq. 5) have a table for each field with rows (level, code) and that part's width, so
    that their sum over a prefix takes e_v's place in the ranker.

    Args:
        fields: static ids.
        dense_columns: static numbers; together they are one field more.
        text_dim: width of the items' frozen text embeddings; 0 for none.
        text_fields: fields that the text embedding becomes.
        embeddings: parquet file of `item_id` and `embedding` with the text embeddings.
        text_column: of items.parquet, from which `farewell train` makes that file.
        embedding_column: list column of items.parquet that is taken in place of the file.
        dim: d, of e_v.
        num_layers: layers of the encoder.
        num_heads: attention heads of each; divides `dim`.
        num_levels: L.
        num_codes: K.
        decay: alpha of the codebooks' moving averages.
        dead_after: steps without an item after which a codeword starts anew.
        fixed: Fixed SID of the paper's Table 5: encoder and codebooks stay as they begin.
        fixed_after: training steps after which the encoder stays as it is by then, and, some steps
            later, the codebooks, so that SID embeddings learn the SIDs that retrieval will use;
            None for never.

    Raises:
        ValueError: naming the field, what was found and what is expected.
    """

    fields: tuple[StaticField, ...]
    dense_columns: tuple[str, ...] = ()
    text_dim: int = 0
    text_fields: int = 1
    embeddings: Path | None = None
    text_column: str = "text"
    embedding_column: str | None = None
    dim: int = 64
    num_layers: int = 4
    num_heads: int = 4
    num_levels: int = 4
    num_codes: int = 256
    decay: float = 0.9
    dead_after: int = 50
    fixed: bool = False
    fixed_after: int | None = None

    def __post_init__(self) -> None:
        """Check sizes and the source of texts."""
        counts = ("text_fields", "dim", "num_layers", "num_heads", "num_levels", "num_codes")
        for name in (*counts, "dead_after"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.item.{name} is {getattr(self, name)}, expected at least 1")
        if not self.field_names:
            raise ValueError(
                "model.item: fields, dense_columns and text_dim are all empty, so nothing tells "
                "items apart; name at least one static column of items.parquet"
            )
        width = 4 * len(self.field_names)
        if self.dim % width or self.dim % self.num_heads:
            raise ValueError(
                f"model.item.dim is {self.dim}, expected a multiple of {width} (4 for each of the "
                f"{len(self.field_names)} fields, as tables want it) and of num_heads "
                f"({self.num_heads}); text_fields changes the number of fields"
            )
        sources = [one for one in (self.embeddings, self.embedding_column) if one is not None]
        if bool(self.text_dim) != (len(sources) == 1):
            raise ValueError(
                f"model.item.text_dim is {self.text_dim}, but embeddings is {self.embeddings} and "
                f"embedding_column {self.embedding_column!r}; name exactly one of the two for "
                "texts, and neither for text_dim=0"
            )
        if self.text_fields > 1 and not self.text_dim:
            raise ValueError(
                f"model.item.text_fields is {self.text_fields}, but text_dim is 0, so there are no "
                "texts; leave text_fields out"
            )
        if self.fixed_after is not None and (self.fixed or self.fixed_after < 1):
            raise ValueError(
                f"model.item.fixed_after is {self.fixed_after} with fixed={self.fixed}, expected "
                "at least 1 step without fixed; set fixed=True for SIDs that never change"
            )
        if not 0 <= self.decay < 1:
            raise ValueError(f"model.item.decay is {self.decay}, expected 0 to below 1")

    def encoder_learns_at(self, step: int) -> bool:
        """Whether the encoder learns in a training step, counted from 0."""
        return not self.fixed and (self.fixed_after is None or step < self.fixed_after)

    def codebooks_follow_at(self, step: int) -> bool:
        """Whether the codebooks move after a training step, counted from 0."""
        return self.encoder_learns_at(step - SETTLING_STEPS)

    @property
    def field_names(self) -> tuple[str, ...]:
        """Parts of e_v, in their order."""
        return (
            *(field.name for field in self.fields),
            *(("dense",) if self.dense_columns else ()),
            *(f"text_{number}" for number in range(self.text_fields if self.text_dim else 0)),
        )

    @property
    def field_dim(self) -> int:
        """Width of each part."""
        return self.dim // len(self.field_names)

    @property
    def item_dim(self) -> int:
        """Width of an item's vector, d."""
        return self.dim

    @property
    def table_dims(self) -> dict[str, int]:
        """Feature of each table of SID embeddings -> its dim."""
        return {f"sid_{name}": self.field_dim for name in self.field_names}

    @property
    def features(self) -> tuple[str, ...]:
        """Features of the tables of SID embeddings."""
        return tuple(self.table_dims)

    @property
    def table_rows(self) -> int:
        """Rows of each table: one for each (level, code)."""
        return self.num_levels * self.num_codes

    def check_tables(self, tables: Sequence[TableSpec]) -> None:
        """Check that tables of SID embeddings have a row for each (level, code).

        Raises:
            ValueError: naming the table, what was found and what is expected.
        """
        for table in tables:
            if table.pooling == "none" and table.rows != self.table_rows:
                raise ValueError(
                    f"table {table.name!r}: rows is {table.rows}, but model.item has "
                    f"{self.num_levels} levels x {self.num_codes} codes = {self.table_rows}"
                )


@dataclass(frozen=True, kw_only=True)
class CoClickItemsConfig(LearnedTokensConfig):
    """As `LearnedTokensConfig`, with co-click vectors beside the texts (TRM section 3.1).

    `embeddings` holds both, `text_dim` is the width of both. `farewell train` makes the file of the
    positive training rows.

    Args:
        content: parquet file with the text embeddings alone; None for a column of items.parquet.
        content_column: that list column.
        co_clicks: settings of the vectors.

    Raises:
        ValueError: without `embeddings` of its own, or with a `text_dim` that leaves no room for
            texts; and as `LearnedTokensConfig`.
    """

    content: Path | None = None
    content_column: str = "embedding"
    co_clicks: CoClicks = field(default_factory=CoClicks)

    def __post_init__(self) -> None:
        """Check the files."""
        super().__post_init__()
        if self.embeddings in (None, self.content):
            raise ValueError(
                f"model.item.embeddings is {self.embeddings}, expected a file of its own beside "
                f"content ({self.content}), for co-click vectors and texts"
            )
        if self.text_dim <= self.co_clicks.dim:
            raise ValueError(
                f"model.item.text_dim is {self.text_dim}, expected that of the texts and of "
                f"co_clicks ({self.co_clicks.dim}) together"
            )
