import json
import logging
import warnings

import pytest

from configs import dlrm_id
from trainer.run_folder import (
    RunFolder,
    describe_machine,
    git_revision,
    log_to,
    package_versions,
    write_json,
)


def test_paths_are_those_of_the_contract(tmp_path):
    run = RunFolder(tmp_path)
    names = {
        "checkpoints": run.checkpoints,
        "metrics.jsonl": run.metrics,
        "tensorboard": run.tensorboard,
        "result.json": run.result,
        "log/rank_3.log": run.log(3),
    }
    assert all(path == tmp_path / name for name, path in names.items())


def test_record_says_what_runs_on_what(tmp_path):
    experiment = dlrm_id.smoke()
    RunFolder(tmp_path / "a" / "b").create(experiment)
    record = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert record["experiment"] == json.loads(json.dumps(experiment.to_dict()))
    assert record["fingerprint"] == experiment.fingerprint
    assert record["versions"] == package_versions()
    assert record["machine"]["memory_bytes"] > 0


def test_json_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    for bad in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, bad)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["value.json"]


def test_versions_name_what_decides_results():
    versions = package_versions()
    assert {"python", "torch", "torchrec", "numpy", "pyarrow"} <= set(versions)
    assert describe_machine()["cores"] >= 1
    revision = git_revision()
    assert revision is None or len(revision.removesuffix("-dirty")) == 40


@pytest.fixture
def restored_logging():
    root = logging.getLogger()
    torch_handlers = logging.getLogger("torch").handlers
    before = root.handlers[:], root.level, [handler.level for handler in torch_handlers]
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level = before[0], before[1]
    for handler, level in zip(torch_handlers, before[2], strict=True):
        handler.setLevel(level)


def test_log_takes_our_records_from_info_and_others_from_warning(
    tmp_path, capsys, restored_logging
):
    path = tmp_path / "log" / "rank_0.log"
    log_to(path)
    logging.getLogger("trainer.loop").info("ours, told quietly")
    logging.getLogger("trainer.loop").warning("ours, told loudly")
    logging.getLogger("torchrec.planner").info("theirs, not told")
    logging.getLogger("torchrec.planner").warning("theirs, told quietly")
    warnings.warn("a warning of Python", UserWarning, stacklevel=1)
    written = path.read_text()
    for text in ("ours, told quietly", "ours, told loudly", "theirs, told quietly", "of Python"):
        assert text in written
    assert "theirs, not told" not in written
    shown = capsys.readouterr().err
    assert "ours, told loudly" in shown
    assert "quietly" not in shown
    assert "of Python" not in shown
