import math

import pytest
import torch

from trainer.modules.rotation import FeatureGroups, Rotations


def rotations(num_rotations=3, dim=6):
    torch.manual_seed(0)
    return Rotations(num_rotations, dim)


def naive_matrices(module):
    """Cayley's formula, one rotation at a time."""
    found = []
    for angles in module.skew_KM.double():
        skew = torch.zeros(module.dim, module.dim, dtype=torch.float64)
        at = 0
        for i in range(module.dim):
            for j in range(i + 1, module.dim):
                skew[i, j], skew[j, i] = angles[at], -angles[at]
                at += 1
        one = torch.eye(module.dim, dtype=torch.float64)
        found.append(torch.linalg.inv(one + skew) @ (one - skew))
    return torch.stack(found)


def test_matrices_are_cayleys():
    module = rotations()
    torch.testing.assert_close(
        module.matrices().double(), naive_matrices(module), atol=1e-6, rtol=0
    )


def test_each_rotation_turns_the_whole_block():
    module = rotations()
    block_BC = torch.randn(4, 6)
    expected = torch.stack([block_BC @ matrix for matrix in module.matrices()], dim=1)
    torch.testing.assert_close(module(block_BC), expected)
    lengths_BK = module(block_BC).norm(dim=2)
    torch.testing.assert_close(lengths_BK, block_BC.norm(dim=1, keepdim=True).expand(4, 3))


def test_rotations_stay_orthogonal_however_they_are_trained():
    module = rotations(4, 24)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.3)
    for _ in range(20):
        optimizer.zero_grad()
        out = module(torch.randn(8, 24))
        (1e3 * out.square().sum(dim=2).std() + out.sum() - 0.1 * module.diversity()).backward()
        optimizer.step()
        assert module.measures()["orthogonality_error"] < 1e-5
    assert module.skew_KM.abs().max() > 1


def test_orthogonal_under_autocast_too():
    module = rotations(2, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(torch.randn(8, 32, dtype=torch.bfloat16))
        assert module.measures()["orthogonality_error"] < 1e-5
    assert out.dtype == torch.bfloat16
    assert module.matrices().dtype == torch.float32


def test_diversity_is_the_sum_over_pairs():
    module = rotations(4)
    module(torch.randn(2, 6))
    matrices = module.matrices().detach()
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    squares = [(matrices[i] - matrices[j]).square().sum() for i, j in pairs]
    torch.testing.assert_close(module.diversity().detach(), sum(squares))
    distance = sum(square.sqrt() for square in squares) / len(pairs)
    measured = module.measures()["rotation_distance"]
    assert measured == pytest.approx(float(distance) / math.sqrt(2 * 6))


def test_rotations_start_as_far_apart_as_random_ones():
    module = rotations(8, 64)
    module(torch.randn(1, 64))
    assert module.measures()["rotation_distance"] == pytest.approx(1, abs=0.01)
    random = [torch.linalg.qr(torch.randn(64, 64)).Q for _ in range(8)]
    apart = [float((a - b).norm()) for a in random for b in random if a is not b]
    assert sum(apart) / len(apart) / math.sqrt(128) == pytest.approx(1, abs=0.01)


def test_diversity_drives_rotations_further_apart_than_random_ones():
    module = rotations(4, 16)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02)
    for _ in range(60):
        module(torch.randn(1, 16))
        optimizer.zero_grad()
        (-0.1 * module.diversity()).backward()
        optimizer.step()
    farthest = math.sqrt(4 / 3)  # where the rotations add up to zero
    assert 0.98 * farthest < module.measures()["rotation_distance"] < farthest + 1e-4


def test_a_single_rotation_has_no_distance():
    module = rotations(1)
    module(torch.randn(2, 6))
    assert set(module.measures()) == {"orthogonality_error"}
    assert float(module.diversity().detach()) == pytest.approx(0, abs=1e-5)


def test_measures_need_a_training_pass():
    module = rotations().eval()
    module(torch.randn(2, 6))
    for measure in (module.measures, module.diversity):
        with pytest.raises(RuntimeError, match="belong to a training forward pass"):
            measure()


def test_groups_do_not_see_each_other():
    torch.manual_seed(0)
    groups = FeatureGroups([5, 2], hidden_dim=7, dim=3)
    values = [torch.randn(4, 5), torch.randn(4, 2)]
    expected = []
    for network, x in zip(groups.networks, values, strict=True):
        first, last = network[0], network[-1]
        hidden = torch.relu(x @ first.weight.T + first.bias)
        expected.append(hidden @ last.weight.T + last.bias)
    torch.testing.assert_close(groups(values), torch.cat(expected, dim=1))
