"""Cost of the history modules: it grows with the positions there are, not with padded length.

Run::

    python benchmarks/history_cost.py --json history_cost.json

Forward and backward pass of TargetAttention and FeedbackSum on histories of skewed lengths (a
lognormal of sigma 1: the longest of a few hundred is some ten times the mean) against the same
equations on padded tensors, whose results are checked to be equal first. Lengths and sides are run
in turn; what counts is the processor time of the process, which a busy machine disturbs least.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from record import Record, compare_in_turn, records_table, write_results
from torch import Tensor, nn

from trainer.modules.target_attention import FeedbackSum, TargetAttention
from trainer.run_folder import write_json

CONSTANT_WITHIN = 0.8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure history modules.

    Args:
        lengths: Mean numbers of history items.
        batch_size: Impressions.
        dim: Of item vectors.
        kinds: Kinds of feedback.
        positions_per_item: History positions that share a distinct item.
        rounds: Turns; medians count.
        seed: Of lengths and items.
        json: Result file.
        write_note: Also write a dated note into benchmarks/results.
    """

    lengths: tuple[int, ...] = (50, 200, 1000)
    batch_size: int = 64
    dim: int = 48
    kinds: int = 3
    positions_per_item: float = 4.0
    rounds: int = 9
    seed: int = 0
    json: Path | None = None
    write_note: bool = False


@dataclass(frozen=True)
class Past:
    """Histories of a batch, ragged and padded."""

    item_UD: Tensor
    candidate_B: Tensor
    history_T: Tensor
    kind_T: Tensor
    offsets: Tensor

    @property
    def longest(self) -> int:
        """Positions of the longest history."""
        return int(self.offsets.diff().max())

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """What the modules take."""
        return (self.item_UD, self.candidate_B, self.history_T, self.kind_T, self.offsets)

    def padded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Item and kind of each position (B, longest), and which positions there are."""
        lengths_B = self.offsets.diff()
        there_BL = torch.arange(self.longest)[None] < lengths_B[:, None]
        item_BL = torch.zeros(there_BL.shape, dtype=torch.int64)
        kind_BL = torch.zeros(there_BL.shape, dtype=torch.int64)
        item_BL[there_BL], kind_BL[there_BL] = self.history_T, self.kind_T
        return item_BL, kind_BL, there_BL


def draw(settings: Settings, mean: int) -> Past:
    """Histories with lognormal lengths of this mean."""
    rng = np.random.default_rng(settings.seed)
    drawn = rng.lognormal(0.0, 1.0, settings.batch_size)
    lengths = torch.from_numpy(np.maximum(1, drawn * mean / drawn.mean()).astype(np.int64))
    positions = int(lengths.sum())
    distinct = max(1, int(positions / settings.positions_per_item))
    torch.manual_seed(settings.seed)
    return Past(
        torch.randn(distinct, settings.dim, requires_grad=True),
        torch.randint(distinct, (settings.batch_size,)),
        torch.randint(distinct, (positions,)),
        torch.randint(settings.kinds, (positions,)),
        torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
    )


def padded_forward(attention: TargetAttention, feedback: FeedbackSum, past: Past) -> Tensor:
    """The modules' equations on padded tensors; projections once an item, as ours."""
    item_BL, kind_BL, there_BL = past.padded()
    at_BL = item_BL * attention.num_kinds + kind_BL
    key, value, value_of_sum = (
        linear(past.item_UD).view(-1, attention.dim)[at_BL]
        for linear in (attention.key, attention.value, feedback.value)
    )
    candidate_BD = past.item_UD[past.candidate_B]
    score_BL = torch.einsum("bd,bld->bl", attention.query(candidate_BD), key)
    score_BL = (score_BL * attention.dim**-0.5).masked_fill(~there_BL, float("-inf"))
    attended_BD = torch.einsum("bl,bld->bd", score_BL.softmax(dim=1), value)
    sum_BD = (value_of_sum * there_BL[..., None]).sum(dim=1)
    sum_BD = sum_BD * there_BL.sum(dim=1, keepdim=True).rsqrt()
    return torch.cat([attended_BD, sum_BD, feedback.query(candidate_BD) * sum_BD], dim=1)


