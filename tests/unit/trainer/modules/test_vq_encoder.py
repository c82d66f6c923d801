from dataclasses import replace

import torch

from tests.integration.tiny_dig import ITEM, NUM_ITEMS, catalogue
from trainer.modules.target_attention import TargetAttention
from trainer.modules.vq_encoder import StaticFeatures, VQEncoder


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


def test_numbers_and_texts_are_standardized_by_the_catalogue():
    config = replace(ITEM, dense_columns=("price", "weight"), dim=20)
    torch.manual_seed(0)
    encoder, features = VQEncoder(config), catalogue()
    dense = torch.randn(NUM_ITEMS, 2) * torch.tensor([5.0, 0.1]) + 3
    encoder.take_catalogue(features._replace(dense_NF=dense))
    scaled = VQEncoder(config)
    text = features.text_NE - features.text_NE.mean(0)
    scaled.take_catalogue(
        features._replace(
            dense_NF=(dense - dense.mean(0)) / dense.std(0, correction=0),
            text_NE=text / text.square().mean().sqrt(),
        )
    )
    weights = {name: w for name, w in encoder.state_dict().items() if name in own(encoder)}
    scaled.load_state_dict(weights, strict=False)
    every = torch.arange(NUM_ITEMS)
    torch.testing.assert_close(encoder(every), scaled(every), atol=1e-5, rtol=1e-4)


def own(module):
    return dict(module.named_parameters())


def test_new_items_move_no_other_item_of_a_trained_encoder():
    torch.manual_seed(0)
    trained, grown = VQEncoder(ITEM), VQEncoder(ITEM)
    trained.take_catalogue(catalogue())
    few, more = catalogue(), catalogue(3)
    both = StaticFeatures(
        ids={
            name: (torch.cat([v, w]), torch.cat([a, a[-1] + b[1:]]))
            for (name, (v, a)), (w, b) in zip(few.ids.items(), more.ids.values(), strict=True)
        },
        dense_NF=torch.zeros(NUM_ITEMS + 3, 0),
        text_NE=torch.cat([few.text_NE, more.text_NE + 9]),
    )
    grown.take_catalogue(both)
    every = torch.arange(NUM_ITEMS)
    grown.load_state_dict({**grown.state_dict(), **own(trained)})
    assert (grown(every) - trained(every)).abs().max() > 1e-3  # were there no checkpoint
    grown.load_state_dict(trained.state_dict())
    assert torch.equal(grown(every), trained(every))
    assert grown(torch.arange(NUM_ITEMS + 3)).shape == (NUM_ITEMS + 3, ITEM.dim)
