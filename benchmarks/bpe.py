"""Mem-tokens (BPE over codes) against HF tokenizers, and at ten million items.

Run::

    python benchmarks/bpe.py --rounds 3 --json bpe.json
    python benchmarks/bpe.py --num-items 10000000 --num-merges 2000000 --peer none --json large.json

Items are drawn around templates of five codes whose frequencies fall off as a power, each code
replaced at random with a chance that grows with its level. The peer reads the same items as words
of five characters, one for each (level, code). Merges must be the same, in order.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
import tyro
from numpy.typing import NDArray
from record import Record, compare_in_turn, records_table, write_results
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from launch.token_tables import row_collisions
from tokenization.mem_tokens import MemTokens, Merges
from trainer.run_folder import package_versions, write_json

NUM_LEVELS = 5
NUM_CODES = 4096
MEMORY_TARGET = 6 * 2**30


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Time merges and encoding.

    Args:
        num_items: items.
        num_merges: merges.
        rounds: runs of each side, in turn.
        peer: whom to compare with.
        json: result file.
        write_note: leave a dated note under benchmarks/results.
    """

    num_items: int = 1_000_000
    num_merges: int = 200_000
    rounds: int = 3
    peer: Literal["tokenizers", "none"] = "tokenizers"
    json: Path | None = None
    write_note: bool = False


