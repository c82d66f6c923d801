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
from beam_search_sides import Searcher, check_as_loop, check_exact, network_of, request_of
from record import Record, compare_in_turn, records_table, write_results

from trainer.host_memory import reuse_freed_memory
from trainer.modules.request_encoder import Request
from trainer.run_folder import write_json

BATCHED_AT_LEAST = 10.0
WITHIN = 0.5
TRIE, DENSE, FREE = "existing prefixes", "dense SIDs", "all prefixes"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure beam search.

    Args:
        catalogues: Numbers of items.
        num_levels: L.
        num_codes: K.
        dense_codes: K of a code space that every catalogue fills.
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
    dense_codes: int = 16
    width: int = 50
    users: int = 32
    history: int = 50
    rounds: int = 5
    precision: Literal["fp32", "bf16"] = "bf16"
    seed: int = 0
    json: Path | None = None
    write_note: bool = False


@dataclass
class Case:
    """A way to search a catalogue, and what it took.

    Attributes:
        space: of the SIDs.
        items: in the catalogue.
        searcher: of it.
        scored: prefixes a user.
        rates: users/s of each round, by side.
    """

    space: str
    items: int
    searcher: Searcher
    scored: float
    rates: dict[str, list[float]]

    @property
    def seconds(self) -> float:
        """A user, in batches."""
        return 1 / statistics.median(self.rates["batched"])


