from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from trainer.baselines.transition_counts import TransitionCounts
from trainer.data.amazon_beauty import MAX_HISTORY, SCHEMA_BEAUTY, write_amazon_beauty
from trainer.data.dataset import Dataset
from trainer.data.last_click import SPLIT_AT_LAST_CLICKS
from trainer.retrieval_task import RetrievalTask

NUM_ITEMS, NUM_USERS = 90, 40
NAMES = ["Beauty", "Hair", "Skin", "Face", "Oils & Serums", "Soap"]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("beauty")
    items = {}
    for item in rng.permutation(NUM_ITEMS) + 1:
        paths = [
            ["Beauty", *rng.choice(NAMES[1:], rng.integers(0, 5), replace=False).tolist()]
            for _ in range(rng.integers(1, 3))
        ]
        items[str(item)] = {"title": f"Soap &amp; {item}", "categories": paths}
    (folder / "items.json").write_text(json.dumps(items))
    lines = []
    for user in rng.permutation(NUM_USERS) + 1:
        length = 70 if user == 7 else rng.integers(3, 9)
        lines.append(" ".join(map(str, [user, *rng.permutation(NUM_ITEMS)[:length] + 1])))
    (folder / "sequences.txt").write_text("\n".join(lines) + "\n")
    return folder


def sequences(source: Path) -> dict[int, list[int]]:
    lines = [line.split() for line in (source / "sequences.txt").read_text().splitlines()]
    return {int(words[0]): [int(word) for word in words[1:]] for words in lines}


def rows(folder: Path) -> list[dict]:
    return pq.read_table(folder / "interactions").to_pylist()


@pytest.mark.parametrize("negatives", [0, 3])
def test_rows_are_what_a_walk_over_the_sequences_finds(source, tmp_path, negatives, monkeypatch):
    monkeypatch.setattr("trainer.data.amazon_beauty.CHUNK_ROWS", 50)
    manifest = write_amazon_beauty(source, tmp_path / "log", negatives=negatives)
    described = json.loads((source / "items.json").read_text())
    path = {int(item): one["categories"][0] for item, one in described.items()}
    walk = sequences(source)
    found = rows(tmp_path / "log")
    seen = {}
    for row in found:
        sequence = walk[row["user_id"]]
        at, length = row["position"], len(sequence)
        assert row["part"] == {length - 1: 2, length - 2: 1}.get(at, 0)
        assert row["history"] == sequence[:at][-MAX_HISTORY:]
        assert row["user_count"] == at
        for depth in (2, 3, 4):
            wanted = path[row["item_id"]][:depth]
            same = sum(path[item][:depth] == wanted for item in sequence[:at])
            assert row[f"same_category_{depth}"] == same
        if row["review"]:
            assert row["item_id"] == sequence[at]
        else:
            assert row["item_id"] not in sequence[: at + 1]
        seen.setdefault((row["user_id"], at, row["session_id"]), []).append(row["review"])
    events = [(user, at) for user, sequence in walk.items() for at in range(len(sequence))]
    assert sorted(key[:2] for key in seen) == sorted(events)
    assert all(labels == [1] + [0] * negatives for labels in seen.values())
    assert [row["part"] for row in found] == sorted(row["part"] for row in found)
    assert manifest.positives == {"review": len(events)}
    said = manifest.source["label 0"]
    assert ("3 items drawn at random" in said) if negatives else ("positives alone" in said)


def test_negatives_follow_the_seed_and_may_be_reviewed_later(source, tmp_path):
    drawn = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        write_amazon_beauty(source, tmp_path / name, negatives=5, seed=seed)
        drawn[name] = [row["item_id"] for row in rows(tmp_path / name) if not row["review"]]
    assert drawn["one"] == drawn["again"] != drawn["other"]
    # Every item is drawn, as often as any other up to chance.
    counts = np.bincount(drawn["one"], minlength=NUM_ITEMS + 1)[1:]
    assert counts.min() > 0
    walk = sequences(source)
    later = sum(
        row["item_id"] in walk[row["user_id"]]
        for row in rows(tmp_path / "one")
        if not row["review"]
    )
    assert later > 0


