"""Beam search with a ranker's layers: exact where it can be, batched, and by size of catalogue.

Run::

    OMP_NUM_THREADS=1 python benchmarks/beam_search.py --json beam_search.json

A DIG network of the paper's sizes with random weights (speed does not depend on them) searches
random SIDs. The loop that it is set against is what one would write first: a user after the other,
and for each user the children of one beam after the other. Sides take turns; what counts is the
processor time of the process, which a busy machine disturbs least.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from record import Record, compare_in_turn, records_table, write_results
from torch import Tensor

from sharding.tables import TableSpec
from trainer.generation import TupleTrie
from trainer.host_memory import reuse_freed_memory
from trainer.models.dcn_moe import DCNMoEConfig
from trainer.models.dig import DigNetwork
from trainer.models.dig_config import DigModelConfig
from trainer.modules.learned_tokens import LearnedTokensConfig, StaticField
from trainer.modules.next_token_config import ContextRoles
from trainer.modules.request_encoder import Request
from trainer.modules.target_attention import Past
from trainer.prefix_search import prefix_search
from trainer.retrieval import DigScorer
from trainer.run_folder import write_json

BATCHED_AT_LEAST = 10.0
WITHIN = 0.5


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure beam search.

    Args:
        catalogues: Numbers of items.
        num_levels: L.
        num_codes: K.
        width: Beams.
        users: Searched together.
        history: Items in each user's history.
        rounds: Turns; medians count.
        precision: Of all sides; `farewell retrieve` takes bf16 where a processor multiplies it.
        seed: Of weights, SIDs and users.
        json: Result file.
        write_note: Also write a dated note into benchmarks/results.
    """

    catalogues: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    num_levels: int = 4
    num_codes: int = 256
    width: int = 50
    users: int = 32
    history: int = 50
    rounds: int = 3
    precision: Literal["fp32", "bf16"] = "bf16"
    seed: int = 0
    json: Path | None = None
    write_note: bool = False


def network_of(settings: Settings) -> DigNetwork:
    """Four fields and d = 64 as in the paper; six dense features, two of them cross."""
    item = LearnedTokensConfig(
        fields=tuple(StaticField(name=f"field_{number}", rows=10) for number in range(4)),
        num_levels=settings.num_levels,
        num_codes=settings.num_codes,
    )
    names = ("user_id", "hour")
    tables = [
        TableSpec(name=name, rows=100, dim=32, features=(name,), role="side") for name in names
    ]
    roles = ContextRoles(
        query_features=("hour",),
        user_features=("user_id",),
        query_dense=(),
        user_dense=(0, 1, 2, 3),
        tasks=("click",),
    )
    network = DigNetwork(
        DigModelConfig(item=item, tower=DCNMoEConfig()),
        tables=tables,
        num_dense=6,
        num_tasks=1,
        num_histories=1,
        roles=roles,
    )
    return network.eval()


def request_of(network: DigNetwork, settings: Settings) -> Request:
    """Random users with histories of one length."""
    dim = network.config.item.dim
    shape = (settings.users, settings.history)
    past = Past(torch.randn(*shape, dim), torch.randn(*shape, dim), torch.ones(shape).bool())
    return Request(torch.randn(settings.users, network.user_dim), past)


