import pytest

from launch import doctor


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks", "2"], "--ranks is of --preflight alone"),
        (["--seconds", "5"], "--seconds is of --preflight alone"),
        (["--preflight", "--no-canary"], "--no-canary has no effect with --preflight"),
    ],
)
def test_options_without_effect_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        doctor.main(words)


def test_torchrun_decides_on_the_ranks_of_a_preflight(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--ranks 4: under torchrun, --nproc-per-node decides"):
        doctor.main(["--preflight", "--ranks", "4"])
