import json
from dataclasses import replace

import pytest

from configs import datasets, dlrm_id, rankmixer_gen, trm_rankmixer
from sharding.managed_ids import ManagedIds
from sharding.tables import TableSpec
from tokenization.alignment import Alignment
from tokenization.balanced_kmeans import BalancedRQKMeans
from tokenization.mem_tokens import MemTokens
from tokenization.ngrams import KGrams, PrefixNGrams
from tokenization.opmq import OPMQ
from tokenization.opq import OPQ
from tokenization.rq_vae import RQVAE
from trainer.experiment import TrainConfig
from trainer.modules.hybrid_tokens import GEN_TOKEN, MEM_TOKEN


@pytest.fixture
def hybrid():
    experiment = trm_rankmixer.smoke()
    return replace(
        experiment, train=replace(experiment.train, batch_size=1024, eval_batch_size=8192)
    )


@pytest.fixture
def by_id():
    return dlrm_id.smoke()


def with_table(experiment, name, **changes):
    tables = tuple(
        replace(table, **changes) if table.name == name else table for table in experiment.tables
    )
    assert tables != experiment.tables
    return replace(experiment, tables=tables)


def without_table(experiment, name):
    return replace(
        experiment, tables=tuple(table for table in experiment.tables if table.name != name)
    )


def test_item_tables_are_found_by_feature(hybrid, by_id):
    assert set(hybrid.item_tables) == {GEN_TOKEN, MEM_TOKEN}
    assert set(by_id.item_tables) == {"item_id"}


def test_feature_with_more_ids_than_rows_is_refused(hybrid):
    with pytest.raises(
        ValueError, match=r"table 'user_id': rows is 499, but feature 'user_id' has 500 ids"
    ):
        with_table(hybrid, "user_id", rows=499)


def test_feature_without_table_is_refused(hybrid):
    with pytest.raises(ValueError, match=r"features without table: \['hour'\].*unknown.*none"):
        without_table(hybrid, "hour")


def test_table_of_an_unknown_feature_is_refused(hybrid):
    stranger = TableSpec(name="moon", rows=4, dim=4, features=("moon",), role="side")
    with pytest.raises(ValueError, match=r"tables of unknown features: \['moon'\]"):
        replace(hybrid, tables=(*hybrid.tables, stranger))


def test_table_named_twice_is_refused(hybrid):
    with pytest.raises(ValueError, match=r"named twice: user_id"):
        replace(hybrid, tables=(*hybrid.tables, hybrid.tables[0]))


def test_gen_table_must_hold_exactly_levels_times_codes(hybrid):
    rows = hybrid.item_tables[GEN_TOKEN].rows
    for wrong in (rows - 1, rows + 1):
        with pytest.raises(ValueError, match=rf"rows is {wrong}, but .*4 x 32 = 128 gen-tokens"):
            with_table(hybrid, GEN_TOKEN, rows=wrong)


def test_mem_table_must_not_have_rows_that_are_never_trained(hybrid):
    merges = hybrid.tokenizer.mem.num_merges
    with pytest.raises(ValueError, match=rf"rows is {merges + 1}, but at most {merges} mem-tokens"):
        with_table(hybrid, MEM_TOKEN, rows=merges + 1)
    assert with_table(hybrid, MEM_TOKEN, rows=merges - 1)


def test_levels_of_model_and_tokenizer_must_agree(hybrid):
    model = replace(hybrid.model, item=replace(hybrid.model.item, num_levels=3))
    with pytest.raises(
        ValueError, match=r"model\.item\.num_levels is 3 but the tokenizer has 4 levels"
    ):
        replace(hybrid, model=model)


@pytest.mark.parametrize(
    "tokenizer",
    [
        RQVAE(num_levels=3, num_codes=16),
        BalancedRQKMeans(num_levels=3, num_codes=16),
        OPQ(num_levels=3, num_codes=16),
        OPMQ(num_levels=3, num_codes=16),
    ],
)
@pytest.mark.parametrize("mem", [PrefixNGrams(num_merges=99), KGrams(num_merges=99)])
def test_any_tokenizer_and_any_n_grams(tokenizer, mem):
    source = datasets.with_tokens(datasets.smoke(), "other", tokenizer=tokenizer, mem=mem)
    experiment = trm_rankmixer.experiment(source)
    assert experiment.tokenizer.folder.name == "other"
    assert experiment.model.item.num_levels == 3
    assert {name: table.rows for name, table in experiment.item_tables.items()} == {
        GEN_TOKEN: 48,
        MEM_TOKEN: 99,
    }


