import torch

from tests.integration.tiny_dig import ITEM, NUM_ITEMS, catalogue
from trainer.modules.target_attention import TargetAttention
from trainer.modules.vq_encoder import VQEncoder


def test_tokens_are_the_fields_and_rows_do_not_depend_on_each_other():
    torch.manual_seed(0)
    encoder, features = VQEncoder(ITEM), catalogue()
    encoder.take_catalogue(features)
    whole = encoder(torch.arange(NUM_ITEMS))
    assert whole.shape == (NUM_ITEMS, ITEM.dim)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(NUM_ITEMS), atol=1e-3, rtol=0)
    rows = torch.tensor([41, 3, 41, 0])
    torch.testing.assert_close(encoder(rows), whole[rows])
    values, offsets = features.ids["genres"]
    for row in range(NUM_ITEMS):
        genres = values[offsets[row] : offsets[row + 1]]
        expected = encoder.tables[1].weight[genres].mean(0) if len(genres) else torch.zeros(16)
        found = encoder._pooled(1, torch.tensor([row]))[0]
        torch.testing.assert_close(found, expected)


def test_each_part_of_an_item_depends_on_every_field():
    torch.manual_seed(0)
    encoder, features = VQEncoder(ITEM), catalogue()
    encoder.take_catalogue(features)
    before = encoder(torch.tensor([5]))
    text = features.text_NE.clone()
    text[5] += 1
    encoder.take_catalogue(features._replace(text_NE=text))
    changed = (encoder(torch.tensor([5])) - before).abs().unflatten(1, (4, 4)).sum(2)
    assert (changed > 1e-4).all()


def test_the_catalogue_is_in_no_checkpoint():
    encoder = VQEncoder(ITEM)
    encoder.take_catalogue(catalogue())
    assert not [name for name in encoder.state_dict() if "text_NE" in name or "values_" in name]


def test_recall_of_many_targets_equals_one_target_a_row():
    torch.manual_seed(0)
    attention = TargetAttention(4, num_kinds=2)
    items = torch.randn(7, 4)
    history, kinds = torch.tensor([1, 2, 2, 6, 0]), torch.tensor([0, 1, 0, 0, 1])
    offsets = torch.tensor([0, 3, 3, 5])
    past = attention.remember(items, history, kinds, offsets)
    targets = torch.tensor([[0, 5], [3, 3], [6, 2]])
    found = attention.recall(items[targets], past)
    for place in range(2):
        expected = attention(items, targets[:, place], history, kinds, offsets)
        torch.testing.assert_close(found[:, place], expected)
    found.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in attention.parameters())
