from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch import tokenize
from tokenization.mem_tokens import MemTokens
from tokenization.pipeline import fit_tokens
from tokenization.report import ReportInputs, measure, neighbour_recall, token_lengths, write_report
from tokenization.rq_kmeans import RQKMeans


def embeddings():
    return np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def artifact():
    return fit_tokens(
        np.arange(200),
        embeddings(),
        tokenizer=RQKMeans(num_levels=3, num_codes=8),
        mem=MemTokens(num_merges=40, cover="tree"),
    )


def test_neighbour_recall_by_prefix_of_a_case_worked_by_hand():
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 1]])
    neighbours = np.array([[1, 3], [2, -1], [-1, -1], [-1, -1]])
    recall = neighbour_recall(codes, neighbours)
    assert [entry["length"] for entry in recall] == [1, 2]
    assert [entry["recall"] for entry in recall] == [2 / 3, 1 / 3]
    assert [entry["chance"] for entry in recall] == [6 / 12, 2 / 12]


def test_lengths_of_mem_tokens_are_the_codes_that_they_join(artifact):
    lengths = token_lengths(artifact)
    spans = [1] * 24
    for left, right in zip(artifact.merges.left, artifact.merges.right, strict=True):
        spans.append(spans[left] + spans[right])
    assert lengths.tolist() == spans[24:]
    assert set(lengths.tolist()) == {2, 3}


def test_the_json_holds_what_the_report_promises(artifact):
    neighbours = np.random.default_rng(1).integers(0, 200, (200, 3))
    report = measure(
        artifact,
        ReportInputs(
            embeddings=embeddings(),
            titles=[f"title {n}" for n in range(200)],
            neighbours=neighbours,
            holder_constant=2.0,
        ),
    )
    assert sum(report["mem_token_length"].values()) == artifact.num_merges
    used = np.bincount(artifact.mem_values, minlength=artifact.num_merges)
    assert sum(report["mem_token_frequency"].values()) == (used > 0).sum()
    assert report["mem_token_frequency"]["2-3"] == ((used >= 2) & (used <= 3)).sum()
    bound = report["floor_bound"]
    assert bound["bound"] == pytest.approx(2 * bound["delta"])
    assert bound["delta"] <= bound["delta_limit"]
    for group in report["examples"]:
        for item in group["items"]:
            row = int(item["title"].removeprefix("title "))
            assert item["codes"] == artifact.codes[row].tolist()
            assert item["codes"][0] == group["code"]
    json.dumps(report, allow_nan=False)


def test_page_and_picture_from_the_command_line(tmp_path):
    rng = np.random.default_rng(0)
    titles = [f'Soap & <b>water</b>"><script>alert({n})</script>' for n in range(200)]
    table = {"item_id": range(200), "embedding": embeddings().tolist(), "title": titles}
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    log = {"user_id": rng.integers(0, 20, 2000), "item_id": rng.integers(0, 200, 2000)}
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    items = str(tmp_path / "items.parquet")
    args = ["--embeddings", items, "--items", items, "--log", str(tmp_path / "log.parquet")]
    args += ["--out", str(tmp_path / "tokens"), "--report", str(tmp_path / "report")]
    tokenize.main([*args, "--tokenizer.num-codes", "8", "--tokenizer.num-levels", "2"])
    page = (tmp_path / "report" / "quality.html").read_text()
    assert "Soap &amp; &lt;b&gt;water&lt;/b&gt;&#34;&gt;&lt;script&gt;alert(" in page
    assert "<script" not in page
    assert "of co-click neighbours share the first code" in page
    assert "delta_s" in page
    assert (tmp_path / "report" / "quality.png").read_bytes()[:4] == b"\x89PNG"
    report = json.loads((tmp_path / "report" / "quality.json").read_text())
    assert len(report["neighbour_recall"]) == 2


def test_without_log_titles_or_mem_tokens(tmp_path):
    bare = fit_tokens(
        np.arange(200),
        embeddings(),
        tokenizer=RQKMeans(num_levels=1, num_codes=8),
        mem=MemTokens(num_merges=0),
    )
    report = write_report(bare, ReportInputs(embeddings=embeddings()), tmp_path)
    assert "neighbour_recall" not in report
    assert report["floor_bound"]["bound"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "quality.html",
        "quality.json",
        "quality.png",
    ]
