import pytest
import torch
from torchrec.sparse.jagged_tensor import JaggedTensor

from trainer.modules.hybrid_tokens import (
    GEN_TOKEN,
    ITEM_ID,
    MEM_TOKEN,
    HybridTokensConfig,
    ItemIdConfig,
    sum_by_item,
)

LEVELS, TABLE_DIM, ITEM_DIM = 3, 4, 5
MEM_LENGTHS = [2, 0, 1, 3]


def tokens(seed=0):
    torch.manual_seed(seed)
    num_items = len(MEM_LENGTHS)
    return {
        GEN_TOKEN: JaggedTensor(
            values=torch.randn(num_items * LEVELS, TABLE_DIM),
            lengths=torch.full((num_items,), LEVELS),
        ),
        MEM_TOKEN: JaggedTensor(
            values=torch.randn(sum(MEM_LENGTHS), TABLE_DIM), lengths=torch.tensor(MEM_LENGTHS)
        ),
    }


def config(**changes):
    settings = {"num_levels": LEVELS, "table_dim": TABLE_DIM, "item_dim": ITEM_DIM}
    return HybridTokensConfig(**{**settings, "hidden_dims": (6,), **changes})


def naive_sums(jagged):
    values, at, sums = jagged.values(), 0, []
    for length in jagged.lengths().tolist():
        total = torch.zeros(values.shape[1])
        for position in range(at, at + length):
            total = total + values[position]
        sums.append(total)
        at += length
    return torch.stack(sums)


def naive_deep(module, gen):
    first, _, last = module.deep
    vectors = []
    for item in range(gen.lengths().shape[0]):
        joined = torch.cat([gen.values()[item * LEVELS + level] for level in range(LEVELS)])
        hidden = (first.weight @ joined + first.bias).clamp_min(0)
        vectors.append(last.weight @ hidden + last.bias)
    return torch.stack(vectors)


def test_sum_by_item_equals_a_loop_and_gives_zero_for_an_item_without_tokens():
    mem = tokens()[MEM_TOKEN]
    found = sum_by_item(mem)
    torch.testing.assert_close(found, naive_sums(mem))
    assert not found[1].any()


def test_sum_by_item_of_no_tokens_at_all():
    empty = JaggedTensor(values=torch.zeros(0, 4), lengths=torch.zeros(3, dtype=torch.int64))
    assert sum_by_item(empty).tolist() == [[0] * 4] * 3


def test_item_is_deep_of_gen_tokens_plus_wide_of_mem_tokens():
    module = config().build()
    items = tokens()
    wide = naive_sums(items[MEM_TOKEN]) @ module.wide.weight.T
    torch.testing.assert_close(module(items), naive_deep(module, items[GEN_TOKEN]) + wide)


def test_wide_side_is_linear_in_the_mem_tokens():
    module = config().build()
    items = tokens()
    mem = items[MEM_TOKEN]

    def scaled(factor):
        jagged = JaggedTensor(values=mem.values() * factor, lengths=mem.lengths())
        return module({**items, MEM_TOKEN: jagged})

    at_zero = scaled(0.0)
    torch.testing.assert_close(scaled(3.0) - at_zero, 3 * (scaled(1.0) - at_zero))
    torch.testing.assert_close(at_zero, naive_deep(module, items[GEN_TOKEN]))


def test_gen_only_reads_no_mem_tokens():
    module = config(mem_tokens=False).build()
    gen = tokens()[GEN_TOKEN]
    torch.testing.assert_close(module({GEN_TOKEN: gen}), naive_deep(module, gen))
    assert module.config.features == (GEN_TOKEN,)
    assert config().features == (GEN_TOKEN, MEM_TOKEN)


def test_mem_only_is_the_sum_of_the_mem_tokens_through_the_mlp():
    module = config(gen_tokens=False).build()
    mem = tokens()[MEM_TOKEN]
    first, _, last = module.deep
    hidden = (naive_sums(mem) @ first.weight.T + first.bias).clamp_min(0)
    torch.testing.assert_close(module({MEM_TOKEN: mem}), hidden @ last.weight.T + last.bias)
    assert module.config.features == (MEM_TOKEN,)
    assert module.wide is None