class Searcher:
    """One network and catalogue."""

    def __init__(self, network: DigNetwork, sid_LKD: Tensor, trie: TupleTrie, width: int) -> None:
        self.network, self.sid_LKD, self.trie, self.width = network, sid_LKD, trie, width
        self.item = network.config.item
        self.scored = 0

    def batched(self, request: Request, width: int | None = None) -> tuple[Tensor, Tensor]:
        """SIDs and scores of all users together."""
        scorer = DigScorer(self.network, request, self.sid_LKD)
        found = prefix_search(
            scorer,
            num_rows=len(request.user_BE),
            num_levels=self.item.num_levels,
            num_codes=self.item.num_codes,
            width=width or self.width,
            trie=self.trie,
            device=request.user_BE.device,
        )
        return found.codes_RWL, found.scores_RW

    def one_by_one(self, request: Request) -> list[Tensor]:
        """The same of each user alone."""
        users = torch.arange(len(request.user_BE)).split(1)
        return [self.batched(request.take(user))[0] for user in users]

    @torch.no_grad()
    def loop(self, request: Request) -> list[list[tuple[int, ...]]]:
        """SIDs of each user, beam by beam, with nothing batched but a beam's children."""
        return [
            self._one(request.take(torch.tensor([user]))) for user in range(len(request.user_BE))
        ]

    def _one(self, request: Request) -> list[tuple[int, ...]]:
        """One user's search."""
        zeros = torch.zeros(self.item.dim), torch.zeros(self.network.cross_dim)
        beams = [((), 0, *zeros)]
        self.scored = 0
        for level in range(self.item.num_levels):
            longer = []
            for codes, node, prefix, u2t in beams:
                _, code, child = self.trie.children(level, torch.tensor([node]))
                prefixes = prefix + self.sid_LKD[level][code]
                said = self.network.token_cross.level(level, request.user_BE, prefixes, code)
                total = u2t + said
                logits = self.network.recall(request, prefixes[None], total[None] / (level + 1))
                self.scored += len(code)
                longer += [
                    (score, (*codes, number), node_of, prefixes[at], total[at])
                    for at, (score, number, node_of) in enumerate(
                        zip(logits[0, :, 0].tolist(), code.tolist(), child.tolist(), strict=True)
                    )
                ]
            longer.sort(key=lambda one: -one[0])
            beams = [one[1:] for one in longer[: self.width]]
        return [codes for codes, *_ in beams]


