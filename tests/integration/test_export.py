import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import migration, trm_joint
from launch.export import ExportArgs, export
from launch.terminal import result_console
from tests.integration.rank_processes import run_ranks
from tokenization.artifact import TokenArtifact
from trainer.checkpoint import CheckpointError
from trainer.data.errors import DataError
from trainer.data.ragged import Ragged
from trainer.loop import train
from trainer.predictions import Predictions
from trainer.serving.export import TrainedRun, export_run
from trainer.serving.identity import KeptRows
from trainer.serving.measure import TOLERANCE
from trainer.serving.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]
TRAINING = (
    "trainer.loop",
    "trainer.run",
    "trainer.parallelize",
    "trainer.optim",
    "trainer.pipeline",
    "trainer.checkpoint",
    "trainer.checkpoint_writer",
    "trainer.stored_state",
    "trainer.state_parts",
    "trainer.distributed",
    "trainer.experiment",
    "trainer.data.reader",
    "sharding.planner",
    "launch",
    "configs",
)


def short(experiment, smoke, **changes):
    """Trained on the log of the tests, fast enough that tables and network move far."""
    return replace(
        experiment,
        data=smoke.data,
        tokenizer=experiment.tokenizer and smoke.tokenizer,
        optim=replace(experiment.optim, sparse_lr=0.2, dense_lr=3e-3, warmup_steps=4),
        train=replace(
            smoke.train, max_steps=20, checkpoint_every=10, eval_every=10, log_every=20, **changes
        ),
    )


@pytest.fixture(scope="module")
def trained(smoke, tmp_path_factory):
    """A run of hybrid tokens with the joint objective, on one rank."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    experiment = short(trm_joint.smoke(), smoke, keep_best="valid/click_auc")
    run_ranks(train, 1, experiment, folder)
    return folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Folders of exports by kind of rows."""
    root = tmp_path_factory.mktemp("exported")
    run = TrainedRun.open(trained, checkpoint="newest")
    for rows in ("fp32", "int8", "int4"):
        export_run(run, root / rows, rows=rows)
    return root


@pytest.fixture(scope="module")
def log(trained):
    """The test part: its first row in the log, and its columns."""
    run = TrainedRun.open(trained)
    dataset = run.dataset()
    test = dataset.split(run.split).test
    names = dataset.parts.parts[0].schema.names
    return test, pa.concat_tables(piece.read(names) for piece in dataset.parts.pieces(test))


@pytest.mark.parametrize("rows", ["fp32", "int8", "int4"])
def test_scores_equal_those_of_training_within_the_stated_tolerance(trained, exported, log, rows):
    test, table = log
    evaluated = Predictions.load(trained / "predictions_test.parquet").aligned(test)
    scores = Predictor.load(exported / rows).score_table(table)
    for task, expected in evaluated.items():
        assert expected.std() > 0.01
        difference = np.abs(scores[task] - expected)
        assert difference.max() <= TOLERANCE[rows]
        if rows != "fp32":  # the rows are rounded, and it is seen
            assert difference.max() > TOLERANCE["fp32"]


def test_request_file_and_single_rows_have_the_same_scores(exported, log, tmp_path):
    _, table = log
    predictor = Predictor.load(exported / "fp32")
    names = predictor.columns(table.column_names)
    few = table.select(names).slice(0, 40)
    pq.write_table(table.slice(0, 40), tmp_path / "log.parquet")
    from_file = predictor.score_parquet(tmp_path / "log.parquet", batch_rows=16)
    batched = predictor.score(few.to_pydict())
    for task in predictor.tasks:
        np.testing.assert_allclose(batched[task], from_file[task], atol=1e-6, rtol=0)
        for at in (0, 17, 39):
            single = predictor.score({n: v[0] for n, v in few.slice(at, 1).to_pydict().items()})
            assert isinstance(single[task], float)
            assert single[task] == pytest.approx(from_file[task][at], abs=1e-6)


def test_values_given_once_stand_for_all_items(exported, log):
    _, table = log
    predictor = Predictor.load(exported / "fp32")
    columns = table.select(predictor.columns(table.column_names)).to_pydict()
    at = max(range(len(columns["history"])), key=lambda n: len(columns["history"][n]))
    one = {name: values[at] for name, values in columns.items()}
    assert one["history"]
    items = columns["item_id"][:5]
    shared = predictor.score({**one, "item_id": items})
    spelled = predictor.score(
        {name: [value] * 5 for name, value in one.items()} | {"item_id": items}
    )
    for task in predictor.tasks:
        assert shared[task].tolist() == spelled[task].tolist()
        assert len(set(shared[task])) > 1
    without = predictor.score({**one, "item_id": items, "history": []})
    assert without["click"].tolist() != shared["click"].tolist()


