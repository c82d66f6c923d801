"""DIG's studies as commands: on the smoke log, with a few steps."""

import json

import pytest

from tests.integration.test_command_line import farewell

MINE = """
from dataclasses import replace
from configs import dig

def short(study):
    full = getattr(dig, f"{study}_smoke")()
    rows = []
    for row in full.rows:
        train = replace(row.experiment.train, max_steps=4, precision="fp32")
        data = replace(row.experiment.data, shuffle_rows=65_536)
        experiment = replace(row.experiment, train=train, data=data)
        rows.append(replace(row, experiment=experiment))
    return replace(full, rows=tuple(rows), baselines=full.baselines[:1])
"""
STUDIES = {
    # study -> rows that retrieve, in the order of the report
    "main": [
        *("popularity", "item-item transition counts", "SASRec"),
        *("TIGER", "LETTER", "DAS", "DOS", "ETEGRec", "TRM", "DIG", "DIG on co-clicks"),
    ],
    "ranking": None,
    "gap": ["DIG", "with unclicked negatives"],
    "end_to_end": ["DIG", "fixed SIDs"],
    "u2i": ["DIG", "without training-side u2i", "without MLP_u2t", "without both"],
    "mean": ["DIG", "mean u2t"],
    "levels": ["DIG", "last level alone"],
    "completeness": None,
}


@pytest.fixture(scope="module")
def named(workspace):
    """The studies by name, with few steps."""
    functions = [f'def {one}():\n    return short("{one}")\n' for one in STUDIES]
    (workspace / "studies.py").write_text("\n".join([MINE, *functions]))
    return workspace


def compared(workspace, study):
    found = farewell(workspace, "compare", f"studies.py:{study}", "--ranks", 1)
    assert found.returncode == 0, found.stdout + found.stderr
    folder = workspace / "runs" / f"dig.{study}_smoke"
    assert (folder / "report.html").is_file()
    return json.loads((folder / "report.json").read_text()), found.stdout


@pytest.mark.slow
def test_a_study_retrieves_with_its_cells(named):
    report, said = compared(named, "gap")
    assert "retrieving for" in said
    for row in report["retrieval"]["rows"]:
        metrics = row["metrics"]
        assert metrics["gap"]["value"] == pytest.approx(
            metrics["recall_auc"]["value"] - metrics["rank_auc"]["value"]
        )
    metrics = report["retrieval"]["rows"][0]["metrics"]
    own = next(one for one in report["rows"] if one["name"] == "DIG")
    assert metrics["rank_auc"]["value"] == pytest.approx(own["metrics"]["click"]["auc"], abs=1e-5)
    assert (named / "runs" / "dig.gap_smoke" / "figures" / "retrieval.png").is_file()


@pytest.mark.slow
def test_what_was_retrieved_is_not_retrieved_again(named):
    report, _ = compared(named, "end_to_end")
    again, said = compared(named, "end_to_end")
    assert "retrieving for" not in said
    assert again["retrieval"] == report["retrieval"]


@pytest.mark.slow
@pytest.mark.parametrize("study", list(STUDIES))
def test_every_study_runs_whole(named, study):
    report, said = compared(named, study)
    trained = [row for row in report["rows"] if row["kind"] == "model"]
    assert trained
    assert all(row["sids"] for row in trained)
    folder = named / "runs" / f"dig.{study}_smoke"
    for text in (said, *((folder / f"report.{end}").read_text() for end in ("md", "html"))):
        assert "initial collisions" in text
        assert "ABOVE the limit of 1.0% after training" in " ".join(text.split())
    titles = STUDIES[study]
    found = [row["name"] for row in report["retrieval"]["rows"]] if titles else None
    assert found == titles
    assert report["study"]["source"].startswith("DIG ")
    if titles and study != "gap":  # whose rows the paper has no values of
        assert report["retrieval"]["orders"]
    for row in report["retrieval"]["rows"] if titles else ():
        assert 0 <= row["metrics"]["recall@10"]["value"] <= row["metrics"]["recall@50"]["value"]
    if study == "completeness":
        words = " ".join(one["text"] for one in report["verdict"]["findings"])
        assert "DIG less rank only" in words
