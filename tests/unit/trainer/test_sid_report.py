import pytest

from trainer.sid_report import sid_findings, sid_tables


def row(name, *seeds):
    keys = ("initial_collision_rate", "collision_rate", "drift", "dead_codes")
    return {
        "name": name,
        "sids": [{"seed": seed, **dict(zip(keys, one, strict=True))} for seed, one in seeds],
    }


def report(*rows):
    return {"rows": [{"name": "LightGBM", "sids": []}, {"name": "of another kind"}, *rows]}


GOOD = row(
    "DIG", (0, (0.001, 0.002, 0.0, 3.0)), (1, (0.002, 0.004, 0.1, 5.0)), (2, (0, 0.006, 0.2, 4.0))
)


def test_a_table_shows_medians_and_every_seed():
    (table,) = sid_tables(report(GOOD))
    assert table.columns == (
        "",
        "initial collisions",
        "final collisions",
        "drift",
        "codes without items",
    )
    (cells,) = table.rows
    assert [cell.text for cell in cells] == ["DIG", "0.10%", "0.40%", "10.00%", "4"]
    assert [cell.detail for cell in cells][2:] == [
        "0.20% 0.40% 0.60%",
        "0.00% 10.00% 20.00%",
        "3 5 4",
    ]


def test_within_the_limits_is_a_note():
    (finding,) = sid_findings(report(GOOD))
    assert finding == {
        "kind": "note",
        "text": "SIDs of DIG: 0.00% to 0.20% of the items shared theirs with another before the "
        "first step, 0.20% to 0.60% after training; 0.00% to 20.00% changed since the last look, "
        "within the limits of both.",
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.0, 0.0101, 0.0, 0), "ABOVE the limit of 1.0% after training."),
        ((0.006, 0.0, 0.0, 0), "ABOVE the limit of 0.5% before the first step."),
        ((0.006, 0.02, 0.0, 0), "before the first step and ABOVE the limit of 1.0% after training"),
    ],
)
def test_one_seed_above_a_limit_is_said_in_words(values, said):
    (finding,) = sid_findings(report(row("DIG", (0, (0.0, 0.0, 0.0, 0)), (1, values))))
    assert finding["kind"] == "worse"
    assert said in finding["text"]


def test_a_run_that_was_resumed_after_its_last_look_tells_no_drift():
    resumed = report(row("DIG", (0, (0.0, 0.0, None, 0))))
    (finding,) = sid_findings(resumed)
    assert "changed" not in finding["text"]
    cells = sid_tables(resumed)[0].rows[0]
    assert [cell.text for cell in cells] == ["DIG", "0.00%", "0.00%", "-", "0"]


def test_without_a_tokenizer_inside_nothing_is_said():
    assert sid_tables(report()) == []
    assert sid_findings(report()) == []
