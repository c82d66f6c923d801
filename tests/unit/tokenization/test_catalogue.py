from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenization.catalogue import read_catalogue


@pytest.fixture
def items(tmp_path):
    (tmp_path / "covers").mkdir()
    (tmp_path / "covers" / "one.png").write_bytes(b"1")
    table = pa.table(
        {
            "item_id": [5, 3, 9],
            "title": ["cake", "candle", None],
            "ocr": ["sweet", "", "bright"],
            "caption": ["a cake", "a candle", None],
            "cover": ["covers/one.png", None, None],
            "bytes": [b"x", None, b"y"],
            "size": [1, 2, 3],
        }
    )
    pq.write_table(table, tmp_path / "items.parquet")
    return tmp_path / "items.parquet"


def test_texts_are_joined_and_images_found(items):
    catalogue = read_catalogue(
        items, text_columns=("title", "ocr"), image_column="cover", caption_column="caption"
    )
    assert catalogue.item_ids.tolist() == [5, 3, 9]
    assert [content.text for content in catalogue.contents] == ["cake. sweet", "candle", "bright"]
    assert catalogue.captions == ["a cake", "a candle", ""]
    images = [content.image for content in catalogue.contents]
    assert images == [items.parent / "covers" / "one.png", None, None]
    binary = read_catalogue(items, text_columns=("title",), image_column="bytes")
    assert [content.image for content in binary.contents] == [b"x", None, b"y"]
    assert binary.captions == []
    by_size = read_catalogue(items, text_columns=("title",), id_column="size")
    assert by_size.item_ids.tolist() == [1, 2, 3]


def test_what_is_missing_or_of_another_type(items):
    with pytest.raises(ValueError, match="expected column 'name', found item_id, title"):
        read_catalogue(items, text_columns=("name",))
    with pytest.raises(ValueError, match="column size: expected strings, found int64"):
        read_catalogue(items, text_columns=("size",))
    with pytest.raises(ValueError, match="column size: expected bytes of images or paths"):
        read_catalogue(items, text_columns=("title",), image_column="size")
    with pytest.raises(ValueError, match="column title: expected integers without nulls"):
        read_catalogue(items, text_columns=("ocr",), id_column="title")
    with pytest.raises(ValueError, match="no such file"):
        read_catalogue(items.parent / "none", text_columns=("title",))
    (items.parent / "covers" / "one.png").unlink()
    with pytest.raises(ValueError, match=r"one\.png: no such image file"):
        read_catalogue(items, text_columns=("title",), image_column="cover")
    pq.write_table(pa.table({"item_id": [1, 1], "text": ["a", "b"]}), items)
    with pytest.raises(ValueError, match="column item_id: expected each once, found 1 again"):
        read_catalogue(items, text_columns=("text",))