def test_new_items_are_scored_with_tokens_of_the_same_vocabulary(exported, log, tmp_path):
    _, table = log
    old = TokenArtifact.load(exported / "fp32" / "tokens")
    twin = int(old.item_ids[3])
    twins = Ragged(old.mem_values, old.mem_offsets).gather(np.append(np.arange(old.num_items), 3))
    newer = replace(
        old,
        item_ids=np.append(old.item_ids, 10**12),
        codes=np.concatenate([old.codes, old.codes[3:4]]),
        mem_values=twins.values,
        mem_offsets=twins.offsets,
    )
    newer.save(tmp_path / "tokens")
    predictor = Predictor.load(exported / "fp32")
    columns = table.select(predictor.columns(table.column_names)).to_pydict()
    request = {name: values[5] for name, values in columns.items()} | {"item_id": 10**12}
    with pytest.raises(DataError, match=r"expected items with tokens, found 1 without.*10000000"):
        predictor.score(request)
    with pytest.raises(DataError, match="expected items with tokens"):
        predictor.score({**request, "item_id": twin, "history": [10**12]})
    told = Predictor.load(exported / "fp32", tokens=tmp_path / "tokens")
    static = [f.name for f in predictor.description.schema.features if f.source == "items"]
    assert static
    with pytest.raises(DataError, match=f"{static[0]}.* the export holds, found 1000000"):
        told.score(request)
    given = {name: static_value(exported, name, twin) for name in static}
    assert told.score({**request, **given}) == told.score({**request, "item_id": twin})


def static_value(exported, name, item):
    items = pq.read_table(exported / "fp32" / "items.parquet").to_pydict()
    return items[name][items["item_id"].index(item)]


def test_next_token_module_is_left_out_where_scores_do_not_read_it(trained, exported):
    run = TrainedRun.open(trained, checkpoint="newest")
    assert run.model.next_token is not None
    assert any("network/next_token" in name for name in run.source.tensors)
    assert Predictor.load(exported / "fp32").description.model.next_token is None


def test_checkpoint_is_chosen_as_asked(trained, tmp_path):
    run = {which: TrainedRun.open(trained, checkpoint=which) for which in ("auto", "newest", "10")}
    assert run["newest"].source.state["step"] == 20
    assert run["10"].source.state["step"] == 10
    auc = {
        step: TrainedRun.open(trained, checkpoint=step).source.state["validation"][
            "valid/click_auc"
        ]
        for step in ("10", "20")
    }
    assert run["auto"].source.state["step"] == int(max(auc, key=auc.get))
    with pytest.raises(CheckpointError, match="there are those of steps 10, 20"):
        TrainedRun.open(trained, checkpoint="5")


def test_predictor_imports_nothing_of_training(exported, log, tmp_path):
    pq.write_table(log[1].slice(0, 8), tmp_path / "log.parquet")
    code = (
        "import json, sys, torch.distributed as dist\n"
        "from pathlib import Path\n"
        "from trainer.serving.predictor import Predictor\n"
        f"predictor = Predictor.load(Path({str(exported / 'int8')!r}))\n"
        f"scores = predictor.score_parquet(Path({str(tmp_path / 'log.parquet')!r}))\n"
        "assert len(scores['click']) == 8 and not dist.is_initialized()\n"
        f"print([n for n in sys.modules if n in {TRAINING} or n.split('.')[0] in {TRAINING}])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "[]"


def test_verb_prints_and_writes_sizes_agreement_and_latency(trained, tmp_path, capsys):
    arguments = ExportArgs(
        run=trained, out=tmp_path / "out", measure_rows=300, json=tmp_path / "export.json"
    )
    export(replace(arguments, checkpoint="10"), result_console())  # not the evaluated one
    told = json.loads((tmp_path / "export.json").read_text())
    assert told["agreement"]["against"] == "export with fp32 rows"
    assert told["agreement"]["holds"]
    assert told["agreement"]["tasks"]["click"]["max_difference"] > 0
    written = sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file())
    sizes = told["bytes"]["export"]
    assert sum(sizes.values()) == written - (tmp_path / "out" / "manifest.json").stat().st_size
    assert 3 * sizes["tables"] < told["bytes"]["checkpoint"]["tables"]
    assert [one["rows"] for one in told["latency"]] == [1, 100, 300]
    assert all(0 < one["p50_ms"] <= one["p99_ms"] for one in told["latency"])
    said = capsys.readouterr().out
    assert "training checkpoint" in said
    assert "p99 ms" in said


@pytest.mark.parametrize("managed", [True, False])
def test_residual_ids_have_the_rows_of_training(smoke, tmp_path, managed):
    rows = {row.experiment.name: row.experiment for row in migration.smoke().rows}
    name = next(name for name in rows if "residual" in name)
    experiment = short(rows[name], smoke)
    if managed:
        table = next(
            t for e in rows.values() for t in e.tables if t.managed and "item_id" in t.features
        )
        tables = tuple(
            replace(
                t,
                rows=64,
                managed=replace(table.managed, eviction_interval=2),
                sharding_types=None,
            )
            if t.pooling == "none" and "item_id" in t.features
            else t
            for t in experiment.tables
        )
        experiment = replace(experiment, tables=tables)
    run_ranks(train, 2 if managed else 1, experiment, tmp_path / "run")
    run = TrainedRun.open(tmp_path / "run")
    predictor = export_run(run, tmp_path / "out", rows="fp32")
    dataset = run.dataset()
    test = dataset.split(run.split).test
    evaluated = Predictions.load(tmp_path / "run" / "predictions_test.parquet").aligned(test)
    names = predictor.columns(dataset.parts.parts[0].schema.names)
    table = pa.concat_tables(piece.read(names) for piece in dataset.parts.pieces(test))
    scores = predictor.score_table(table)
    for task, expected in evaluated.items():
        np.testing.assert_allclose(scores[task], expected, atol=TOLERANCE["fp32"], rtol=0)
    predictor._reader.items["item_id"] = KeptRows(np.zeros(0, dtype=np.int64), num_rows=1)
    without = predictor.score_table(table)
    assert np.abs(without["click"] - scores["click"]).max() > 100 * TOLERANCE["fp32"]
