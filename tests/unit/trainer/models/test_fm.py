import torch

from trainer.models.fm import FMConfig


def test_equals_the_equation_with_a_loop_over_pairs():
    torch.manual_seed(0)
    tower = FMConfig(field_dim=3).build({"user": 3, "item": 3, "dense": 5}).double()
    x_BF = torch.randn(4, 11, dtype=torch.float64)
    first_order, fields = tower.blocks
    dense = fields.projections["2"]
    expected = []
    for row in x_BF:
        vectors = [row[:3], row[3:6], dense.weight @ row[6:] + dense.bias]
        first = (first_order.weight[0] * row).sum() + first_order.bias[0]
        second = sum(
            torch.dot(vectors[left], vectors[right])
            for left in range(3)
            for right in range(left + 1, 3)
        )
        expected.append(torch.stack([first, second]))
    torch.testing.assert_close(tower(x_BF), torch.stack(expected))
