"""KuaiRec's `kuairec_caption_category.csv`: texts and categories of videos.

The file is known to have broken lines and letters: such lines are skipped, and videos that it does
not have, or not any more, have no text.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from trainer.data.id_index import IdIndex
from trainer.data.text_ids import TextIds

logger = logging.getLogger(__name__)

CAPTION_FILE = "kuairec_caption_category.csv"
CATEGORY_IDS = {"first_level_category_id": 64, "second_level_category_id": 512}
"""Ids of each level, more than the values it has."""
TEXTS = ("caption", "topic_tag", "first_level_category_name", "second_level_category_name")
COLUMNS = ("video_id", *TEXTS, *CATEGORY_IDS)


def read_captions(path: Path, ids: NDArray[np.int64]) -> dict[str, Any]:
    """Two levels of categories, and one `text` of all that is said, for each video.

    Args:
        path: of the file.
        ids: of the videos.

    Raises:
        ValueError: when the file or a column is missing.
    """
    table = _whole_lines(path)
    listed, first = np.unique(table["video_id"].cast(pa.int64()).to_numpy(), return_index=True)
    place = IdIndex(listed).rows(ids)
    row = pa.array(np.append(first, 0)[place], mask=place < 0)

    def column(name: str) -> Any:
        return pc.fill_null(table[name].take(row), pa.scalar(""))

    # `UNKNOWN` and empty lists say nothing, and brackets, quotes and commas part no words.
    parts = [
        pc.replace_substring_regex(column(name), pattern=r"UNKNOWN|[\[\]\",]", replacement=" ")
        for name in TEXTS
    ]
    joined = pc.replace_substring_regex(
        pc.binary_join_element_wise(*parts, " "), pattern=r"\s+", replacement=" "
    )
    levels = {
        name: TextIds(size).count_and_encode(column(name)) for name, size in CATEGORY_IDS.items()
    }
    return levels | {"text": pc.utf8_trim_whitespace(joined).combine_chunks()}


def _whole_lines(path: Path) -> pa.Table:
    """Lines that hold what the header says, as text."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected KuaiRec's {path.name}")
    broken = 0

    def skip(row: Any) -> Literal["skip"]:
        nonlocal broken
        broken += 1
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(path.read_bytes().decode("utf-8", errors="replace").encode()),
            read_options=pyarrow.csv.ReadOptions(use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(
                newlines_in_values=True, invalid_row_handler=skip
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(COLUMNS, pa.string()),
                include_columns=list(COLUMNS),
                strings_can_be_null=False,
            ),
        )
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(
            f"{path}: expected KuaiRec's {path.name} with the columns {', '.join(COLUMNS)}, but: "
            f"{error}"
        ) from error
    whole: Any = pc.match_substring_regex(table["video_id"], pattern=r"^\d{1,9}$")
    kept = table.filter(whole)
    broken += table.num_rows - kept.num_rows
    if broken:
        logger.warning("%s: skipped %d broken lines", path, broken)
    return kept