def test_an_extra_code_is_one_more_level_in_model_and_table(hybrid):
    source = datasets.with_tokens(datasets.smoke(), "extra", collisions="extra_code")
    experiment = trm_rankmixer.experiment(source)
    assert experiment.model.item.num_levels == 5
    assert experiment.item_tables[GEN_TOKEN].rows == 5 * 32
    with pytest.raises(ValueError, match=r"num_levels is 4 .* 5 levels \(one is the extra code"):
        replace(hybrid, tokenizer=source.tokens)


def test_n_grams_have_no_more_rows_than_their_codes_have_runs(hybrid):
    tokens = replace(hybrid.tokenizer, mem=PrefixNGrams(max_length=2))
    assert tokens.mem_rows == 32 * 32
    experiment = with_table(replace(hybrid, tokenizer=tokens), MEM_TOKEN, rows=1024)
    with pytest.raises(ValueError, match=r"rows is 1025, but at most 1024 mem-tokens"):
        with_table(experiment, MEM_TOKEN, rows=1025)


def test_gen_tokens_alone_need_no_mem_tokens(hybrid):
    tokens = replace(hybrid.tokenizer, mem=MemTokens(num_merges=0))
    assert rankmixer_gen.experiment(replace(datasets.smoke(), tokens=tokens)).tokenizer == tokens
    with pytest.raises(ValueError, match="at most 0 mem-tokens"):
        replace(hybrid, tokenizer=tokens)


def test_aligned_embeddings_have_a_file_for_each_setting(hybrid):
    tokens = replace(hybrid.tokenizer, alignment=Alignment())
    other = replace(tokens, alignment=Alignment(hidden=7))
    files = {tokens.aligned_embeddings, other.aligned_embeddings, tokens.embeddings}
    assert len(files) == 3
    assert {file.parent for file in files} == {tokens.embeddings.parent}


def test_tokens_without_tokenizer_are_refused(hybrid):
    with pytest.raises(ValueError, match="reads tokens but tokenizer is None"):
        replace(hybrid, tokenizer=None)


def test_tokenizer_without_effect_is_refused(hybrid, by_id):
    with pytest.raises(ValueError, match=r"tokenizer is set but model\.item reads item IDs"):
        replace(by_id, tokenizer=hybrid.tokenizer)


def test_item_tables_must_be_those_that_the_model_reads(hybrid, by_id):
    with pytest.raises(ValueError, match=r"reads \['gen_token', 'mem_token'\].*hold \['gen_token'"):
        without_table(hybrid, MEM_TOKEN)
    gen_only = rankmixer_gen.smoke()
    with pytest.raises(ValueError, match=r"model.item reads \['gen_token'\]"):
        replace(hybrid, model=gen_only.model)
    with pytest.raises(ValueError, match=r"hold \['item_id'\]"):
        replace(hybrid, tables=by_id.tables)


def test_dims_of_item_table_and_model_must_agree(hybrid):
    with pytest.raises(
        ValueError, match=r"table 'gen_token': dim is 16, but model\.item\.table_dims has 32"
    ):
        with_table(hybrid, GEN_TOKEN, dim=16)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_batch_that_ranks_share_evenly_is_fine(hybrid, ranks):
    hybrid.check_ranks(ranks)


def test_batch_that_ranks_can_not_share_is_refused_with_one_that_they_can(hybrid):
    with pytest.raises(
        ValueError, match=r"train\.batch_size is 1024, which 3 ranks can't share evenly; try 1023"
    ):
        hybrid.check_ranks(3)
    tiny = replace(hybrid, train=replace(hybrid.train, batch_size=3, eval_batch_size=9))
    with pytest.raises(ValueError, match=r"batch_size is 3.*try 5"):
        tiny.check_ranks(5)
    tiny.check_ranks(3)
    with pytest.raises(ValueError, match=r"train\.eval_batch_size is 9, which 2 ranks"):
        replace(tiny, train=replace(tiny.train, batch_size=4)).check_ranks(2)


