"""A comparison is a value too: the rows of a report, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sharding.folder_names import check_folder_name
from trainer.baselines.base import Baseline
from trainer.experiment import Experiment
from trainer.retrieval_study import RetrievalStudy


@dataclass(frozen=True, kw_only=True)
class PaperGain:
    """What a paper reports for a row: relative gains over its reference row, in percent."""

    auc: float | None = None
    qauc: float | None = None


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """One trained row.

    Args:
        title: shown in the report.
        tower: readable name of the interaction architecture.
        experiment: that is trained; its seed is replaced.
        paper: the paper's gains, one a task in the order of the schema's labels; fewer where the
            paper reports fewer tasks.
    """

    title: str
    tower: str
    experiment: Experiment
    paper: tuple[PaperGain, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A size that the rows of a study vary; its figure draws quality and cost against it.

    Args:
        axis: name of the size.
        points: title of a row -> the series that it belongs to, and its size.
    """

    axis: str
    points: Mapping[str, tuple[str, float]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a comparison asks: its reference, and the paper's table or figure that it repeats.

    Args:
        question: one sentence, shown under the headline.
        source: of the paper's numbers, e.g. `TRM Table 2`.
        reference: title of the row that gains are taken over; None for the best item-ID row.
        equal_dense: rows are meant to have equal dense parameters, across towers too.
        heat_map: name of a bucketing; draws gain by row and bucket.
        geometry: embedding tables are measured over training (norm variance, spectrum).
        sweep: a size that rows vary, to be drawn.
        notes: what can't be repeated, and other things that a reader must know.
    """

    question: str
    source: str
    reference: str | None = None
    equal_dense: bool = False
    heat_map: str | None = None
    geometry: bool = False
    sweep: Sweep | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows trained and scored on the same split of the same log.

    Args:
        name: of the report and its folder.
        rows: trained rows.
        baselines: rows that train no network, first in the report.
        oracle: task -> column of the log that holds the true probability, where it is known.
        study: the question, where the comparison repeats a study of a paper.
        retrieval: what is asked of rows as retrievers.

    Raises:
        ValueError: when rows differ in data or split, a title stands twice, or the study names a
            row that is not there.
    """

    name: str
    rows: tuple[ComparedRow, ...]
    baselines: tuple[Baseline, ...] = ()
    oracle: Mapping[str, str] = field(default_factory=dict)
    study: Study | None = None
    retrieval: RetrievalStudy | None = None

    def __post_init__(self) -> None:
        """Check that the rows can be compared."""
        check_folder_name(self.name, of="comparison")
        if not self.rows:
            raise ValueError(f"comparison {self.name!r}: no rows")
        titles = [row.title for row in self.rows]
        if len(set(titles)) < len(titles):
            raise ValueError(f"comparison {self.name!r}: a title stands twice in {titles}")
        if self.study is not None and self.study.reference not in (None, *titles):
            raise ValueError(
                f"comparison {self.name!r}: the reference is {self.study.reference!r}, expected "
                f"one of {titles}"
            )
        if self.retrieval is not None:
            self.retrieval.check(titles)
        sweep = None if self.study is None else self.study.sweep
        if sweep is not None and (unknown := sorted(set(sweep.points) - set(titles))):
            raise ValueError(
                f"comparison {self.name!r}: the sweep names {unknown}, expected rows of {titles}"
            )
        first = self.rows[0].experiment.data
        for row in self.rows[1:]:
            data = row.experiment.data
            if (data.folder, data.schema, data.split) != (first.folder, first.schema, first.split):
                raise ValueError(
                    f"comparison {self.name!r}: row {row.title!r} reads {data.folder} with "
                    f"{data.split}, row {titles[0]!r} reads {first.folder} with {first.split}; "
                    "rows must share data, schema and split"
                )
            if len(row.paper) > len(first.schema.labels):
                raise ValueError(
                    f"comparison {self.name!r}: row {row.title!r} has the paper's gains of "
                    f"{len(row.paper)} tasks, but the schema has {len(first.schema.labels)} labels"
                )
