import dataclasses

import pytest
import torch
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from tests.integration.tiny_model import Case, batches_of_ranks, joined
from trainer.batch_parts import LossInParts, take_rows
from trainer.models.ranking_model import RankingModel
from trainer.models.rankmixer_moe import RankMixerMoEConfig

CASE = Case(name="parts", num_steps=1, batch_size=12)


def whole_batch():
    return joined(batches_of_ranks(CASE, 2)[0])  # some items stand twice


def ids_of(batch, place):
    """Ids of one distinct item, by key."""
    return {key: jagged.to_dense()[place].tolist() for key, jagged in batch.items.to_dict().items()}


def described(batch):
    """Each row with the ids of its items spelled out."""
    pooled = {key: jagged.to_dense() for key, jagged in batch.pooled.to_dict().items()}
    rows = []
    for row in range(batch.batch_size):
        history = slice(batch.history_offsets[row], batch.history_offsets[row + 1])
        rows.append(
            {
                "dense": batch.dense_BF[row].tolist(),
                "labels": batch.labels_BN[row].tolist(),
                "row": int(batch.row_B[row]),
                "pooled": {key: bags[row].tolist() for key, bags in pooled.items()},
                "candidate": ids_of(batch, batch.candidate_B[row]),
                "history": [ids_of(batch, place) for place in batch.history_T[history]],
                "kinds": batch.history_kind_T[history].tolist(),
            }
        )
    return rows


def test_taken_rows_are_those_rows_and_hold_their_items_alone():
    batch = whole_batch()
    part, item_rows = take_rows(batch, 3, 8)
    assert described(part) == described(batch)[3:8]
    used = {int(i) for i in batch.candidate_B[3:8]}
    start, stop = batch.history_offsets[3], batch.history_offsets[8]
    used |= {int(i) for i in batch.history_T[start:stop]}
    assert item_rows.tolist() == sorted(used)
    assert part.items.stride() == len(used) < batch.items.stride()


def embeddings(batch, model):
    """Embeddings of a batch that stand for what tables return, with gradients of their own."""
    with torch.no_grad():
        pooled, items = model.sparse(batch)
    values = pooled.values().clone().requires_grad_()
    item_values = {key: item.values().clone().requires_grad_() for key, item in items.items()}
    return (
        KeyedTensor(pooled.keys(), pooled.length_per_key(), values),
        {key: JaggedTensor(item_values[key], lengths=items[key].lengths()) for key in items},
        {"pooled": values, **item_values},
    )


def gradients(num_parts):
    torch.manual_seed(0)
    model = CASE.model("cpu")
    for weight in model.sparse.parameters():
        torch.nn.init.normal_(weight)
    batch = whole_batch()
    pooled, items, leaves = embeddings(batch, model)
    loss_of = model.loss if num_parts is None else LossInParts(model.loss, num_parts)
    loss, outputs = loss_of(batch, pooled, items)
    loss.backward()
    found = {name: leaf.grad for name, leaf in leaves.items()}
    found |= {name: weight.grad for name, weight in model.network.named_parameters()}
    return float(loss.detach()), outputs, found


def test_loss_outputs_and_gradients_equal_those_of_the_whole_batch():
    expected_loss, expected_outputs, expected = gradients(None)
    for num_parts in (1, 2, 5, 12):
        loss, outputs, found = gradients(num_parts)
        assert abs(loss - expected_loss) < 1e-6
        assert torch.equal(outputs.row_B, expected_outputs.row_B)
        torch.testing.assert_close(outputs.logits_BN, expected_outputs.logits_BN)
        torch.testing.assert_close(outputs.losses, expected_outputs.losses)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert float(gradient.abs().max()) > 0, name
            torch.testing.assert_close(found[name], gradient, atol=1e-7, rtol=1e-4, msg=name)


def test_towers_that_adapt_to_whole_batches_are_refused():
    tower = RankMixerMoEConfig(num_tokens=4, dim=16)
    model = RankingModel(
        dataclasses.replace(CASE.config(), tower=tower),
        tables=CASE.tables(),
        num_dense=3,
        num_tasks=2,
        num_histories=2,
        sparse_device=torch.device("meta"),
    )
    with pytest.raises(ValueError, match=r"gradient_accumulation is 2, but .* \(RankMixerMoE\)"):
        model.train_in_parts(2)