def test_items_bring_texts_and_all_their_categories(source, tmp_path):
    write_amazon_beauty(source, tmp_path / "log")
    items = pq.read_table(tmp_path / "log" / "items.parquet").to_pylist()
    described = json.loads((source / "items.json").read_text())
    assert [str(item["item_id"]) for item in items] == list(described)
    ids: dict[tuple[str, ...], int] = {}
    for item in items:
        paths = described[str(item["item_id"])]["categories"]
        assert item["title"] == f"Soap & {item['item_id']}"
        assert item["text"] == f"{item['title']}. {', '.join(paths[0])}"
        prefixes = {tuple(path[:n]) for path in paths for n in range(2, len(path) + 1)}
        assert len(item["categories"]) == len(prefixes)
        if len(prefixes) == 1:
            ids[next(iter(prefixes))] = item["categories"][0]
    assert len(set(ids.values())) == len(ids) > 1


def test_the_folder_is_a_retrieval_task_of_the_last_reviews(source, tmp_path):
    write_amazon_beauty(source, tmp_path / "log", negatives=2)
    dataset = Dataset.open(tmp_path / "log", SCHEMA_BEAUTY)
    dataset.validate()
    task = RetrievalTask.of_log(dataset, dataset.split(SPLIT_AT_LAST_CLICKS))
    walk = sequences(source)
    ids = dataset.item_ids
    assert task.users.tolist() == task.test.user.tolist() == sorted(walk)
    for number, user in enumerate(sorted(walk)):
        at = np.array([number])
        for cases, left in ((task.valid, 2), (task.test, 1)):
            assert ids[cases.target[number]] == walk[user][-left]
            history = ids[cases.history.gather(at).values].tolist()
            assert history == walk[user][:-left][-MAX_HISTORY:]
        assert ids[task.train.gather(at).values].tolist() == walk[user][:-2]
    retriever = TransitionCounts()
    retriever.fit(task, seed=0)
    assert retriever.top(task.test.history, 3).shape == (NUM_USERS, 3)


WRONG = {
    "no files": (lambda folder: (folder / "items.json").unlink(), "items.json: no such file"),
    "json": (lambda folder: (folder / "items.json").write_text("{"), "expected JSON"),
    "no categories": (
        lambda folder: (folder / "items.json").write_text('{"1": {"title": "a"}}'),
        "item '1': expected a title and categories",
    ),
    "unknown item": (
        lambda folder: (folder / "sequences.txt").write_text("1 2 3 9999"),
        "item 9999 is not in items.json",
    ),
    "empty sequence": (
        lambda folder: (folder / "sequences.txt").write_text("1 2 3\n2\n"),
        "line 2: expected a user id and at least one item",
    ),
    "user twice": (
        lambda folder: (folder / "sequences.txt").write_text("1 2 3\n1 4 5\n"),
        "expected a line for each user",
    ),
    "word": (lambda folder: (folder / "sequences.txt").write_text("1 two\n"), "integer ids"),
}


@pytest.mark.parametrize("case", WRONG)
def test_files_of_another_form_are_refused(source, tmp_path, case):
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    spoil, message = WRONG[case]
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        write_amazon_beauty(tmp_path, tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_negatives_must_be_possible(source, tmp_path):
    with pytest.raises(ValueError, match="negatives is -1"):
        write_amazon_beauty(source, tmp_path / "log", negatives=-1)
    with pytest.raises(ValueError, match="seed is 3, but nothing is drawn"):
        write_amazon_beauty(source, tmp_path / "log", seed=3)
    everything = " ".join(map(str, range(1, NUM_ITEMS + 1)))
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "sequences.txt").write_text(f"1 {everything}\n")
    with pytest.raises(ValueError, match="90 reviews of 90 items"):
        write_amazon_beauty(tmp_path, tmp_path / "log", negatives=1)