def seconds(forward: Callable[[], Tensor], modules: nn.Module, past: Past) -> float:
    """Of this process's processor time, for one forward and backward pass."""
    modules.zero_grad()
    past.item_UD.grad = None
    start = time.process_time()
    forward().square().mean().backward()
    return time.process_time() - start


def main(settings: Settings) -> None:
    """Measure, print, write."""
    torch.manual_seed(settings.seed)
    attention = TargetAttention(settings.dim, num_kinds=settings.kinds)
    feedback = FeedbackSum(settings.dim, num_kinds=settings.kinds)
    modules = nn.ModuleList([attention, feedback])
    pasts = {mean: draw(settings, mean) for mean in settings.lengths}
    sides: dict[tuple[int, str], Callable[[], Tensor]] = {}
    for mean, past in pasts.items():

        def ours(past: Past = past) -> Tensor:
            arguments = past.arguments
            return torch.cat([attention(*arguments), feedback(*arguments)], dim=1)

        def padded(past: Past = past) -> Tensor:
            return padded_forward(attention, feedback, past)

        with torch.no_grad():
            torch.testing.assert_close(ours(), padded(), atol=1e-4, rtol=1e-4)
        sides |= {(mean, "ours"): ours, (mean, "padded"): padded}
    spent: dict[tuple[int, str], list[float]] = {side: [] for side in sides}
    for turn in range(settings.rounds + 1):
        for side, forward in sides.items():
            one = seconds(forward, modules, pasts[side[0]])
            if turn:
                spent[side].append(one)
    records: list[Record] = []
    rates: dict[int, list[float]] = {}
    lines = [
        "| mean length | positions | padded to | ours, ms | padded, ms | ours, ns a position |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for mean, past in pasts.items():
        positions = past.history_T.shape[0]
        rates[mean] = [positions / one for one in spent[mean, "ours"]]
        own, peer = (statistics.median(spent[mean, side]) for side in ("ours", "padded"))
        lines.append(
            f"| {mean} | {positions:,} | {past.longest * settings.batch_size:,} | "
            f"{own * 1e3:.1f} | {peer * 1e3:.1f} | {own / positions * 1e9:.0f} |"
        )
        records.append(
            compare_in_turn(
                f"history modules, impressions/s at mean length {mean}",
                ours=[settings.batch_size / one for one in spent[mean, "ours"]],
                peer=[settings.batch_size / one for one in spent[mean, "padded"]],
                peer_name=f"the same equations on padded tensors, torch {torch.__version__}",
                at_least=None,
            )
        )
    short, long = min(rates), max(rates)
    records.append(
        compare_in_turn(
            f"history modules, positions/s at mean length {long}",
            ours=rates[long],
            peer=rates[short],
            peer_name=f"ours at mean length {short}",
            at_least=CONSTANT_WITHIN,
        )
    )
    values = [record.to_dict() for record in records]
    body = "\n".join([*lines, "", records_table(values)])
    print(body)
    if settings.json is not None:
        write_json(settings.json, values)
    if settings.write_note:
        write_results(
            "history_cost",
            title="Cost of history modules",
            command="python benchmarks/history_cost.py --write-note",
            notes=(
                f"Forward and backward of TargetAttention and FeedbackSum, fp32, batch "
                f"{settings.batch_size}, dim {settings.dim}, {settings.kinds} kinds of feedback, "
                f"{settings.positions_per_item:g} positions a distinct item, "
                f"{torch.get_num_threads()} thread(s), processor time of the process, since the "
                "machine was shared. Both sides project keys and values once a distinct item; the "
                "padded one gathers, masks and reduces (B, longest, D). Equal results are checked "
                "first. Time that grows with positions means equal positions/s."
            ),
            body=body,
        )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
