import pytest

from configs import trm_rankmixer
from launch.named import load_named, name_and_options
from trainer.comparison import Comparison
from trainer.experiment import Experiment


def test_name_of_a_family_gives_what_its_function_returns():
    assert load_named("trm_rankmixer.smoke", Experiment) == trm_rankmixer.smoke()
    assert load_named("id_vs_tokens.smoke", Comparison).name == "id_vs_tokens.smoke"


def test_own_file_is_loaded(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from configs.dlrm_id import smoke\n\ndef experiment():\n    return smoke()\n")
    assert load_named(f"{path}:experiment", Experiment).name == "dlrm_id"


def test_unknown_family_lists_those_there_are():
    with pytest.raises(ValueError, match=r"trm_rankmixr\.smoke: expected .*trm_rankmixer"):
        load_named("trm_rankmixr.smoke", Experiment)


def test_name_without_a_dot_is_refused():
    with pytest.raises(ValueError, match=r"smoke: expected FAMILY\.NAME or path"):
        load_named("smoke", Experiment)


def test_unknown_function_lists_those_there_are():
    with pytest.raises(ValueError, match=r"trm_rankmixer has no function 'smok'.*'smoke'"):
        load_named("trm_rankmixer.smok", Experiment)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"mine\.py: no such file"):
        load_named(f"{tmp_path}/mine.py:experiment", Experiment)


def test_value_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="value of type Comparison, expected Experiment"):
        load_named("id_vs_tokens.smoke", Experiment)


def test_name_comes_first_and_options_after_it():
    found = name_and_options(["a.b", "--ranks", "2"], verb="train", description="what it does")
    assert found == ("a.b", ["--ranks", "2"])


@pytest.mark.parametrize("words", [[], ["--ranks", "2"]])
def test_without_name_help_is_shown_and_the_error_names_the_verb(words, capsys):
    with pytest.raises(ValueError, match="farewell train: expected a name first"):
        name_and_options(words, verb="train", description="what it does")
    shown = capsys.readouterr().out
    assert "what it does" in shown
    assert "trm_rankmixer" in shown


def test_help_ends_well(capsys):
    with pytest.raises(SystemExit) as ended:
        name_and_options(["--help"], verb="train", description="what it does")
    assert ended.value.code == 0
    assert "usage: farewell train NAME" in capsys.readouterr().out
