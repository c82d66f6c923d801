import numpy as np
import torch

from tokenization import residual
from trainer.modules.residual_quantizer import ResidualQuantizer
from trainer.modules.sid_tracker import SidTracker, collision_rate

DIM, LEVELS, CODES = 6, 3, 5


def quantizer(decay=0.9, dead_after=1000):
    made = ResidualQuantizer(
        num_levels=LEVELS, num_codes=CODES, dim=DIM, decay=decay, dead_after=dead_after
    )
    torch.manual_seed(1)
    made.codebooks_LKD.normal_()
    return made


def naive_walk(vector, codebooks):
    """Eq. 2 to 4, one vector."""
    codes, residuals, left = [], [], vector
    for level in codebooks:
        residuals.append(left)
        code = int(np.argmin([np.linalg.norm(left - c) for c in level]))
        codes.append(code)
        left = left - level[code]
    return codes, residuals, left


def test_walk_and_losses_equal_the_equations():
    made = quantizer()
    vectors = torch.randn(20, DIM, requires_grad=True)
    found = made(vectors)
    books = made.codebooks_LKD.numpy()
    for number, vector in enumerate(vectors.detach().numpy()):
        codes, residuals, left = naive_walk(vector, books)
        assert found.codes_ML[number].tolist() == codes
        commit = sum(
            np.square(books[level, code] - residuals[level]).sum()
            for level, code in enumerate(codes)
        )
        np.testing.assert_allclose(found.commitment()[number].item(), commit, rtol=1e-5)
        np.testing.assert_allclose(
            found.reconstruction()[number].item(), np.square(left).sum(), rtol=1e-4
        )


def test_equals_the_shared_walk_of_tokenization():
    made = quantizer()
    vectors = torch.randn(300, DIM)
    shared = residual.encode(vectors.numpy(), made.codebooks_LKD.numpy())
    assert made(vectors).codes_ML.tolist() == shared.tolist()


def test_gradients_stop_at_codewords():
    made = quantizer()
    vectors = torch.randn(4, DIM, requires_grad=True)
    found = made(vectors)
    found.commitment().sum().backward()
    # d/dr_0 of sum_l |c_l - r_{l-1}|^2, where r_{l-1} = r_0 minus constants.
    expected = (2 * (found.residual_MLD - found.codeword_MLD)).sum(dim=1)
    torch.testing.assert_close(vectors.grad, expected.detach())
    assert not found.codeword_MLD.requires_grad
    assert not list(made.parameters())


def test_codebooks_follow_means_of_their_vectors():
    made = quantizer(decay=0.9)
    before = made.codebooks_LKD.clone()
    vectors = torch.randn(6, DIM)
    found = made(vectors)
    rows = torch.tensor([0, 1, 1, 2, 3, 4, 5, 5, 5])
    made.follow(found, rows, rows)
    for level in range(LEVELS):
        for code in range(CODES):
            mine = [
                found.residual_MLD[row, level]
                for row in rows.tolist()
                if found.codes_ML[row, level] == code
            ]
            expected = before[level, code]
            if mine:
                expected = 0.9 * expected + 0.1 * torch.stack(mine).mean(0)
            torch.testing.assert_close(made.codebooks_LKD[level, code], expected)


def test_dead_codewords_start_anew_at_the_worst_described_items():
    made = quantizer(dead_after=2)
    made.codebooks_LKD[0, 3] = 100.0  # nothing is near
    vectors = torch.randn(6, DIM)
    rows = torch.arange(6)
    made.follow(made(vectors), rows, rows)
    assert made.idle_LK[0, 3] == 1
    found = made(vectors)
    error = (vectors - found.codeword_MLD[:, 0]).square().sum(1)
    dead = int((made.idle_LK[0] >= 1).sum())
    made.follow(found, rows, rows)
    worst = vectors[error.argsort(descending=True)[:dead]]
    assert any(torch.equal(made.codebooks_LKD[0, 3], one) for one in worst)
    assert made.idle_LK[0, 3] == 0
    assert 3 in made(vectors).codes_ML[:, 0]


def test_balanced_start_tells_items_apart_as_eq_2_assigns():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((30, 16))
    items = centres[rng.integers(0, 30, 1500)] + 0.3 * rng.standard_normal((1500, 16))
    made = ResidualQuantizer(num_levels=4, num_codes=32, dim=16, decay=0.99, dead_after=50)
    vectors = torch.from_numpy(items.astype("float32"))
    made.start(vectors)
    codes = made(vectors).codes_ML
    assert collision_rate(codes) < 0.005
    sizes = torch.bincount(codes[:, 0], minlength=32)
    assert sizes.max() < 4 * 1500 / 32


def test_tracker_counts_collisions_dead_codes_and_drift():
    tracker = SidTracker(num_codes=3)
    tracker.look(torch.tensor([[0, 0], [0, 0], [1, 2], [2, 2]]))
    assert tracker.last["collision_rate"] == 0.5
    assert tracker.last["dead_codes"] == 1  # code 1 of level 2
    assert "drift" not in tracker.last
    tracker.look(torch.tensor([[0, 0], [0, 1], [1, 2], [2, 2]]))
    assert tracker.last["drift"] == 0.25
    assert tracker.last["collision_rate"] == 0


def test_outcome_tells_drift_where_there_was_a_look_before():
    codes = torch.tensor([[0, 0], [0, 0], [1, 2], [2, 2]])
    tracker = SidTracker(num_codes=3)
    first = tracker.outcome(codes)
    assert first == {"collision_rate": 0.5, "dead_codes": 1.0, "drift": None}
    codes = codes.clone()
    codes[3, 1] = 1
    assert tracker.outcome(codes) == {"collision_rate": 0.5, "dead_codes": 0.0, "drift": 0.25}
