import pytest

from trainer.report_tables import format_bytes, format_count, format_seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (999, "999"), (1234, "1.23k"), (41e9, "41G"), (7.52e12, "7.52T")],
)
def test_counts_have_three_digits(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (12, "12 B"), (4_100_000, "4.1 MB"), (250_400_000, "250 MB"), (3e13, "30 TB")],
)
def test_bytes_have_units(value, text):
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (44.6, "45s"), (59.7, "1m00s"), (125, "2m05s")]
)
def test_durations_are_short(value, text):
    assert format_seconds(value) == text
