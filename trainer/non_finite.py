"""Where a non-finite number comes from: a feature, rows of a table, a weight, or a layer.

Used when the loss of a batch is NaN or infinite, before its backward pass: every rank looks at its
part of the batch and of the weights, then all go through the model once more with an ear at each
layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from trainer.batch import Batch
from trainer.distributed import Ranks
from trainer.models.ranking_model import RankingModel
from trainer.parallelize import ParallelModel, unwrapped
from trainer.state_parts import Part, parts_of

_EXTREME = 1e6
"""Dense values above this are worth a hint; schemas have `transform` for them."""
_BLOCK_ROWS = 1 << 20
_SHOWN = 3

Finding = tuple[int, str]
"""How near to the cause (0 is nearest), and a sentence without its end."""


def cause_of(
    parallel: ParallelModel,
    batch: Batch,
    ranks: Ranks,
    *,
    dense_features: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> str:
    """Say what is not finite, on which ranks; every rank calls this and gets the same text.

    The model's forward pass runs once more in training mode, without gradients.

    Args:
        parallel: the model, out of the hands of any pipeline.
        batch: of this rank.
        ranks: this process among all.
        dense_features: names of the columns of `batch.dense_BF`; without them they are numbered.
        labels: names of the columns of `batch.labels_BN`.
    """
    own = [
        *_bad_columns(batch.dense_BF, batch.row_B, "dense feature", dense_features),
        *_bad_columns(batch.labels_BN, batch.row_B, "label", labels),
        *_bad_weights(parallel),
        *_first_bad_layer(unwrapped(parallel.model), batch),
        *_extreme_value(batch, dense_features),
    ]
    everyone = ranks.broadcast(ranks.gather(own))
    found = [(order, rank, text) for rank, one in enumerate(everyone) for order, text in one]
    ranks_of: dict[str, list[int]] = {}
    for _, rank, text in sorted(found):
        ranks_of.setdefault(text, []).append(rank)
    if not ranks_of:
        return (
            "A second pass over the batch was finite on every rank: dropout drew other masks, or a "
            "value lies at the end of what its type can hold"
        )
    return "; ".join(
        f"rank {', '.join(map(str, on))}: {text}" for text, on in list(ranks_of.items())[:_SHOWN]
    )


def _bad_columns(
    values_BC: Tensor, row_B: Tensor, what: str, names: Sequence[str]
) -> Iterator[Finding]:
    """Columns of the batch that hold a NaN or an infinite number."""
    bad_BC = ~values_BC.isfinite()
    for column in bad_BC.any(dim=0).nonzero().flatten().tolist():
        at = int(bad_BC[:, column].nonzero()[0])
        yield (
            0,
            f"{what} {_name(names, column)} is {float(values_BC[at, column])} in row "
            f"{int(row_B[at])} of the log ({int(bad_BC[:, column].sum())} rows of the batch)",
        )


def _bad_weights(parallel: ParallelModel) -> Iterator[Finding]:
    """Tables and parameters that hold a NaN or an infinite number on this rank."""
    parameters = {f"network/{name}/value" for name, _ in parallel.network.named_parameters()}
    for part in parts_of(parallel):
        owner, _, leaf = part.name.rpartition("/")
        if part.tensor.numel() and (leaf == "weight" or part.name in parameters):
            yield from _bad_rows(part, _weight_name(owner))


def _bad_rows(part: Part, name: str) -> Iterator[Finding]:
    rows = part.tensor.reshape(part.tensor.shape[0] if part.tensor.dim() else 1, -1)
    first, num_bad, value = 0, 0, 0.0
    for start in range(0, len(rows), _BLOCK_ROWS):  # a mask of the whole table may not fit
        block = rows[start : start + _BLOCK_ROWS]
        bad_R = ~block.isfinite().all(dim=1)
        if not num_bad and bool(bad_R.any()):
            at = int(bad_R.nonzero()[0])
            first = start + at
            value = float(block[at][~block[at].isfinite()][0])
        num_bad += int(bad_R.sum())
    if num_bad:
        first += part.box.offsets[0] if part.box.offsets else 0
        yield (
            1,
            f"{name} holds {value} in row {first}, and not only finite numbers in {num_bad} of the "
            f"{len(rows)} rows here: an earlier step has put it there",
        )


def _weight_name(owner: str) -> str:
    kind, _, name = owner.partition("/")
    return f"table {name!r}" if kind == "table" else f"weight {kind}.{name}"


def _first_bad_layer(model: RankingModel, batch: Batch) -> list[Finding]:
    """The innermost layer whose output is the first that is not finite."""
    found: list[Finding] = []

    def before(network: nn.Module, inputs: tuple[Any, ...]) -> None:
        _, pooled, items = inputs[:3]
        for feature, value in {**pooled.to_dict(), **items}.items():
            if not _is_finite(value):
                found.append((2, f"the embedding of feature {feature!r} is not finite"))

    def after(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if found or _is_finite(output):
                return
            where = "the output of" if _is_finite(inputs) else "what goes into"
            layer = f"layer {name} ({type(module).__name__})"
            found.append((2, f"{where} {layer} is the first that is not finite"))

        return hook

    handles = [model.network.register_forward_pre_hook(before)]
    for owner in ("network", "objective"):
        for path, module in model.get_submodule(owner).named_modules(prefix=owner):
            handles.append(module.register_forward_hook(after(path)))
    parts, model.parts = model.parts, None  # which go backward on their way
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model(batch)
    finally:
        model.parts = parts
        for handle in handles:
            handle.remove()
    return found


def _extreme_value(batch: Batch, names: Sequence[str]) -> list[Finding]:
    """The dense feature with the largest value, where that is extreme."""
    size_BF = batch.dense_BF.abs().nan_to_num(posinf=0.0)
    if not size_BF.numel() or float(size_BF.max()) < _EXTREME:
        return []
    at, column = divmod(int(size_BF.argmax()), size_BF.shape[1])
    return [
        (
            3,
            f"dense feature {_name(names, column)} is {float(batch.dense_BF[at, column]):g} in row "
            f"{int(batch.row_B[at])} of the log, which is extreme",
        )
    ]


def _name(names: Sequence[str], column: int) -> str:
    return repr(names[column]) if names else f"number {column}"


def _is_finite(value: Any) -> bool:
    """Whether all floating-point numbers inside are finite, however nested."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, JaggedTensor | KeyedTensor):
        return _is_finite(value.values())
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_is_finite, value))
    return True
