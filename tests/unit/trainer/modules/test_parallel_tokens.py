import torch
from torchrec.sparse.jagged_tensor import JaggedTensor

from trainer.modules.parallel_tokens import ParallelTokensConfig


def items(num_items, num_levels, dim):
    torch.manual_seed(0)
    return {
        "gen_token": JaggedTensor(
            values=torch.randn(num_items * num_levels, dim),
            lengths=torch.full((num_items,), num_levels),
        )
    }


def test_an_item_is_its_codes_side_by_side():
    config = ParallelTokensConfig(num_levels=3, table_dim=4)
    found = items(5, 3, 4)
    item_UD = config.build()(found)
    assert item_UD.shape == (5, config.item_dim) == (5, 12)
    codes = found["gen_token"].values()
    for item in range(5):
        for level in range(3):
            part = item_UD[item, 4 * level : 4 * level + 4]
            assert torch.equal(part, codes[3 * item + level])


def test_dropout_is_of_training_alone():
    config = ParallelTokensConfig(num_levels=2, table_dim=64, dropout=0.5)
    found = items(50, 2, 64)
    module = config.build()
    dropped = (module(found) == 0).float().mean()
    assert 0.45 < dropped < 0.55
    assert not (module.eval()(found) == 0).any()


def test_reads_gen_tokens_alone():
    config = ParallelTokensConfig(num_levels=2, table_dim=8)
    assert config.table_dims == {"gen_token": 8}
    assert config.features == ("gen_token",)
    assert list(config.build().parameters()) == []
