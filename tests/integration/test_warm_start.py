import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from configs import rankmixer_id
from launch.train import TrainCommand, chosen_warm_start, warm_start_table
from tests.integration.other_ranks_workers import train_warm, train_whole, warm_starts
from tests.integration.rank_processes import run_ranks
from tests.integration.workers import resume
from tokenization.artifact import TokenArtifact
from tokenization.pipeline import fit_tokens
from trainer.stored_state import StoredState
from trainer.warm_start import WarmStart

GROWN = 37


def quick(experiment):
    return replace(experiment, train=replace(experiment.train, max_steps=4, checkpoint_every=None))


@pytest.fixture(scope="module")
def tokens_model(smoke):
    return quick(smoke)


@pytest.fixture(scope="module")
def ids_model(smoke):
    experiment = rankmixer_id.smoke()
    return quick(replace(experiment, data=smoke.data, train=smoke.train))


@pytest.fixture(scope="module")
def sources(ids_model, tokens_model, tmp_path_factory):
    """Runs of an ID model on one rank and of a token model on two."""
    folder = tmp_path_factory.mktemp("sources")
    run_ranks(train_whole, 1, ids_model, folder / "ids")
    run_ranks(train_whole, 2, tokens_model, folder / "tokens")
    return folder


def table_of(experiment, role):
    return next(table for table in experiment.tables if table.role == role)


def user_table(experiment):
    return next(t for t in experiment.tables if t.pooling != "none" and t.role == "residual_id")


def with_table(experiment, name, **changes):
    return replace(
        experiment,
        tables=tuple(replace(t, **changes) if t.name == name else t for t in experiment.tables),
    )


@pytest.fixture(scope="module")
def other_tokens(smoke, tmp_path_factory):
    """Tokens of the same sizes with another vocabulary."""
    folder = tmp_path_factory.mktemp("other_tokens") / "tokens"
    artifact = TokenArtifact.load(smoke.tokenizer.folder)
    noise = np.random.default_rng(0).standard_normal((artifact.num_items, 8))
    config = smoke.tokenizer
    fit_tokens(
        artifact.item_ids,
        noise,
        tokenizer=config.tokenizer,
        mem=config.mem,
        collisions=config.collisions,
    ).save(folder)
    return folder


@pytest.fixture(scope="module")
def remap(tokens_model, tmp_path_factory):
    """Every row takes over the one before; the first and the last take none over."""
    folder = tmp_path_factory.mktemp("remap")
    for role, file in (("gen_token", "gen_rows.npy"), ("mem_token", "mem_rows.npy")):
        rows = np.arange(table_of(tokens_model, role).rows) - 1
        rows[-1] = -1
        np.save(folder / file, rows)
    return folder


@pytest.fixture(scope="module")
def started(sources, tokens_model, ids_model, other_tokens, remap, tmp_path_factory):
    """Folder of models that were warm-started and saved, untrained, on two ranks."""
    folder = tmp_path_factory.mktemp("started")
    ids, tokens = sources / "ids", sources / "tokens"
    newest = next((tokens / "checkpoints").glob("step_*"))
    user = user_table(tokens_model).name
    renamed = replace(tokens_model, tokenizer=replace(tokens_model.tokenizer, folder=other_tokens))
    column_wise = with_table(tokens_model, user, sharding_types=("column_wise",))
    scenarios = [
        ("ids_to_tokens", tokens_model, WarmStart(checkpoint=ids)),
        ("everything", column_wise, WarmStart(checkpoint=newest, optimizer_state=True)),
        ("dense", tokens_model, WarmStart(checkpoint=tokens, parts="dense")),
        ("named", tokens_model, WarmStart(checkpoint=tokens, parts="tables", tables=(user,))),
        (
            "grown",
            with_table(tokens_model, user, rows=user_table(tokens_model).rows + GROWN),
            WarmStart(checkpoint=tokens, optimizer_state=True),
        ),
        ("other_vocabulary", renamed, WarmStart(checkpoint=tokens)),
        ("remapped", renamed, WarmStart(checkpoint=tokens, remap=remap)),
        ("unknown", tokens_model, WarmStart(checkpoint=tokens, tables=("nobody",))),
        ("ids_remapped", ids_model, WarmStart(checkpoint=tokens, remap=remap)),
        ("no_checkpoint", tokens_model, WarmStart(checkpoint=folder)),
    ]
    run_ranks(warm_starts, 2, scenarios, folder)
    return folder


