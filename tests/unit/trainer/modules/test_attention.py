import math

import pytest
import torch

from trainer.modules.attention import FEW_TOKENS, attend


def naive(query, key, value, mask):
    out = torch.zeros(*query.shape[:3], value.shape[3], dtype=value.dtype)
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            for at in range(query.shape[2]):
                seen = [s for s in range(key.shape[2]) if mask is None or mask[at, s]]
                scores = torch.stack(
                    [query[row, head, at] @ key[row, head, s] for s in seen]
                ) / math.sqrt(query.shape[3])
                weights = scores.exp() / scores.exp().sum()
                out[row, head, at] = sum(
                    weight * value[row, head, s] for weight, s in zip(weights, seen, strict=True)
                )
    return out


@pytest.mark.parametrize("num_keys", [5, FEW_TOKENS + 1])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_loops(num_keys, masked):
    torch.manual_seed(0)
    query = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    key, value = (torch.randn(2, 2, num_keys, 4, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(3, num_keys) < 0.5 if masked else None
    if mask is not None:
        mask[:, 0] = True
    torch.testing.assert_close(attend(query, key, value, mask), naive(query, key, value, mask))
