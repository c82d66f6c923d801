from dataclasses import replace
from itertools import pairwise

import pytest
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tests.integration import tiny_dig
from tests.integration.tiny_model import (
    DIM,
    NUM_CODES,
    NUM_DENSE,
    NUM_HISTORIES,
    NUM_LEVELS,
    NUM_TASKS,
    OPTIMIZERS,
    ROLES,
    Case,
    batches_of_ranks,
)
from trainer.flops import next_token_flops, training_flops
from trainer.modules.next_token_config import NextTokenConfig

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


def transformer(rows, tokens, past, dim, hidden, *, output_is_read=True):
    """A block; where nothing reads its output, only keys and values go back."""
    after = linear(rows * tokens, dim, dim) + mlp(rows * tokens, [dim, hidden, dim])
    products = 2 * 2 * rows * tokens * (past + tokens) * dim
    if output_is_read:
        products *= 3
    else:
        after //= 3
    return linear(rows * tokens, dim, 3 * dim) + products + after


@pytest.mark.parametrize("negatives", [0, 12, 24])
def test_generative_objective_is_counted_for_positives_alone(negatives):
    config = NextTokenConfig(dim=8, num_layers=3, num_heads=2, expansion=2.0)
    case = Case(name="flops", num_steps=1, next_token=config, negatives=negatives)
    ((batch,),) = batches_of_ranks(case, 1)
    counted_for = {
        "tables": case.tables(),
        "num_tasks": NUM_TASKS,
        "num_histories": NUM_HISTORIES,
        "roles": ROLES,
        "batch": batch,
    }
    found = next_token_flops(case.config(), **counted_for)
    whole = training_flops(case.config(), **counted_for)
    assert whole - found == expected(case, batch)
    rows = int((batch.labels_BN[:, 0] == 1).sum())
    assert (rows == 0) == (negatives == 24)
    query = 2 * DIM + DENSE_BINS
    user = DIM + DENSE_BINS + 3 * ITEM_DIM
    by_hand = linear(rows, query, 2 * 8) + linear(rows, user, 2 * 8)
    by_hand += linear(batch.items.stride(), ITEM_DIM, 2 * NUM_HISTORIES)
    by_hand += 2 * transformer(rows, 4, 0, 8, 16)
    by_hand += transformer(rows, 4, 0, 8, 16, output_is_read=False)
    by_hand += linear(rows * (NUM_LEVELS - 1), DIM, 8)
    by_hand += 3 * transformer(rows, NUM_LEVELS, 4, 8, 16)
    by_hand += NUM_LEVELS * linear(rows, 8, NUM_CODES)
    assert found == by_hand


class Counter(TorchDispatchMode):
    """FLOPs of what is really computed."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=found)
        return found


@pytest.mark.parametrize(
    "changes",
    [{}, {"recall_weight": 0.0}, {"num_negatives": 0}, {"retrieval_u2t": "mean"}, {"fixed": True}],
    ids=str,
)
def test_dig_is_counted_as_a_step_computes(changes):
    changes = dict(changes)
    item = replace(tiny_dig.ITEM, fixed=changes.pop("fixed", False))
    config = replace(tiny_dig.CONFIG, item=item, track_every=1_000, **changes)
    model = tiny_dig.dig_model(config=config)
    batch = tiny_dig.batches_of_ranks(1, 24, 1)[0][0]
    model(batch)  # the first step fits the codebooks and looks at the catalogue
    rows = model.network.encode_items(batch).row_X
    with Counter() as counter:
        model(batch)[0].backward()
    found = training_flops(
        config,
        tables=tiny_dig.tables(item),
        num_tasks=2,
        num_histories=tiny_dig.NUM_HISTORIES,
        batch=batch,
        roles=tiny_dig.ROLES,
        num_items=len(rows),
    )
    assert found == counter.total