def seconds_of(function: Callable[[], object]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main(settings: Settings) -> None:
    """Measure, print, write."""
    reuse_freed_memory()
    torch.manual_seed(settings.seed)
    sizes = {"users": settings.users, "history": settings.history}
    networks = {
        num_codes: network_of(settings.num_levels, num_codes)
        for num_codes in (settings.num_codes, settings.dense_codes)
    }
    dim = networks[settings.num_codes].config.item.dim
    sids = {number: torch.randn(settings.num_levels, number, dim) for number in networks}
    request = request_of(networks[settings.num_codes], **sizes)
    few = request.take(torch.arange(2))
    rng = np.random.default_rng(settings.seed)
    cases = []
    for space, num_codes in (
        (TRIE, settings.num_codes),
        (DENSE, settings.dense_codes),
        (FREE, settings.num_codes),
    ):
        for number in settings.catalogues:
            codes = rng.integers(0, num_codes, (number, settings.num_levels), dtype=np.int16)
            searcher = Searcher(
                networks[num_codes],
                sids[num_codes],
                codes,
                width=settings.width,
                free=space == FREE,
            )
            scored = searcher.scored(few)
            sides = ("batched", "alone", "loop") if space == TRIE else ("batched",)
            cases.append(Case(space, number, searcher, scored, {side: [] for side in sides}))
    tuples = check_exact(
        networks[settings.num_codes], sids[settings.num_codes], few, seed=settings.seed
    )
    check_as_loop(cases[0].searcher, few)
    print(f"equal to exhaustive search over {tuples} SIDs, and to the loop")
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
        for _ in range(settings.rounds):
            for case in cases:
                measure(case, settings.users, request, few)
    records = compared(cases, settings)
    values = [record.to_dict() for record in records]
    body = cases_table(cases) + "\n\n" + records_table(values)
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


def measure(case: Case, users: int, request: Request, few: Request) -> None:
    """One turn of each side."""
    for side, function, number in (
        ("batched", lambda: case.searcher.batched(request), users),
        ("alone", lambda: case.searcher.one_by_one(few), len(few.user_BE)),
        ("loop", lambda: case.searcher.loop(few), len(few.user_BE)),
    ):
        if side in case.rates:
            case.rates[side].append(number / seconds_of(function))


def cases_table(cases: list[Case]) -> str:
    """What each search took."""
    lines = [
        "| search | items | prefixes scored a user | of those with all children | users/s | "
        "ms a user, in batches | us a prefix | ms a user alone |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        alone = case.rates.get("alone")
        lines.append(
            f"| {case.space}, K = {case.searcher.item.num_codes} | {case.items:,} | "
            f"{case.scored:,.0f} | {case.scored / case.searcher.most:.0%} | "
            f"{1 / case.seconds:.1f} | {1e3 * case.seconds:.1f} | "
            f"{1e6 * case.seconds / case.scored:.2f} | "
            f"{f'{1e3 / statistics.median(alone):.1f}' if alone else ''} |"
        )
    return "\n".join(lines)


def compared(cases: list[Case], settings: Settings) -> list[Record]:
    """Ours against the loop and against itself, and by size of catalogue."""
    records = []
    for case in cases:
        for side, name, at_least in (
            ("loop", "a loop over users and beams", BATCHED_AT_LEAST),
            ("alone", "ours, a user at a time", None),
        ):
            if side in case.rates:
                records.append(
                    compare_in_turn(
                        f"users/s, {case.items:,} items, beam {settings.width}",
                        ours=case.rates["batched"],
                        peer=case.rates[side],
                        peer_name=name,
                        at_least=at_least,
                    )
                )
    versions = records[0].versions
    for space in (TRIE, DENSE, FREE):
        records.append(constant_time([case for case in cases if case.space == space], versions))
    return records


def constant_time(cases: list[Case], versions: dict[str, str]) -> Record:
    """Time a user in the largest catalogue against that in the smallest."""
    cases = sorted(cases, key=lambda case: case.items)
    middle = statistics.median(case.seconds for case in cases)
    ratios = [case.seconds / middle for case in cases]
    smallest, largest = cases[0], cases[-1]
    filled = smallest.scored / smallest.searcher.most
    return Record(
        benchmark=f"seconds a user, {smallest.items:,} to {largest.items:,} items, "
        f"{smallest.space}, K = {smallest.searcher.item.num_codes} (the smallest catalogue has "
        f"{filled:.0%} of the prefixes that the beam lets in)",
        ours=largest.seconds,
        peer=smallest.seconds,
        peer_name=f"{smallest.items:,} items",
        ratio=largest.seconds / smallest.seconds,
        spread=(min(ratios), max(ratios)),
        target=f"all within {WITHIN:.0%} of their median",
        holds=all(abs(ratio - 1) <= WITHIN for ratio in ratios),
        versions=versions,
        runs={str(case.items): [1 / rate for rate in case.rates["batched"]] for case in cases},
    )


def _sentence(words: str) -> str:
    """With a capital, and everything else as it was."""
    return words[0].upper() + words[1:]


def notes(settings: Settings, tuples: int) -> str:
    """What the numbers are of."""
    return (
        f"L = {settings.num_levels}, d = 64, {settings.users} users at a time, histories of "
        f"{settings.history}, {settings.precision}, {torch.get_num_threads()} thread(s), processor "
        "time of the process, in memory that is reused, as in `farewell retrieve`. With beam >= "
        f"prefixes the search equals scoring each of {tuples} SIDs with the network's own forward "
        "pass, and in the smallest catalogue it ends in the SIDs of the loop but for one that "
        "rounding may choose (both checked first, in fp32, K = 256, existing prefixes). SIDs are "
        "random, so prefixes are as many as they can be.\n\n"
        "Time follows the prefixes that are scored: the children of the beams. What is asked is "
        f"time within {WITHIN:.0%} where the beam caps them. Three searches show when it does. "
        f"*{_sentence(TRIE)}* (the default, K = {settings.num_codes}): only prefixes that some "
        "item has are scored. In the smallest catalogue it is the items that limit them, not the "
        "beam: most codes follow no beam there, it is searched faster than the beam alone would "
        f"allow, and this row stands outside of the range. *{_sentence(DENSE)}* (K = "
        f"{settings.dense_codes}): the same search where SIDs are so few that at every size most "
        f"prefixes have all children; large catalogues share SIDs. *{_sentence(FREE)}* (K = "
        f"{settings.num_codes}): the free search, in which all K codes after each beam are scored, "
        "as the paper words it (section 3.4); what it finds is looked up in the index, the only "
        "step that knows the catalogue."
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
