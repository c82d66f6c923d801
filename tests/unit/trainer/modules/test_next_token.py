from dataclasses import replace

import pytest
import torch

from trainer.modules.next_token import NextToken
from trainer.modules.next_token_config import ContextRoles, NextTokenConfig
from trainer.modules.semi_causal import semi_causal_mask

ROLES = ContextRoles(
    query_features=("query", "hour"),
    user_features=("user",),
    query_dense=(1,),
    user_dense=(0, 3),
    tasks=("click", "play"),
)
DIMS = {"query": 4, "hour": 2, "user": 3, "genre": 5}
BINS, HISTORY, TOKEN_DIM, LEVELS, CODES, ROWS = 3, 6, 4, 3, 7, 5
CONFIG = NextTokenConfig(dim=8, num_layers=2, num_heads=2, expansion=2.0)


def build(config=CONFIG):
    torch.manual_seed(0)
    return NextToken(
        config,
        roles=ROLES,
        pooled_dims=DIMS,
        num_bins=BINS,
        history_dim=HISTORY,
        num_histories=2,
        token_dim=TOKEN_DIM,
        num_levels=LEVELS,
        num_codes=CODES,
    )


@pytest.fixture
def sources():
    torch.manual_seed(1)
    by_feature = {name: torch.randn(ROWS, dim) for name, dim in DIMS.items()}
    return by_feature, torch.randn(ROWS, 4, BINS), torch.randn(ROWS, 3 * HISTORY)


@pytest.fixture
def items():
    torch.manual_seed(2)
    return torch.randn(ROWS, LEVELS, TOKEN_DIM), torch.randint(CODES, (ROWS, LEVELS))


def test_context_tokens_are_projections_of_query_and_of_user(sources):
    module = build()
    by_feature, dense, history = sources
    found = module.context(*sources)
    assert found.shape == (ROWS, 4, 8)
    for row in range(ROWS):
        query = torch.cat([by_feature["query"][row], by_feature["hour"][row], dense[row, 1]])
        user = torch.cat([by_feature["user"][row], dense[row, 0], dense[row, 3], history[row]])
        tokens = [*module.query_project(query).split(8), *module.user_project(user).split(8)]
        expected = module.context_norm(torch.stack(tokens))
        torch.testing.assert_close(found[row], expected)
    rows = torch.tensor([3, 0])
    torch.testing.assert_close(module.context(*sources, rows), found[rows])


def test_what_is_neither_query_nor_user_does_not_reach_the_context(sources):
    module = build()
    by_feature, dense, history = sources
    before = module.context(*sources)
    changed = {**by_feature, "genre": by_feature["genre"] + 1}
    dense = dense.clone()
    dense[:, 2] += 1
    assert torch.equal(module.context(changed, dense, history), before)
    dense[:, 1] += 1
    assert not torch.equal(module.context(changed, dense, history), before)


def test_loss_is_a_sum_over_rows_and_levels_of_one_masked_pass(sources, items):
    module = build()
    gen, codes = items
    context = module.context(*sources)
    found = module(module.encode(context), gen, codes)
    total = 0.0
    for row in range(ROWS):
        tokens = module.tokens
        inputs = [tokens.position.weight[0]]
        for level in range(LEVELS - 1):
            entered = tokens.in_norm(tokens.project(gen[row, level]))
            inputs.append(entered + tokens.position.weight[level + 1])
        x = torch.cat([context[row], torch.stack(inputs)]).unsqueeze(0)
        for block in module.blocks:
            x, _ = block(x, semi_causal_mask(4, LEVELS))
        out = tokens.out_norm(x[0, 4:])
        for level in range(LEVELS):
            logits = tokens.weight_LKD[level] @ out[level] + tokens.bias_LK[level]
            total -= logits.log_softmax(0)[codes[row, level]]
    torch.testing.assert_close(found, total, rtol=1e-5, atol=1e-4)


def test_a_level_is_predicted_without_seeing_its_own_code(sources, items):
    """Changing the last level's embedding changes nothing; changing level 0's changes the rest."""
    module = build()
    gen, codes = items
    context = module.encode(module.context(*sources))
    before = module(context, gen, codes)
    gen = gen.clone()
    gen[:, -1] += 1
    assert torch.equal(module(context, gen, codes), before)
    gen[:, 0] += 1
    assert not torch.equal(module(context, gen, codes), before)
    hidden, _ = module.decode(module.tokens.embed(gen[:, :-1]), context.past)
    gen[:, 1] += 1
    again, _ = module.decode(module.tokens.embed(gen[:, :-1]), context.past)
    assert torch.equal(hidden[:, :2], again[:, :2])
    assert not torch.equal(hidden[:, 2], again[:, 2])


def test_level_logits_are_those_of_the_loss(sources, items):
    module = build()
    hidden, _ = module.decode(
        module.tokens.embed(items[0][:, :-1]), module.encode(module.context(*sources)).past
    )
    logits_LPK = module.tokens.logits(module.tokens.out_norm(hidden).transpose(0, 1))
    for level in range(LEVELS):
        torch.testing.assert_close(
            module.tokens.level_logits(hidden[:, level], level), logits_LPK[level]
        )


def test_no_positive_means_loss_zero_and_zero_gradients_everywhere(sources, items):
    for config in (CONFIG, replace(CONFIG, num_sampled=3)):
        module = build(config)
        none = torch.zeros(0, dtype=torch.int64)
        context = module.encode(module.context(*sources, none))
        loss = module(context, items[0][none], items[1][none])
        assert float(loss.detach()) == 0
        loss.backward()
        for name, weight in module.named_parameters():
            if name.startswith("history."):
                continue  # the network runs it, see test_joint_objective
            assert weight.grad is not None, name
            assert not weight.grad.any(), name


def test_every_parameter_is_trained(sources, items):
    for config in (CONFIG, replace(CONFIG, num_sampled=3)):
        module = build(config)
        module(module.encode(module.context(*sources)), *items).backward()
        for name, weight in module.named_parameters():
            if name.startswith("history."):
                continue  # the network runs it, see test_joint_objective
            assert weight.grad is not None, name
            assert weight.grad.any(), name


def test_positives_are_those_of_the_named_task():
    labels = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]]).float()
    assert build().positives(labels).tolist() == [0, 2]
    other = build(replace(CONFIG, positive_task="play"))
    assert other.positives(labels).tolist() == [1, 2]


def test_without_its_loss_the_transformer_stays_and_heads_go():
    whole = build()
    bare = build(replace(CONFIG, weight=0.0, feeds_tower=True))
    names = {name for name, _ in whole.named_parameters()}
    assert {name for name in names if not name.startswith("tokens.")} == {
        name for name, _ in bare.named_parameters()
    }
    assert any(name.startswith("tokens.") for name in names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positive_task": "buy"}, "positive_task is 'buy', but the labels are click, play"),
        ({"num_sampled": CODES}, "num_sampled is 7, expected 1 to 6"),
    ],
)
def test_settings_are_checked_against_the_schema(changes, message):
    with pytest.raises(ValueError, match=message):
        build(replace(CONFIG, **changes))
