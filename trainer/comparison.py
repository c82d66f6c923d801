"""A comparison is a value too: the rows of a report, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.baselines.base import Baseline
from trainer.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """One trained row.

    Args:
        title: shown in the report.
        tower: readable name of the interaction architecture.
        experiment: that is trained; its seed is replaced.
    """

    title: str
    tower: str
    experiment: Experiment


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows trained and scored on the same split of the same log.

    Args:
        name: of the report and its folder.
        rows: trained rows.
        baselines: rows that train no network, first in the report.
        oracle: task -> column of the log that holds the true probability, where it is known.

    Raises:
        ValueError: when rows differ in data or split, or a title stands twice.
    """

    name: str
    rows: tuple[ComparedRow, ...]
    baselines: tuple[Baseline, ...] = ()
    oracle: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the rows can be compared."""
        if not self.rows:
            raise ValueError(f"comparison {self.name!r}: no rows")
        titles = [row.title for row in self.rows]
        if len(set(titles)) < len(titles):
            raise ValueError(f"comparison {self.name!r}: a title stands twice in {titles}")
        first = self.rows[0].experiment.data
        for row in self.rows[1:]:
            data = row.experiment.data
            if (data.folder, data.schema, data.split) != (first.folder, first.schema, first.split):
                raise ValueError(
                    f"comparison {self.name!r}: row {row.title!r} reads {data.folder} with "
                    f"{data.split}, row {titles[0]!r} reads {first.folder} with {first.split}; "
                    "rows must share data, schema and split"
                )