def said(started, name):
    reports = [json.loads((started / name / f"said_{rank}.json").read_text()) for rank in range(2)]
    assert reports[0] == reports[1]
    return reports[0]


def before_and_after(started, name):
    folder = started / name / "checkpoints"
    return StoredState(folder / "step_0000000001"), StoredState(folder / "step_0000000002")


def source_of(sources, name):
    return StoredState(next((sources / name / "checkpoints").glob("step_*")))


def assert_follows_report(report, before, after, source):
    """Taken tensors equal the source's, new ones their own before."""
    for name, (outcome, why) in report.items():
        if outcome == "taken":
            assert torch.equal(after.whole(name), source.whole(name)), name
            assert why == ""
        elif outcome == "new":
            assert torch.equal(after.whole(name), before.whole(name)), name
            assert why
        else:
            assert outcome == "left" and name not in after.tensors, name


def test_token_model_takes_all_but_items_over_from_an_id_model(started, sources, tokens_model):
    report = said(started, "ids_to_tokens")
    source = source_of(sources, "ids")
    assert_follows_report(report, *before_and_after(started, "ids_to_tokens"), source)
    outcomes = {name: outcome for name, (outcome, _) in report.items()}
    assert outcomes[f"table/{user_table(tokens_model).name}/weight"] == "taken"
    assert outcomes["network/heads.0.0.weight/value"] == "taken"
    assert outcomes["network/dense_encoding.edges_FE/value"] == "taken"
    for role in ("gen_token", "mem_token"):
        assert outcomes[f"table/{table_of(tokens_model, role).name}/weight"] == "new"
    assert [name for name, outcome in outcomes.items() if outcome == "left"]
    assert any("tower" in name and outcome == "taken" for name, outcome in outcomes.items())


def test_everything_is_taken_by_an_equal_model_in_another_plan(started, sources):
    report = said(started, "everything")
    assert {outcome for outcome, _ in report.values()} == {"taken"}
    before, after = before_and_after(started, "everything")
    source = source_of(sources, "tokens")
    assert_follows_report(report, before, after, source)
    states = [name for name in source.tensors if "/state/" in name]
    assert states
    for name in states:
        stored = source.tensors[name]
        if not stored.per_row:
            assert torch.equal(after.whole(name), source.whole(name)), name
    changed = [name for name in report if not torch.equal(before.whole(name), after.whole(name))]
    assert len(changed) > len(report) / 2


def test_dense_alone(started, sources):
    report = said(started, "dense")
    assert_follows_report(report, *before_and_after(started, "dense"), source_of(sources, "tokens"))
    for name, (outcome, _) in report.items():
        assert outcome == ("taken" if name.startswith("network/") else "new"), name
    _, after = before_and_after(started, "dense")
    assert not any(name.startswith("network/") and "/state/" in name for name in after.tensors)


def test_tables_by_name(started, sources, tokens_model):
    report = said(started, "named")
    assert_follows_report(report, *before_and_after(started, "named"), source_of(sources, "tokens"))
    taken = [name for name, (outcome, _) in report.items() if outcome == "taken"]
    assert taken == [f"table/{user_table(tokens_model).name}/weight"]


def test_grown_table_keeps_its_first_rows_and_draws_the_rest(started, sources, tokens_model):
    table = user_table(tokens_model)
    name = f"table/{table.name}/weight"
    outcome, why = said(started, "grown")[name]
    assert (outcome, why) == ("grown", f"{table.rows} -> {table.rows + GROWN} rows")
    before, after = before_and_after(started, "grown")
    source = source_of(sources, "tokens").whole(name)
    found = after.whole(name)
    assert torch.equal(found[: table.rows], source)
    assert torch.equal(found[table.rows :], before.whole(name)[table.rows :])
    assert found[table.rows :].any()


