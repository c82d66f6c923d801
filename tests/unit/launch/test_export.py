from pathlib import Path

import pytest

from launch import export


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--measure-rows", "0"], "--measure-rows is 0, expected at least 1"),
        (["--measure-rows", "-5"], "--measure-rows is -5"),
        (["--no-measure", "--measure-rows", "5"], "no effect with --no-measure"),
        (["--checkpoint", "newest"], "no complete checkpoint; train first"),
    ],
)
def test_choices_that_lead_nowhere_are_refused(words, message, tmp_path):
    run, out = Path(tmp_path / "run"), tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        export.main([str(run), "--out", str(out), *words])
    assert not out.exists()
