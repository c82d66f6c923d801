"""The scaling study (TRM section 4.3, Figure 4): loss over tower size, and the law of each side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from sharding.folder_names import check_folder_name
from trainer.evaluation import NUM_RESAMPLES, EvaluationSplit, finite, interval_json, measure
from trainer.experiment import Experiment
from trainer.measurement import Estimate, Measurement
from trainer.scaling_law import (
    MIN_SIZES,
    ExponentDifference,
    ScalingFit,
    compare_exponents,
    fit_scaling,
)

SideKind = Literal["token", "id"]


@dataclass(frozen=True, kw_only=True)
class ScalingSide:
    """One curve: the same model with towers of several sizes.

    Args:
        title: shown in the report.
        kind: whether tokens or IDs stand for items.
        experiments: by growing size; nothing but the tower differs.

    Raises:
        ValueError: with fewer sizes than a law needs.
    """

    title: str
    kind: SideKind
    experiments: tuple[Experiment, ...]

    def __post_init__(self) -> None:
        """Check the number of sizes."""
        if len(self.experiments) < MIN_SIZES:
            raise ValueError(
                f"scaling side {self.title!r}: {len(self.experiments)} sizes, expected at least "
                f"{MIN_SIZES}, since a law has three parameters"
            )


@dataclass(frozen=True, kw_only=True)
class ScalingStudy:
    """Sides that are swept, and the question that is put to their exponents.

    Args:
        name: of the report and its folder.
        sides: curves.
        baseline: model over which gains in QAUC are shown (the paper's 7M MLP).
        question: titles of the token side and the ID side, of one tower, whose exponents decide.

    Raises:
        ValueError: when a title stands twice, sides read different logs, or the question names
            what is not there.
    """

    name: str
    sides: tuple[ScalingSide, ...]
    baseline: Experiment
    question: tuple[str, str]

    def __post_init__(self) -> None:
        """Check name, titles, logs and question."""
        check_folder_name(self.name, of="scaling study")
        kinds = {side.title: side.kind for side in self.sides}
        if len(kinds) < len(self.sides):
            raise ValueError(f"scaling study {self.name!r}: a title stands twice in {list(kinds)}")
        if [kinds.get(title) for title in self.question] != ["token", "id"]:
            raise ValueError(
                f"scaling study {self.name!r}: question is {self.question}, expected the titles of "
                f"a token side and an ID side among {kinds}"
            )
        for experiment in self.experiments:
            if experiment.data != self.baseline.data:
                raise ValueError(
                    f"scaling study {self.name!r}: {experiment.name} reads "
                    f"{experiment.data.folder}, the baseline {self.baseline.data.folder}; all must "
                    "share data, schema and split"
                )

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """Of all sides, without the baseline."""
        return tuple(experiment for side in self.sides for experiment in side.experiments)


@dataclass(frozen=True, kw_only=True)
class ScaledRun:
    """One trained model, all seeds.

    Args:
        dense_params: N, parameters outside embedding tables.
        flops_per_batch: forward + backward for one batch of `flops_batch`.
        flops_batch: impressions.
        samples: impressions trained on.
        train_seconds: of the median seed.
        scores: one a seed: task -> (rows,) probabilities.
    """

    dense_params: int
    flops_per_batch: int
    flops_batch: int
    samples: int
    train_seconds: float
    scores: tuple[Mapping[str, ArrayLike], ...]


def build_scaling_report(
    study: ScalingStudy,
    runs: Mapping[str, Sequence[ScaledRun]],
    baseline: ScaledRun,
    split: EvaluationSplit,
    *,
    dataset: str,
    command: str = "",
    machine: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Any]:
    """Measure every model, fit every side, compare exponents.

    Args:
        study: what was trained.
        runs: title of a side -> its models, by growing size.
        baseline: of the study.
        split: evaluated rows; its first task is the one whose loss is fitted.
        dataset: name of the data set.
        command: that makes the report again.
        machine: what it ran on, as shown.
        versions: package -> version.
        num_resamples: bootstrap draws of users.

    Returns:
        `scaling.json` as a dictionary without nan.
    """
    task = next(iter(split.labels))
    split = replace(split, labels={task: split.labels[task]}, bucketings={})
    base = Measurement.median(_measure(baseline, split, num_resamples))
    sides, fits = [], {}
    for number, side in enumerate(study.sides):
        measured = [_measure(run, split, num_resamples) for run in runs[side.title]]
        loss = [[seed.metrics[task]["logloss"] for seed in seeds] for seeds in measured]
        fits[side.title] = fit_scaling(
            [run.dense_params for run in runs[side.title]],
            [[one.value for one in seeds] for seeds in loss],
            np.stack([[one.samples for one in seeds] for seeds in loss]).transpose(2, 0, 1),
            seed=number + 1,
        )
        sides.append(
            {
                "title": side.title,
                "kind": side.kind,
                "points": [
                    _describe_point(run, Measurement.median(seeds), base, task, values)
                    for run, seeds, values in zip(runs[side.title], measured, loss, strict=True)
                ],
                "fit": _describe_fit(fits[side.title]),
            }
        )
    exponents = [
        {"a": a.title, "b": b.title, **_describe_difference(fits[a.title], fits[b.title])}
        for a, b in product(study.sides, study.sides)
        if (a.kind, b.kind) == ("token", "id")
    ]
    report: dict[str, Any] = {
        "study": study.name,
        "command": command,
        "dataset": dataset,
        "task": task,
        "split": {**asdict(split.rows), "users": split.num_users},
        "seeds": len(baseline.scores),
        "samples": baseline.samples,
        "machine": dict(machine or {}),
        "versions": dict(versions or {}),
        "bootstrap": {"resamples": num_resamples, "level": 0.95, "unit": split.unit},
        "question": list(study.question),
        "baseline": {
            "dense_params": baseline.dense_params,
            "flops_per_batch": baseline.flops_per_batch,
            "logloss": base.metrics[task]["logloss"].value,
            "qauc": finite(base.metrics[task]["qauc"].value),
        },
        "sides": sides,
        "exponents": exponents,
    }
    report["words"] = scaling_words(report)
    return report


def _measure(run: ScaledRun, split: EvaluationSplit, num_resamples: int) -> list[Measurement]:
    return [measure(scores, split, num_resamples=num_resamples) for scores in run.scores]


def _describe_point(
    run: ScaledRun,
    middle: Measurement,
    base: Measurement,
    task: str,
    losses: Sequence[Estimate],
) -> dict[str, Any]:
    qauc, base_qauc = middle.metrics[task]["qauc"], base.metrics[task]["qauc"]
    gain = qauc - base_qauc
    scale = 100 / base_qauc.value
    return {
        "dense_params": run.dense_params,
        "flops_per_batch": run.flops_per_batch,
        "flops_batch": run.flops_batch,
        "samples": run.samples,
        "train_seconds": run.train_seconds,
        "logloss": float(np.mean([one.value for one in losses])),
        "logloss_by_seed": [one.value for one in losses],
        "qauc": finite(qauc.value),
        "qauc_gain_percent": finite(scale * gain.value),
        "qauc_gain_ci": interval_json(scale * end for end in gain.ci),
    }


def _describe_fit(fit: ScalingFit) -> dict[str, Any]:
    return {
        "floor": finite(fit.law.floor),
        "factor": finite(fit.law.factor),
        "exponent": finite(fit.law.exponent),
        "exponent_ci": interval_json(fit.exponent_ci),
        "floor_ci": interval_json(fit.floor_ci),
        "undefined": fit.undefined,
        "noise": fit.noise,
        "noise_from": fit.noise_from,
    }


def _describe_difference(a: ScalingFit, b: ScalingFit) -> dict[str, Any]:
    found: ExponentDifference = compare_exponents(a, b)
    return {
        "difference": finite(found.difference),
        "ci": interval_json(found.ci),
        "undefined": found.undefined,
        "verdict": found.verdict,
    }


def scaling_words(report: Mapping[str, Any]) -> list[str]:
    """What the exponents say about beta_token > beta_id, the study's question first."""
    token, by_id = report["question"]
    fits = {side["title"]: side["fit"] for side in report["sides"]}
    (found,) = [one for one in report["exponents"] if (one["a"], one["b"]) == (token, by_id)]
    opening = {
        "larger": "The data support beta_token > beta_id",
        "smaller": "The data contradict beta_token > beta_id",
        "undecided": "The data do not decide whether beta_token > beta_id",
    }
    words = [
        f"{opening[found['verdict']]}: {token} {_exponent(fits[token])}, {by_id} "
        f"{_exponent(fits[by_id])}; {_difference(found)}."
    ]
    counts = dict.fromkeys(opening, 0)
    for one in report["exponents"]:
        counts[one["verdict"]] += 1
    words.append(
        f"Of {len(report['exponents'])} pairs of a token side and an ID side, beta is larger with "
        f"tokens in {counts['larger']}, smaller in {counts['smaller']}, undecided in "
        f"{counts['undecided']}."
    )
    flat = [title for title, fit in fits.items() if fit["exponent"] is None]
    if flat:
        words.append(
            f"Loss does not fall with size for {', '.join(flat)}: there is no exponent to compare."
        )
    sources = {fit["noise_from"] for fit in fits.values()}
    words.append(
        f"{report['seeds']} seed{'s' if report['seeds'] > 1 else ''}; scatter between trainings is "
        f"taken from {' and '.join(sorted(sources))}."
    )
    largest = max(point["dense_params"] for side in report["sides"] for point in side["points"])
    words.append(
        f"Every model saw {report['samples']:,} impressions once; the largest has "
        f"{largest / report['samples']:.2g} parameters for each of them, so what is measured is "
        "size at fixed data, not size with data to match."
    )
    return words


def _exponent(fit: Mapping[str, Any]) -> str:
    if fit["exponent"] is None:
        return "has no exponent"
    if None in fit["exponent_ci"]:
        return f"{fit['exponent']:.2f}"
    low, high = fit["exponent_ci"]
    return f"{fit['exponent']:.2f} [{low:.2f} {high:.2f}]"


def _difference(found: Mapping[str, Any]) -> str:
    if None in found["ci"]:
        return "no draw has both exponents"
    low, high = found["ci"]
    text = f"95 % interval of the difference {low:+.2f} to {high:+.2f}"
    if found["undefined"] >= 0.005:
        text += (
            f", without the {100 * found['undefined']:.0f} % of draws in which a loss does not "
            "fall with size"
        )
    return text
