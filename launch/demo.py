"""From nothing to the report on MovieLens-1M: data, embeddings, tokens, six rows, one page.

farewell demo
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from rich.console import Console

import launch.compare
import launch.data
from configs import datasets


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """How the demo is run.

    Args:
        seeds: each row is trained with so many seeds.
        ranks: processes on this machine.
    """

    seeds: int = 1
    ranks: int = 2


def main(args: Sequence[str]) -> None:
    """Run `farewell demo` with the words that follow the verb."""
    options = tyro.cli(DemoOptions, prog="farewell demo", description=__doc__, args=args)
    console = Console()
    if not datasets.movielens1m().data.folder.exists():
        console.print("[dim]$ farewell data movielens1m[/dim]")
        launch.data.main(["movielens1m"])
    words = ["id_vs_tokens.movielens1m"]
    words += ["--seeds", str(options.seeds), "--ranks", str(options.ranks)]
    console.print(f"[dim]$ farewell compare {' '.join(words)}[/dim]")
    launch.compare.main(words)
