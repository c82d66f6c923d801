"""Begin a run with what an earlier one has learned.

Tensors are matched by name, shape and dtype, so an ID model hands its user tables, its tower and
its heads to a token model and keeps the rest. Two kinds of table fit without equal shapes: one
that has more rows now (its first rows are taken over), and the tables of tokens that were fitted
anew (`farewell tokenize --drift-from` says which old row fits which new one). What a row stands for
is checked where it can be: token tables need the vocabulary they were trained with, and a table
whose ids are hashed into its rows can't grow, since every id would land elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharding.tables import TableSpec
from tokenization.artifact import TokenArtifact
from trainer.checkpoint import (
    CheckpointError,
    Checkpoints,
    make_room,
    open_checkpoint,
    raise_everywhere,
)
from trainer.distributed import Ranks
from trainer.experiment import Experiment
from trainer.modules.hybrid_tokens import ITEM_ID
from trainer.modules.learned_tokens import LearnedTokensConfig
from trainer.parallelize import ParallelModel, unwrapped
from trainer.reshard import fill_rows, kind_misfit, misfit
from trainer.residual_ids import RESIDUAL_IDS, digest_of
from trainer.run_inputs import check_embeddings_made, embeddings_made
from trainer.state_parts import Box, Part, fused_kernels, parts_of
from trainer.stored_state import MANIFEST, StoredState, StoredTensor

logger = logging.getLogger(__name__)

Outcome = Literal["taken", "grown", "remapped", "new", "left"]
"""Equal; first rows; rows by a remap; keeps its initial values; in the checkpoint alone."""
_TOKEN_ROLES = {"gen_token": "gen_rows.npy", "mem_token": "mem_rows.npy"}

_OF_TOKENIZER = (
    *("network/encoder.", "network/quantizer."),
    *("network/num_steps/", "network/initial_collision_rate/"),
)
"""Of a tokenizer inside the model, with the count of steps that decides when it rests."""


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What to take over, and from where.

    Args:
        checkpoint: folder of a checkpoint, or of a run: its newest one.
        parts: `dense` for the network alone, `tables` for the tables alone.
        tables: names of the tables to take over; empty for all that fit.
        optimizer_state: take optimizer state over as well (never of remapped rows).
        remap: folder that `farewell tokenize --drift-from` wrote: which old row of the token
            tables each new row takes over.
    """

    checkpoint: Path
    parts: Literal["all", "dense", "tables"] = "all"
    tables: tuple[str, ...] = ()
    optimizer_state: bool = False
    remap: Path | None = None

    def __post_init__(self) -> None:
        """Check that every choice has an effect.

        Raises:
            ValueError: naming the two that exclude each other.
        """
        for name in ("tables", "remap"):
            if self.parts == "dense" and getattr(self, name):
                raise ValueError(
                    f"warm start: {name} is {getattr(self, name)}, but parts='dense' takes no "
                    "table over; leave one of the two out"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        remap = None if self.remap is None else str(self.remap)
        return {**asdict(self), "checkpoint": str(self.checkpoint), "remap": remap}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WarmStart:
        """From what `to_dict` gave."""
        remap = None if values["remap"] is None else Path(values["remap"])
        return cls(
            checkpoint=Path(values["checkpoint"]),
            parts=values["parts"],
            tables=tuple(values["tables"]),
            optimizer_state=values["optimizer_state"],
            remap=remap,
        )


@dataclass(frozen=True)
class Taken:
    """What became of one table or tensor.

    Attributes:
        name: `table/<name>`, `network/<name>`.
        outcome: what happened.
        why: reason or sizes; empty where everything is equal.
    """

    name: str
    outcome: Outcome
    why: str = ""


def warm_start(
    config: WarmStart,
    parallel: ParallelModel,
    ranks: Ranks,
    *,
    experiment: Experiment,
    tokens: TokenArtifact | None,
    residual_ids: NDArray[np.int64] | None = None,
) -> list[Taken]:
    """Take over what fits; every rank calls this, before the first step.

    Args:
        config: what to take over.
        parallel: model, with its initial weights.
        ranks: this process among all.
        experiment: of the run that begins.
        tokens: that it reads.
        residual_ids: of the items that have rows in a table beside them, see
            `trainer.residual_ids`.

    Returns:
        What became of each table and tensor of the model and of the checkpoint, sorted by name;
        the same on every rank.

    Raises:
        CheckpointError: when the checkpoint is damaged, or nothing of it fits.
        ValueError: when a named table or the remap is not there.
    """
    source = open_checkpoint(_find(config.checkpoint), ranks)
    choice = _Choice(config, experiment, tokens, source, ranks.world_size, residual_ids)
    if config.optimizer_state:
        make_room(parallel, source.tensors)
    parts = parts_of(parallel)
    choice.look_at_encoder(parts)
    taken = {part.name: choice.outcome(part) for part in parts if "/state/" not in part.name}
    error = None
    try:
        _fill_all(parts, taken, choice, source)
    except CheckpointError as found:
        error = str(found)
    raise_everywhere(error, ranks)
    for kernel in fused_kernels(unwrapped(parallel.model).sparse):
        kernel.purge()  # rows that are cached on the device are older than what was just loaded
    report = _joined(taken.values(), source, ranks)
    if not any(one.outcome in ("taken", "grown", "remapped") for one in report):
        raise CheckpointError(f"{source.path}: nothing of it fits this model: {report[0].why}")
    logger.info("warm start from %s: %s", source.path, counts(report))
    return report


def _fill_all(
    parts: Sequence[Part], taken: Mapping[str, Taken], choice: _Choice, source: StoredState
) -> None:
    for part in parts:
        owner, is_state, _ = part.name.partition("/state/")
        whole = f"{owner}/{'weight' if owner.startswith('table/') else 'value'}"
        outcome = taken[whole if is_state else part.name].outcome
        if is_state:
            outcome = choice.state_outcome(part, outcome)
        stored = source.tensors.get(part.name)
        if stored is None or outcome == "new":
            continue
        if outcome == "remapped":
            fill_remapped(part, stored, source, choice.remap(part))
        else:
            fill_rows(part, stored, source)


def counts(report: Sequence[Taken]) -> dict[str, int]:
    """Number of tables and tensors by outcome."""
    outcomes = [one.outcome for one in report]
    return {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}


class _Choice:
    """Decides about each tensor, in the same way on every rank."""

    def __init__(
        self,
        config: WarmStart,
        experiment: Experiment,
        tokens: TokenArtifact | None,
        source: StoredState,
        num_ranks: int,
        residual_ids: NDArray[np.int64] | None = None,
    ) -> None:
        self._config = config
        self._residual_ids = digest_of(residual_ids)
        self._num_ranks = num_ranks
        self._source = source
        self._specs = {table.name: table for table in experiment.tables}
        self._hashed = _hashed_tables(experiment)
        item = experiment.model.item
        self._learned = item if isinstance(item, LearnedTokensConfig) else None
        self._other_encoder: str | None = None
        self._embeddings_made = embeddings_made(item)
        self._same_vocabulary = (
            tokens is not None and source.state.get("vocabulary") == tokens.vocabulary_fingerprint
        )
        if unknown := sorted(set(config.tables) - set(self._specs)):
            raise ValueError(
                f"warm start: no table {', '.join(unknown)} in this model; it has "
                f"{', '.join(sorted(self._specs))}"
            )
        self._remaps = {
            name: _read_remap(config.remap, table)
            for name, table in self._specs.items()
            if config.remap is not None and self._learned is None
            if table.role in _TOKEN_ROLES and table.pooling == "none"
        }
        if config.remap is not None and not self._remaps:
            raise ValueError(
                f"warm start: remap is {config.remap}, but the model has no table of "
                "tokens from an artifact"
            )

    def look_at_encoder(self, parts: Sequence[Part]) -> None:
        """A tokenizer inside the model is taken over as a whole, or begins anew."""
        try:
            check_embeddings_made(self._embeddings_made, self._source)
        except ValueError as error:
            self._other_encoder = str(error)
            return
        for part in parts:
            if part.name.startswith("network/encoder.") and "/state/" not in part.name:
                found = self.outcome(part)
                if found.outcome != "taken":
                    self._other_encoder = f"{part.name} is not taken over ({found.why})"
                    return

    def remap(self, part: Part) -> NDArray[np.int64]:
        """Old row of each new row of the table that a part is of."""
        return self._remaps[part.name.split("/")[1]]

    def outcome(self, part: Part) -> Taken:
        """What becomes of a weight, a parameter or a buffer."""
        kind, name = part.name.split("/")[:2]
        stored = self._source.tensors.get(part.name)
        if kind == "network" and self._config.parts == "tables":
            return Taken(part.name, "new", "tables alone were asked for")
        if self._other_encoder is not None and part.name.startswith(_OF_TOKENIZER):
            return Taken(part.name, "new", self._other_encoder)
        if kind != "network" and self._config.parts == "dense":
            return Taken(part.name, "new", "the network alone was asked for")
        if kind == "sparse":
            owners = set(part.name.split(".")) & set(self._specs)
            if self._config.tables and not owners & set(self._config.tables):
                return Taken(part.name, "new", "not among the tables asked for")
            for owner in owners:
                if (why := self._other_rows(self._specs[owner])) is not None:
                    return Taken(part.name, "new", why)
            return self._of_equal_shape(part, stored)
        if kind == "table" and self._config.tables and name not in self._config.tables:
            return Taken(part.name, "new", "not among the tables asked for")
        if stored is None:
            return Taken(part.name, "new", "not in the checkpoint")
        if kind == "table":
            return self._of_table(part, stored, self._specs[name])
        return self._of_equal_shape(part, stored)

    def state_outcome(self, part: Part, of_weight: Outcome) -> Outcome:
        """What becomes of optimizer state, by what became of the values that it belongs to."""
        stored = self._source.tensors.get(part.name)
        fits = stored is not None and (part.shape == () or stored.shape[1:] == part.shape[1:])
        if not fits or not self._config.optimizer_state or of_weight == "remapped":
            return "new"
        assert stored is not None
        return "new" if kind_misfit(part, stored) else of_weight

    def _of_equal_shape(self, part: Part, stored: StoredTensor | None) -> Taken:
        if stored is None:
            return Taken(part.name, "new", "not in the checkpoint")
        reason = misfit(part, stored)
        return Taken(part.name, "new", reason) if reason else Taken(part.name, "taken")

    def _other_rows(self, table: TableSpec) -> str | None:
        """Why ids have other rows of a managed table than they had; None when they have not."""
        was_managed = any(
            name.startswith("sparse/") and table.name in name.split(".")
            for name in self._source.tensors
        )
        if was_managed != (table.managed is not None):
            return f"its rows were {'' if was_managed else 'not '}managed"
        saved_by = self._source.state["world_size"]
        if was_managed and saved_by != self._num_ranks:
            return f"managed by {saved_by} ranks, which rank holds an id depends on their number"
        return None

    def _other_tokens(self) -> str | None:
        """Why rows of token tables stand for other tokens than they did; None when they do not."""
        if self._learned is None:
            why = "its rows stand for other tokens; give the remap of `tokenize --drift-from`"
            return None if self._same_vocabulary else why
        if self._other_encoder is not None:
            return self._other_encoder
        # A tokenizer inside the model comes with the network, and its codebooks say what rows mean.
        stored = self._source.tensors.get("network/quantizer.codebooks_LKD/value")
        shape = (self._learned.num_levels, self._learned.num_codes, self._learned.dim)
        if self._config.parts == "all" and stored is not None and stored.shape == shape:
            return None
        return "its rows stand for codewords that are not taken over with them"

    def _of_table(self, part: Part, stored: StoredTensor, table: TableSpec) -> Taken:
        if (reason := kind_misfit(part, stored)) or stored.shape[1:] != part.shape[1:]:
            return Taken(part.name, "new", reason or misfit(part, stored) or "")
        if (why := self._other_rows(table)) is not None:
            return Taken(part.name, "new", why)
        if table.name in self._remaps:
            rows = self._remaps[table.name]
            carried = int(((rows >= 0) & (rows < stored.shape[0])).sum())
            why = f"{carried} of {table.rows} rows from {stored.shape[0]}, others their mean"
            return Taken(part.name, "remapped", why)
        if table.role in _TOKEN_ROLES and (why := self._other_tokens()) is not None:
            return Taken(part.name, "new", why)
        kept = self._source.state.get(RESIDUAL_IDS)
        if ITEM_ID in table.features and kept is not None and kept != self._residual_ids:
            why = "its rows belong to the items with most impressions of another training part"
            return Taken(part.name, "new", why)
        if stored.shape == part.shape:
            return Taken(part.name, "taken")
        sizes = f"{stored.shape[0]} -> {part.shape[0]} rows"
        if table.name in self._hashed:
            why = f"{sizes}, but what a row stands for depends on their number"
            return Taken(part.name, "new", why)
        if stored.shape[0] > part.shape[0]:
            return Taken(part.name, "new", f"{sizes}: fewer than were trained")
        return Taken(part.name, "grown", sizes)


def fill_remapped(
    part: Part, stored: StoredTensor, source: StoredState, rows: NDArray[np.int64]
) -> None:
    """Rows of the old table at their new places; the mean of the old table where there is none.

    Args:
        part: of the new table.
        stored: the old table's weights.
        source: the checkpoint.
        rows: for each row of the new table the old one, -1 for none.
    """
    (first_row, first_column), (num_rows, num_columns) = part.box.offsets, part.box.sizes
    wanted = torch.from_numpy(rows[first_row : first_row + num_rows])
    columns = Box((0, first_column), (stored.shape[0], num_columns))
    total = torch.zeros(num_columns, dtype=torch.float64)
    missing = torch.ones(num_rows, dtype=torch.bool)
    with torch.no_grad():
        for chunk in stored.chunks:
            shared = columns.overlap(chunk.box)
            if shared is None:
                continue
            values: Tensor = source.read(stored, chunk, shared.inside(chunk.box))
            into = shared.inside(columns)[1]
            total[into] += values.double().sum(dim=0)
            at = wanted - shared.offsets[0]
            here = (at >= 0) & (at < shared.sizes[0])
            part.tensor[here, into] = values[at[here]].to(part.tensor)
            missing &= ~here
        part.tensor[missing] = (total / stored.shape[0]).to(part.tensor)


def _find(path: Path) -> Path:
    """The checkpoint that a path names."""
    if (path / MANIFEST).is_file():
        return path
    newest = Checkpoints(path / "checkpoints").newest()
    if newest is None:
        raise CheckpointError(
            f"{path}: neither a checkpoint nor a run with a complete one; expected a folder "
            "step_<10 digits>, or one that holds checkpoints/"
        )
    return newest


def _hashed_tables(experiment: Experiment) -> set[str]:
    """Tables whose ids land on rows that depend on the number of rows."""
    hashed = {f.name for f in experiment.data.schema.pooled_features if f.hashed}
    item = experiment.item_tables.get(ITEM_ID)
    if item is not None and getattr(experiment.model.item, "rows", None) != "own":
        hashed |= set(item.features)
    return {
        table.name for table in experiment.tables if hashed & set(table.features) or table.managed
    }


def _read_remap(folder: Path | None, table: TableSpec) -> NDArray[np.int64]:
    assert folder is not None
    path = folder / _TOKEN_ROLES[table.role]
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: can't be read ({error}); expected what `farewell tokenize --drift-from` "
            "writes"
        ) from error
    if rows.dtype != np.int64 or rows.ndim != 1 or len(rows) < table.rows or rows.min() < -1:
        raise ValueError(
            f"{path}: {rows.dtype} {list(rows.shape)}, expected at least {table.rows} int64 row "
            f"numbers (of table {table.name!r}), -1 for none"
        )
    return rows[: table.rows]


def _joined(own: Iterable[Taken], source: StoredState, ranks: Ranks) -> list[Taken]:
    """All ranks' outcomes, and what is left in the checkpoint."""
    gathered = ranks.gather(list(own))
    joined: list[Taken] | None = None
    if gathered is not None:
        by_name = {one.name: one for of_rank in gathered for one in of_rank}
        for name in source.tensors:
            if "/state/" not in name and not name.startswith("random/"):
                by_name.setdefault(name, Taken(name, "left", "not in this model"))
        joined = [by_name[name] for name in sorted(by_name)]
    report: list[Taken] = ranks.broadcast(joined)
    return report
