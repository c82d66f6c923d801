import importlib
import sys

import pytest

from launch import cli


@pytest.fixture
def farewell(monkeypatch, capsys, tmp_path):
    """Run the command in an empty folder; gives exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FAREWELL_TRACEBACK", raising=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["farewell", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_help_names_every_verb_and_every_verb_has_a_module(farewell):
    code, out, _ = farewell("--help")
    assert code == 0
    for verb, what in cli.VERBS.items():
        assert verb in out
        assert what in out
        assert callable(importlib.import_module(f"launch.{verb}").main)


def test_without_words_help_is_shown_and_the_exit_code_tells_scripts(farewell):
    code, out, _ = farewell()
    assert code == 2
    assert "usage: farewell VERB" in out


def test_unknown_verb_is_one_message(farewell):
    code, _, err = farewell("trian")
    assert code == 2
    assert err.startswith("farewell: no verb 'trian'; there are doctor, data")
    assert len(err.splitlines()) == 1


def test_unknown_field_is_one_clear_message(farewell):
    code, out, err = farewell("train", "trm_rankmixer.smoke", "--train.stepz", "5")
    assert code not in (0, None)
    assert "stepz" in out + err
    assert "Traceback" not in out + err


def test_value_of_the_wrong_type_is_refused(farewell):
    code, out, err = farewell("train", "trm_rankmixer.smoke", "--train.batch-size", "many")
    assert code not in (0, None)
    assert "batch-size" in out + err
    assert "Traceback" not in out + err


RETRIEVE = ["retrieve", "dig.smoke", "--folder", "runs/none"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "nothing.smoke"], "nothing.smoke: expected FAMILY.NAME"),
        (["train", "trm_rankmixer.nothing"], "has no function 'nothing'"),
        (["train"], "expected a name first"),
        (["train", "dlrm_id.smoke"], "data/smoke"),
        (["train", "dlrm_id.smoke", "--train.batch-size", "0"], "train.batch_size is 0"),
        (["train", "dlrm_id.smoke", "--optim.sparse-lr", "0"], "optim.sparse_lr is 0"),
        (["train", "dlrm_id.smoke", "--resume"], "--resume: no run in runs/dlrm_id"),
        (["compare", "id_vs_tokens.nothing"], "has no function 'nothing'"),
        (["compare", "dlrm_id.smoke"], "type Experiment, expected Comparison"),
        (["compare", "id_vs_tokens.smoke"], "data/smoke"),
        (["evaluate", "dlrm_id.smoke", "--folder", "runs/none"], "no complete checkpoint"),
        (RETRIEVE, "expected exactly one of --users and --split"),
        ([*RETRIEVE, "--users", "u", "--split", "test"], "exactly one of --users and --split"),
        ([*RETRIEVE, "--users", "u"], "--users and --out go together"),
        ([*RETRIEVE, "--split", "test", "--out", "o"], "--users and --out go together"),
        ([*RETRIEVE, "--split", "test", "--cross", "c"], "--cross has no effect without --users"),
        ([*RETRIEVE, "--users", "u", "--out", "o", "--json", "j"], "--json has no effect without"),
        ([*RETRIEVE, "--users", "u", "--out", "o"], "u: no such file"),
        ([*RETRIEVE, "--split", "test"], "runs/none: no such run folder"),
        ([*RETRIEVE, "--split", "test", "--width", "0"], "--width is 0"),
        ([*RETRIEVE, "--split", "test", "--top", "60"], "--width is 50 and --top 60"),
    ],
)
def test_what_is_wrong_is_one_message_and_a_failing_exit(farewell, words, message):
    code, out, err = farewell(*words)
    assert code not in (0, None)
    assert message in err + out
    assert "Traceback" not in err + out


def test_traceback_is_there_for_who_asks(farewell, monkeypatch):
    monkeypatch.setenv("FAREWELL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="expected FAMILY"):
        farewell("train", "nothing.smoke")