def test_rows_of_other_tokens_are_not_taken_over(started, sources, tokens_model):
    report = said(started, "other_vocabulary")
    assert_follows_report(
        report, *before_and_after(started, "other_vocabulary"), source_of(sources, "tokens")
    )
    for role in ("gen_token", "mem_token"):
        outcome, why = report[f"table/{table_of(tokens_model, role).name}/weight"]
        assert outcome == "new" and "other tokens" in why and "--drift-from" in why


def test_remap_carries_rows_to_their_new_places(started, sources, tokens_model):
    report = said(started, "remapped")
    _, after = before_and_after(started, "remapped")
    source = source_of(sources, "tokens")
    for role in ("gen_token", "mem_token"):
        name = f"table/{table_of(tokens_model, role).name}/weight"
        old, new = source.whole(name), after.whole(name)
        outcome, why = report[name]
        assert outcome == "remapped"
        assert why.startswith(f"{len(old) - 2} of {len(old)} rows")
        assert torch.equal(new[1:-1], old[:-2])
        for row in (0, -1):
            torch.testing.assert_close(new[row], old.double().mean(dim=0).float())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unknown", "no table nobody in this model; it has "),
        ("ids_remapped", "the model has no table of tokens"),
        ("no_checkpoint", "neither a checkpoint nor a run"),
    ],
)
def test_choice_without_effect_is_refused(started, name, message):
    assert message in said(started, name)["error"]


def test_choices_that_exclude_each_other_are_refused(tmp_path):
    for choice in ({"tables": ("a",)}, {"remap": tmp_path}):
        with pytest.raises(ValueError, match="parts='dense' takes no table over"):
            WarmStart(checkpoint=tmp_path, parts="dense", **choice)


def test_run_leaves_a_report_and_begins_warm_again_when_resumed_early(
    sources, tokens_model, tmp_path
):
    run = tmp_path / "run"
    config = WarmStart(checkpoint=sources / "ids")
    run_ranks(train_warm, 1, tokens_model, run, config)
    report = (run / "warm_start.json").read_text()
    table = warm_start_table(json.loads(report))
    assert table.row_count > 3
    weights = StoredState(run / "checkpoints" / "step_0000000004").whole(
        "network/heads.0.0.weight/value"
    )
    (run / "warm_start.json").unlink()
    shutil.rmtree(run / "checkpoints")
    run_ranks(resume, 1, tokens_model, run)
    assert (run / "warm_start.json").read_text() == report
    again = StoredState(run / "checkpoints" / "step_0000000004").whole(
        "network/heads.0.0.weight/value"
    )
    assert torch.equal(again, weights)
    assert not torch.equal(
        weights, source_of(sources, "ids").whole("network/heads.0.0.weight/value")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warm_start_parts": "dense"}, "--warm-start-parts has no effect without --warm-start"),
        ({"warm_start_tables": ("a",)}, "--warm-start-tables has no effect"),
        ({"warm_start_optimizer": True}, "--warm-start-optimizer has no effect"),
        ({"resume": True, "warm_start": "x"}, "leave one of them out"),
    ],
)
def test_options_without_effect_are_refused(tokens_model, tmp_path, options, message):
    if "warm_start" in options:
        options = {**options, "warm_start": tmp_path}
    command = TrainCommand(experiment=tokens_model, **options)
    with pytest.raises(ValueError, match=message):
        chosen_warm_start(command)


def test_options_say_what_is_taken_over(tokens_model, tmp_path):
    assert chosen_warm_start(TrainCommand(experiment=tokens_model)) is None
    chosen = chosen_warm_start(
        TrainCommand(
            experiment=tokens_model,
            warm_start=tmp_path,
            warm_start_parts="tables",
            warm_start_tables=("a", "b"),
            warm_start_optimizer=True,
            warm_start_remap=tmp_path / "remap",
        )
    )
    assert WarmStart.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen
    assert chosen == WarmStart(
        checkpoint=tmp_path,
        parts="tables",
        tables=("a", "b"),
        optimizer_state=True,
        remap=tmp_path / "remap",
    )