def test_residual_id_is_added_through_a_layer_that_begins_at_zero():
    plain = config().build()
    module = config(residual_id_dim=2).build()
    module.load_state_dict(plain.state_dict(), strict=False)
    own = JaggedTensor(values=torch.randn(2, 2), lengths=torch.tensor([0, 1, 0, 1]))
    items = {**tokens(), ITEM_ID: own}
    assert torch.equal(module(items), plain(items))
    module(items).sum().backward()
    assert module.residual.weight.grad.abs().sum() > 0  # it learns from the first step on
    with torch.no_grad():
        module.residual.weight.normal_()
    expected = plain(items).clone()
    for item, vector in ((1, own.values()[0]), (3, own.values()[1])):
        expected[item] += module.residual.weight @ vector
    torch.testing.assert_close(module(items), expected)
    assert module.config.features == (GEN_TOKEN, MEM_TOKEN, ITEM_ID)
    assert module.config.table_dims == {GEN_TOKEN: TABLE_DIM, MEM_TOKEN: TABLE_DIM, ITEM_ID: 2}


def test_no_item_keeps_a_residual_id():
    module = config(residual_id_dim=2).build()
    none = JaggedTensor(values=torch.zeros(0, 2), lengths=torch.zeros(4, dtype=torch.int64))
    assert torch.isfinite(module({**tokens(), ITEM_ID: none})).all()


def test_an_item_without_any_token_is_refused():
    with pytest.raises(ValueError, match="gen_tokens and mem_tokens are both False"):
        config(gen_tokens=False, mem_tokens=False)


def test_dropout_acts_on_the_deep_side_while_training_only():
    module = config(dropout=0.5).build()
    items = tokens()
    nothing = {
        key: JaggedTensor(values=jagged.values() * 0, lengths=jagged.lengths())
        for key, jagged in items.items()
    }
    assert not torch.equal(module(items), module(items))
    # With the deep input at zero dropout changes nothing, so it does not touch the wide side.
    wide_alone = {**nothing, MEM_TOKEN: items[MEM_TOKEN]}
    assert torch.equal(module(wide_alone), module(wide_alone))
    module.eval()
    assert torch.equal(module(items), module(items))
    torch.testing.assert_close(
        module(items),
        naive_deep(module, items[GEN_TOKEN]) + naive_sums(items[MEM_TOKEN]) @ module.wide.weight.T,
    )


def test_order_of_levels_matters_and_order_of_mem_tokens_does_not():
    module = config().build()
    items = tokens()
    gen, mem = items[GEN_TOKEN], items[MEM_TOKEN]
    reversed_levels = gen.values().view(-1, LEVELS, TABLE_DIM).flip(1).reshape(-1, TABLE_DIM)
    swapped = {**items, GEN_TOKEN: JaggedTensor(values=reversed_levels, lengths=gen.lengths())}
    assert not torch.allclose(module(swapped), module(items))
    order = torch.tensor([1, 0, 2, 5, 3, 4])  # within bags of 2, 0, 1 and 3
    swapped = {**items, MEM_TOKEN: JaggedTensor(values=mem.values()[order], lengths=mem.lengths())}
    torch.testing.assert_close(module(swapped), module(items))


@pytest.mark.parametrize("hidden_dims", [(), (7,)])
def test_item_id_is_its_embedding_through_an_mlp(hidden_dims):
    torch.manual_seed(0)
    encoder = ItemIdConfig(table_dim=4, item_dim=5, hidden_dims=hidden_dims).build()
    ids = JaggedTensor(values=torch.randn(6, 4), lengths=torch.ones(6, dtype=torch.int64))
    expected = ids.values()
    linears = [layer for layer in encoder.project if isinstance(layer, torch.nn.Linear)]
    for layer in linears[:-1]:
        expected = (expected @ layer.weight.T + layer.bias).clamp_min(0)
    expected = expected @ linears[-1].weight.T + linears[-1].bias
    torch.testing.assert_close(encoder({ITEM_ID: ids}), expected)
    assert encoder.config.features == (ITEM_ID,)


def test_positions_are_added_to_the_gen_tokens_of_their_level_and_begin_at_zero():
    module = config(positions=True, mem_tokens=False).build()
    gen = tokens()[GEN_TOKEN]
    torch.testing.assert_close(module({GEN_TOKEN: gen}), naive_deep(module, gen))
    torch.manual_seed(1)
    position_Ld = torch.randn(LEVELS, TABLE_DIM)
    with torch.no_grad():
        module.positions.position_F.copy_(position_Ld.flatten())
    moved = gen.values().view(-1, LEVELS, TABLE_DIM) + position_Ld
    moved = JaggedTensor(values=moved.view(-1, TABLE_DIM), lengths=gen.lengths())
    torch.testing.assert_close(module({GEN_TOKEN: gen}), naive_deep(module, moved))


def test_positions_without_gen_tokens_are_refused():
    with pytest.raises(ValueError, match="positions is True but gen_tokens is False"):
        config(positions=True, gen_tokens=False)