def seconds_of(function: Callable[[], object]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def check_exact(settings: Settings, network: DigNetwork, sid_LKD: Tensor) -> int:
    """With as many beams as prefixes, the search must find what scoring every SID finds.

    Returns:
        number of SIDs.
    """
    rng = np.random.default_rng(settings.seed)
    codes = rng.integers(0, settings.num_codes, (300, settings.num_levels))
    trie = TupleTrie(codes, num_codes=settings.num_codes)
    request = request_of(network, settings).take(torch.arange(4))
    searcher = Searcher(network, sid_LKD, trie, trie.num_nodes[-1])
    found, scores = searcher.batched(request)
    distinct = torch.from_numpy(np.unique(codes, axis=0))
    with torch.no_grad():
        prefix = network.prefixes(sid_LKD, distinct).expand(4, -1, -1, -1)
        said = network.token_cross(request.user_BE[:, None], prefix, distinct).mean(dim=2)
        every = network.recall(request, prefix[:, :, -1], said)[..., 0]
    expected, order = every.sort(dim=1, descending=True)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    for row in range(4):
        mine = {tuple(one) for one in found[row, :10].tolist()}
        best = {tuple(one) for one in distinct[order[row, :10]].tolist()}
        if len(mine & best) < 9:  # the tenth may tie
            raise AssertionError(f"beam search found {mine}, exhaustive search {best}")
    return trie.num_nodes[-1]


def main(settings: Settings) -> None:
    """Measure, print, write."""
    reuse_freed_memory()
    torch.manual_seed(settings.seed)
    network = network_of(settings)
    sid_LKD = torch.randn(settings.num_levels, settings.num_codes, network.config.item.dim)
    tuples = check_exact(settings, network, sid_LKD)
    print(f"equal to exhaustive search over {tuples} SIDs")
    request = request_of(network, settings)
    rng = np.random.default_rng(settings.seed)
    searchers = {}
    for number in settings.catalogues:
        codes = rng.integers(0, settings.num_codes, (number, settings.num_levels), dtype=np.int16)
        trie = TupleTrie(codes.astype(np.int64), num_codes=settings.num_codes)
        searchers[number] = Searcher(network, sid_LKD, trie, settings.width)
    few = request.take(torch.arange(2))
    rates: dict[int, dict[str, list[float]]] = {
        number: {"batched": [], "alone": [], "loop": []} for number in searchers
    }
    scored = {}
    for _ in range(settings.rounds):
        for number, searcher in searchers.items():
            for name, function, users in (
                ("batched", lambda s=searcher: s.batched(request), settings.users),
                ("alone", lambda s=searcher: s.one_by_one(few), 2),
                ("loop", lambda s=searcher: s.loop(few), 2),
            ):
                with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
                    rates[number][name].append(users / seconds_of(function))
            scored[number] = searcher.scored
    records = []
    for number, by_name in rates.items():
        what = f"users/s, {number:,} items, beam {settings.width}"
        records.append(
            compare_in_turn(
                what,
                ours=by_name["batched"],
                peer=by_name["loop"],
                peer_name="a loop over users and beams",
                at_least=BATCHED_AT_LEAST,
            )
        )
        records.append(
            compare_in_turn(
                what,
                ours=by_name["batched"],
                peer=by_name["alone"],
                peer_name="ours, a user at a time",
                at_least=None,
            )
        )
    records.append(constant_time(rates, records[0]))
    lines = [
        "| items | prefixes scored a user | users/s | ms a user, in batches | us a prefix | "
        "ms a user alone |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for number, by_name in rates.items():
        batched, alone = (statistics.median(by_name[name]) for name in ("batched", "alone"))
        lines.append(
            f"| {number:,} | {scored[number]:,} | {batched:.1f} | {1e3 / batched:.1f} | "
            f"{1e6 / batched / scored[number]:.2f} | {1e3 / alone:.1f} |"
        )
    values = [record.to_dict() for record in records]
    body = "\n".join(lines) + "\n\n" + records_table(values)
    print(body)
    if settings.json is not None:
        write_json(settings.json, values)
    if settings.write_note:
        write_results(
            "beam_search",
            title="Beam search with a ranker",
            command="OMP_NUM_THREADS=1 python benchmarks/beam_search.py --write-note",
            notes=notes(settings, tuples),
            body=body,
        )


def constant_time(rates: dict[int, dict[str, list[float]]], like: Record) -> Record:
    """Time a user in the largest catalogue against that in the smallest."""
    times = {number: 1 / statistics.median(rate["batched"]) for number, rate in rates.items()}
    middle = statistics.median(times.values())
    ratios = [value / middle for value in times.values()]
    smallest, largest = min(times), max(times)
    return Record(
        benchmark=f"seconds a user, {smallest:,} to {largest:,} items",
        ours=times[largest],
        peer=times[smallest],
        peer_name=f"{smallest:,} items",
        ratio=times[largest] / times[smallest],
        spread=(min(ratios), max(ratios)),
        target=f"all within {WITHIN:.0%} of their median",
        holds=all(abs(ratio - 1) <= WITHIN for ratio in ratios),
        versions=like.versions,
        runs={str(number): [1 / one for one in rate["batched"]] for number, rate in rates.items()},
    )


def notes(settings: Settings, tuples: int) -> str:
    """What the numbers are of."""
    return (
        f"L = {settings.num_levels}, K = {settings.num_codes}, d = 64, {settings.users} users at a "
        f"time, histories of {settings.history}, {settings.precision}, {torch.get_num_threads()} "
        "thread(s), processor time of the process, in memory that is reused, as in `farewell "
        "retrieve`. SIDs are random, so prefixes are as many as they can be. With beam "
        f">= prefixes the search equals scoring each of {tuples} SIDs (checked first). Only "
        "prefixes that exist are scored: a small catalogue has few children a beam, so it is "
        "searched faster than the beam alone would allow; once the beam's prefixes have about all "
        "K children, time no longer grows with the catalogue."
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
