"""How many inputs a test draws: a few in every run of the tests, many with `-m faults`."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings

HANGS = timedelta(seconds=20)
FULL = [pytest.mark.faults, pytest.mark.slow]


def numbers_of_inputs(few, many):
    """A few in every run of the tests, many with `-m faults`."""
    return pytest.mark.parametrize("number", [few, pytest.param(many, marks=FULL)])


def fuzz(number, strategy, check):
    """Call `check` with so many inputs; one that takes long fails."""
    seen = 0

    @settings(
        max_examples=number,
        deadline=HANGS,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value):
        nonlocal seen
        seen += 1
        check(value)

    run()
    assert seen >= number * 0.8  # a small strategy is exhausted before
