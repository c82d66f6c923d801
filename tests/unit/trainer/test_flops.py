from itertools import pairwise

import pytest

from tests.integration.tiny_model import (
    DIM,
    NUM_DENSE,
    NUM_HISTORIES,
    NUM_LEVELS,
    NUM_TASKS,
    OPTIMIZERS,
    Case,
    batches_of_ranks,
)
from trainer.flops import training_flops

DENSE_BINS, DENSE_DIM, ITEM_DIM, ITEM_HIDDEN = 4, 8, 8, 12


def linear(rows, width_in, width_out, *, input_gradient=True):
    """Forward, gradient of the weights, gradient of the input: 2 FLOPs a multiply-add."""
    return 2 * rows * width_in * width_out * (3 if input_gradient else 2)


def mlp(rows, widths):
    return sum(linear(rows, *pair) for pair in pairwise(widths))


def expected(case, batch):
    rows, items = batch.batch_size, batch.items.stride()
    kinds = NUM_HISTORIES * ITEM_DIM
    item = mlp(items, [NUM_LEVELS * DIM, ITEM_HIDDEN, ITEM_DIM]) + linear(items, DIM, ITEM_DIM)
    attention = linear(rows, ITEM_DIM, ITEM_DIM) + 2 * linear(items, ITEM_DIM, kinds)
    feedback = linear(rows, ITEM_DIM, ITEM_DIM) + linear(items, ITEM_DIM, kinds)
    dense = linear(rows, NUM_DENSE * DENSE_BINS, DENSE_DIM, input_gradient=False)
    width = 2 * len(OPTIMIZERS) * DIM + 3 * ITEM_DIM + 2 * ITEM_DIM + DENSE_DIM
    if not case.fsdp:
        tower, out = mlp(rows, [width, 16, 8]), 8
    else:
        tokens, dim, hidden, layers = 4, 16, 32, 2
        part = -(-width // tokens)
        tower = tokens * linear(rows, part, dim)
        tower += layers * tokens * mlp(rows, [dim, hidden, dim])
        out = dim
    return item + attention + feedback + dense + tower + NUM_TASKS * linear(rows, out, 1)


@pytest.mark.parametrize("fsdp", [False, True], ids=["dlrm", "rankmixer"])
@pytest.mark.parametrize("batch_size", [6, 24])
def test_count_equals_a_count_by_hand(fsdp, batch_size):
    case = Case(name="flops", fsdp=fsdp, num_steps=1, batch_size=batch_size)
    ((batch,),) = batches_of_ranks(case, 1)
    found = training_flops(
        case.config(),
        tables=case.tables(),
        num_tasks=NUM_TASKS,
        num_histories=NUM_HISTORIES,
        batch=batch,
    )
    assert found == expected(case, batch)