def test_best_checkpoint_is_kept_by_a_metric_that_is_measured(hybrid):
    task = hybrid.data.schema.labels[-1]
    replace(hybrid, train=replace(hybrid.train, keep_best=f"valid/{task}_logloss"))
    for metric in ("auc", f"{task}_auc", "valid/nothing_auc", "train/loss"):
        with pytest.raises(ValueError, match=rf"keep_best is '{metric}'.*valid/{task}_auc"):
            replace(hybrid, train=replace(hybrid.train, keep_best=metric))


def test_batch_that_can_not_be_cut_into_equal_parts_is_refused(hybrid):
    cut = replace(
        hybrid,
        train=replace(hybrid.train, batch_size=12, eval_batch_size=6, gradient_accumulation=3),
    )
    cut.check_ranks(2)
    with pytest.raises(
        ValueError, match=r"gradient_accumulation is 3, but the 4 impressions of a rank .* 3 ranks"
    ):
        cut.check_ranks(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient_accumulation": 0}, "train.gradient_accumulation is 0, expected at least 1"),
        ({"batch_size": 0}, "train.batch_size is 0, expected at least 1"),
        ({"num_epochs": 0}, "train.num_epochs is 0"),
        ({"log_every": 0}, "train.log_every is 0"),
        ({"keep_checkpoints": 0}, "train.keep_checkpoints is 0"),
        ({"eval_batch_size": 0}, "train.eval_batch_size is 0"),
        ({"checkpoint_memory_bytes": 0}, "train.checkpoint_memory_bytes is 0"),
        ({"max_steps": 0}, "train.max_steps is 0, expected at least 1, or None"),
        ({"eval_every": 0}, "train.eval_every is 0"),
        ({"checkpoint_every": -1}, "train.checkpoint_every is -1"),
    ],
)
def test_length_and_rhythm_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_record_is_json_and_names_classes(hybrid):
    record = json.loads(json.dumps(hybrid.to_dict()))
    assert record["class"] == "Experiment"
    assert record["model"]["tower"]["class"] == "RankMixerConfig"
    assert record["data"]["folder"] == "data/smoke"
    assert [table["name"] for table in record["tables"]] == [t.name for t in hybrid.tables]


def test_fingerprint_is_equal_for_equal_values_and_changes_with_any_but_the_name(hybrid):
    assert trm_rankmixer.smoke().fingerprint == trm_rankmixer.smoke().fingerprint
    assert replace(hybrid, name="other").fingerprint == hybrid.fingerprint
    others = [
        replace(hybrid, train=replace(hybrid.train, seed=1)),
        replace(hybrid, optim=replace(hybrid.optim, sparse_lr=0.1)),
        replace(hybrid, tokenizer=replace(hybrid.tokenizer, mem=MemTokens(num_merges=1000))),
        with_table(hybrid, "user_id", optimizer="sgd"),
    ]
    assert len({hybrid.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_managed_rows_go_with_a_managed_table(by_id):
    item = replace(by_id.model.item, rows="managed")
    with pytest.raises(ValueError, match=r"rows is 'managed', but .* has managed=None"):
        replace(by_id, model=replace(by_id.model, item=item))
    with pytest.raises(ValueError, match=r"rows is 'own', but .* has managed=Managed"):
        with_table(by_id, "item_id", managed=ManagedIds())


def test_token_tables_are_not_managed(hybrid):
    with pytest.raises(ValueError, match=r"'mem_token': managed is set, but feature 'mem_token'"):
        with_table(hybrid, MEM_TOKEN, managed=ManagedIds())


def test_residual_ids_need_their_table_in_their_dim(hybrid):
    model = replace(hybrid.model, item=replace(hybrid.model.item, residual_id_dim=8))
    with pytest.raises(ValueError, match=r"reads \['gen_token', 'item_id', 'mem_token'\]"):
        replace(hybrid, model=model)
    table = TableSpec(
        name="item_id",
        rows=40,
        dim=16,
        features=("item_id",),
        role="residual_id",
        pooling="none",
    )
    with pytest.raises(ValueError, match=r"'item_id': dim is 16, but .*table_dims has 8"):
        replace(hybrid, model=model, tables=(*hybrid.tables, table))
    assert replace(hybrid, model=model, tables=(*hybrid.tables, replace(table, dim=8)))
