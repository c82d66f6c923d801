import inspect

import pytest

from configs import datasets, scale, trm, trm_rows
from configs.sizes import dense_parameters
from launch.named import load_named
from trainer.comparison import Comparison
from trainer.scaling_study import ScalingStudy

STUDIES = (
    "main",
    "components",
    "next_token",
    "token_sets",
    "position",
    "mem_tokens",
    "token_types",
    "geometry",
    "activity",
)


@pytest.fixture(scope="module")
def smoke():
    return {study: load_named(f"trm.{study}_smoke", Comparison) for study in STUDIES}


def fingerprints(comparison):
    return {row.title: row.experiment.fingerprint for row in comparison.rows}


def test_every_study_has_a_name_on_every_log(smoke):
    logs = ("movielens1m", "synthetic_high_churn", "smoke")
    own = {
        name for name, value in vars(trm).items() if inspect.isfunction(value) and name[0] != "_"
    }
    assert own == {f"{study}_{log}" for study in STUDIES for log in logs}
    assert {name: study.name for name, study in smoke.items()} == {
        name: f"trm.{name}_smoke" for name in STUDIES
    }


def test_rows_of_a_study_are_different_experiments(smoke):
    for comparison in smoke.values():
        found = fingerprints(comparison)
        assert len(set(found.values())) == len(found), comparison.name


@pytest.mark.parametrize("log", ["movielens1m", "synthetic_high_churn", "smoke"])
def test_dense_parameters_of_the_main_table_agree_within_five_percent(log):
    rows = load_named(f"trm.main_{log}", Comparison).rows
    sizes = [dense_parameters(row.experiment) for row in rows]
    assert max(sizes) / min(sizes) < 1.05
    assert len(rows) == 11


def test_gains_by_kind_of_token_are_between_rows_of_equal_size(smoke):
    for study in ("token_types", "activity"):
        sizes = [dense_parameters(row.experiment) for row in smoke[study].rows]
        assert max(sizes) / min(sizes) < 1.05


def test_studies_share_what_they_train(smoke):
    main = fingerprints(smoke["main"])
    whole = main["TRM (RankMixer)"]
    titles = {
        "components": "TRM (RankMixer)",
        "token_sets": "BPE",
        "position": "NTP",
        "activity": "TRM (RankMixer)",
    }
    for study, title in titles.items():
        assert fingerprints(smoke[study])[title] == whole, study
    assert list(fingerprints(smoke["mem_tokens"]).values())[-1] == whole
    alone = fingerprints(smoke["components"])["without hybrid tokens"]
    assert alone == fingerprints(smoke["token_sets"])["gen-tokens alone"]
    assert alone == fingerprints(smoke["mem_tokens"])["gen-tokens alone"]
    plain = fingerprints(smoke["components"])["without next-token loss"]
    assert plain == fingerprints(smoke["position"])["without next-token loss"]
    assert plain == fingerprints(smoke["next_token"])["without next-token loss"]
    assert fingerprints(smoke["token_types"])["RQ-VAE"] == main["Tiger-tokens"]
    assert fingerprints(smoke["token_types"])["RankMixer (ID)"] == main["RankMixer (ID)"]


def test_ablations_keep_the_tower(smoke):
    for study in ("components", "next_token", "token_sets", "position", "mem_tokens"):
        assert len({row.experiment.model.tower for row in smoke[study].rows}) == 1


def test_arms_without_the_loss_keep_the_transformer(smoke):
    rows = {row.title: row.experiment for row in smoke["next_token"].rows}
    for blocks in (2, 4):
        with_loss, without = (
            rows[f"{blocks} blocks, {words} loss"].model.next_token for words in ("with", "without")
        )
        assert with_loss.num_layers == without.num_layers == blocks
        assert (with_loss.weight, without.weight) == (0.1, 0.0)
        assert with_loss.feeds_tower
        assert without.feeds_tower


def test_token_systems_are_what_their_papers_say(smoke):
    rows = {row.title: row.experiment for row in smoke["main"].rows}
    tiger, onerec, semid, whole = (
        rows[title] for title in ("Tiger-tokens", "OneRec-tokens", "SEMID", "TRM (RankMixer)")
    )
    assert tiger.tokenizer.tokenizer.kind == "rq_vae"
    assert tiger.model.item.features == onerec.model.item.features == ("gen_token",)
    assert onerec.tokenizer.tokenizer.kind == "balanced_rq_kmeans"
    assert semid.model.item.features == ("mem_token",)
    assert semid.tokenizer.mem.kind == "prefix_ngrams"
    assert whole.model.item.features == ("gen_token", "mem_token")
    assert whole.tokenizer.alignment is not None
    assert whole.model.next_token == trm_rows.NEXT_TOKEN
    assert not [row for row in (tiger, onerec, semid) if row.model.next_token]
    folders = {row.tokenizer.folder for row in (tiger, onerec, semid, whole)}
    assert len(folders) == 4


def test_counts_of_mem_tokens_grow(smoke):
    counts = [
        row.experiment.tokenizer.mem.num_merges
        for row in smoke["mem_tokens"].rows
        if row.experiment.model.item.mem_tokens
    ]
    assert counts == sorted(set(counts))
    assert counts[-1] == datasets.smoke().tokens.mem.num_merges


def test_activity_says_what_cannot_be_repeated(smoke):
    assert "can't be repeated" in smoke["activity"].study.notes[0]


def test_scaling_study_has_two_decades_of_sizes_on_five_sides():
    study = load_named("scale.synthetic_high_churn", ScalingStudy)
    assert [side.kind for side in study.sides] == ["token", "token", "id", "id", "id"]
    for side in study.sides:
        sizes = [dense_parameters(experiment) for experiment in side.experiments]
        assert len(sizes) >= 5
        assert sizes[0] < 1.3e5
        assert sizes[-1] / sizes[0] > 95
        for size, target in zip(sizes, scale.SIZES, strict=True):
            assert abs(size / target - 1) < 0.05


def test_sides_of_a_scaling_study_differ_in_the_tower_alone():
    for side in scale.smoke().sides:
        first, *others = side.experiments
        for other in others:
            assert other.model.tower != first.model.tower
            assert other.model.item == first.model.item
            assert other.model.next_token == first.model.next_token
            assert (other.tables, other.train) == (first.tables, first.train)
