"""The guide's program, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trainer

GUIDE = Path(trainer.__file__).parents[1] / "docs" / "bring_your_own_logs.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Names that the guide's program leaves behind."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("guide"))
        for block in blocks("python"):
            exec(compile(block, str(GUIDE), "exec"), names)
    return names


def test_all_of_the_log_is_split_and_read(program: dict[str, Any]) -> None:
    splits = program["splits"]
    assert (splits.train.start, splits.test.stop) == (0, program["num_rows"])
    assert 16_000 <= len(splits.train) < 16_100
    assert program["state"]["epoch"] == 0
    assert program["state"]["batch"] == len(program["reader"]) == len(splits.train) // 512
    clicks = int(program["clicked"][: len(splits.train)].sum())
    assert 0 <= clicks - program["num_clicks"] < 512  # what drop_last leaves out


def test_the_last_batch_is_what_the_log_says(program: dict[str, Any]) -> None:
    batch = program["batch"]
    log, items = program["log"].to_pydict(), program["items"].to_pydict()
    rows = batch.row_B.tolist()
    item_ids = batch.items["item_id"].values()
    assert item_ids[batch.candidate_B].tolist() == [log["item_id"][row] for row in rows]
    histories = np.split(item_ids[batch.history_T].numpy(), batch.history_offsets[1:-1].numpy())
    assert [h.tolist() for h in histories] == [log["history"][row] for row in rows]
    categories = [items["category"][log["item_id"][row]] for row in rows]
    assert batch.pooled["category"].values().tolist() == categories
    numbers = [
        [items["price"][log["item_id"][row]], log["user_clicks"][row], log["item_clicks"][row]]
        for row in rows
    ]
    np.testing.assert_allclose(batch.dense_BF.numpy(), np.log1p(numbers), rtol=1e-5)


def test_the_message_is_the_one_in_the_guide(program: dict[str, Any]) -> None:
    assert program["message"] == blocks("text")[0].strip()