def draw_codes(num_items: int, seed: int = 0) -> NDArray[np.int32]:
    """Codes int32 `(N, 5)` around templates."""
    rng = np.random.default_rng(seed)
    num_templates = max(1000, num_items // 5)
    templates = rng.integers(0, NUM_CODES, (num_templates, NUM_LEVELS), dtype=np.int32)
    chosen = (num_templates * rng.random(num_items) ** 2).astype(np.int64)
    codes = templates[chosen]
    for level in range(NUM_LEVELS):
        replaced = rng.random(num_items) < 0.1 + 0.1 * level
        drawn = (NUM_CODES * rng.random(num_items) ** 3).astype(np.int32)
        codes[:, level] = np.where(replaced, drawn, codes[:, level])
    return codes


def hugging_face(codes: NDArray[np.int32], num_merges: int) -> tuple[float, list[str], list[str]]:
    """Return seconds of training, the tokens in order, and the alphabet."""
    symbols = codes + np.arange(NUM_LEVELS) * NUM_CODES
    # CJK, Hangul and supplementary ideographs: letters without a gap that splits words.
    points = [*range(0x4E00, 0x9FA6), *range(0x20000, 0x2A6D0)]
    letters = [chr(point) for point in points[: NUM_LEVELS * NUM_CODES]]
    words = ["".join(letters[symbol] for symbol in row) for row in symbols.tolist()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=len(letters) + num_merges,
        min_frequency=2,
        initial_alphabet=letters,
        special_tokens=[],
        show_progress=False,
    )
    start = time.perf_counter()
    tokenizer.train_from_iterator(words, trainer)
    seconds = time.perf_counter() - start
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return seconds, [token for token, _ in vocabulary], letters


def spelled(merges: Merges, letters: list[str]) -> list[str]:
    """The tokens of merges as strings of letters."""
    words = list(letters)
    for left, right in zip(merges.left.tolist(), merges.right.tolist(), strict=True):
        words.append(words[left] + words[right])
    return words


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Time our side in processes of its own (its peak memory is its own) and the peer."""
    ours, encode, peer = [], [], []
    result: dict[str, Any] = {}
    identical = True
    for round_ in range(settings.rounds):
        command = [sys.executable, __file__, "ours", str(settings.num_items)]
        done = subprocess.run(
            [*command, str(settings.num_merges)], check=True, capture_output=True, text=True
        )
        result = json.loads(done.stdout.splitlines()[-1])
        print(result, flush=True)
        ours.append(1 / result["fit_seconds"])
        encode.append(settings.num_items / result["encode_seconds"])
        if settings.peer == "tokenizers":
            codes = draw_codes(settings.num_items)
            seconds, tokens, letters = hugging_face(codes, settings.num_merges)
            print(f"tokenizers: {seconds:.1f} s", flush=True)
            peer.append(1 / seconds)
            if round_ == 0:
                merges = MemTokens(num_merges=settings.num_merges).fit(codes, num_codes=NUM_CODES)
                identical = tokens == spelled(merges, letters)
    what = f"BPE {settings.num_items:,} items x {result['num_merges']:,} merges"
    records = []
    if peer:
        name = f"tokenizers.BpeTrainer {tokenizers.__version__}"
        records.append(
            compare_in_turn(f"{what}: fits/s", ours=ours, peer=peer, peer_name=name, at_least=25.0)
        )
        records.append(
            own(f"{what}: merges identical and in order", float(identical), "1", identical)
        )
    slowest = max(1 / value for value in ours)
    large = settings.num_items >= 10_000_000
    records += [
        own(f"{what}: seconds, slowest run", slowest, "under 90 s", not large or slowest < 90),
        own(f"{what}: peak bytes", result["peak"], "under 6 GiB", result["peak"] < MEMORY_TARGET),
        own(
            f"{what}: encode items/s, slowest run",
            min(encode),
            "at least 2,000,000",
            min(encode) >= 2e6,
        ),
    ]
    records += [
        own(f"{what}: mem-tokens that share a row of {rows} with another", share, "", True)
        for rows, share in result["hash_collisions"].items()
    ]
    return [record.to_dict() for record in records]


def own(benchmark: str, value: float, target: str, holds: bool) -> Record:
    """A record without a peer."""
    return Record(
        benchmark=benchmark,
        ours=value,
        peer=0.0,
        peer_name="",
        ratio=0.0,
        spread=(0.0, 0.0),
        target=target,
        holds=holds,
        versions=package_versions(),
        runs={"ours": [value], "peer": []},
    )


def our_side(num_items: int, num_merges: int) -> None:
    """Fit and encode; print seconds, peak memory and hash collisions as JSON."""
    warm = draw_codes(1000)
    MemTokens(num_merges=10).fit(warm, num_codes=NUM_CODES).encode(warm, cover="finest")
    codes = draw_codes(num_items)
    start = time.perf_counter()
    merges = MemTokens(num_merges=num_merges).fit(codes, num_codes=NUM_CODES)
    fitted = time.perf_counter()
    merges.encode(codes, cover="finest")
    encoded = time.perf_counter()
    result = {
        "fit_seconds": fitted - start,
        "encode_seconds": encoded - fitted,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "num_merges": len(merges),
        "hash_collisions": {
            f"{share:g} x as many": row_collisions(len(merges), int(share * len(merges)))
            for share in (0.1, 0.5, 0.9)
        },
    }
    print(json.dumps(result))


def main(settings: Settings) -> None:
    """Measure, print and write."""
    records = measure(settings)
    for record in records:
        holds = "" if not record["target"] else "holds" if record["holds"] else "MISSED"
        ratio = f", ratio {record['ratio']:.1f}" if record["ratio"] else ""
        print(f"{record['benchmark']}: {record['ours']:.5g}{ratio} {record['target']} {holds}")
    if settings.json is not None:
        write_json(settings.json, records)
    if settings.write_note:
        theme = "bpe" if settings.peer == "tokenizers" else f"bpe_{settings.num_items // 10**6}m"
        write_results(
            theme,
            title=f"Mem-tokens (BPE over codes): {settings.num_items:,} items",
            command=(
                f"python benchmarks/bpe.py --num-items {settings.num_items} --num-merges "
                f"{settings.num_merges} --rounds {settings.rounds} --peer {settings.peer} "
                "--write-note"
            ),
            notes=(
                "Ours runs in a process of its own, compiled beforehand, from codes in memory to "
                "merges in memory. tokenizers trains on the same items as words of five "
                "characters; the words are ready when its clock starts. Merges are compared one "
                "by one, in order, in the first round."
            ),
            body=records_table(records),
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["ours"]:
        our_side(*map(int, sys.argv[2:]))
    else:
        main(tyro.cli(Settings, description=__doc__))
