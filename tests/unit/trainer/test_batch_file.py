from dataclasses import fields

import pytest
import torch

from tests.integration.tiny_model import Case, batches_of_ranks
from trainer.batch_file import load_batch, save_batch


@pytest.mark.parametrize("negatives", [0, 24])
def test_batch_comes_back_as_it_was(tmp_path, negatives):
    ((batch,),) = batches_of_ranks(Case(name="file", num_steps=1, negatives=negatives), 1)
    batch.dense_BF = batch.dense_BF.t().contiguous().t()  # as a reader may have laid it out
    batch.dense_BF[3, 1] = float("nan")
    save_batch(batch, tmp_path / "batch.safetensors")
    found = load_batch(tmp_path / "batch.safetensors")
    for field in fields(batch):
        value, expected = getattr(found, field.name), getattr(batch, field.name)
        if field.name in ("pooled", "items"):
            assert value.keys() == expected.keys()
            assert value.stride() == expected.stride()
            assert torch.equal(value.lengths(), expected.lengths())
            value, expected = value.values(), expected.values()
        assert value.dtype == expected.dtype
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)
