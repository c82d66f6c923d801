"""A seeded search-log simulator with a known best possible AUC.

Each request is a user with a query who is shown a page of items, half of them drawn from the
query's part of the tree and half from the whole catalogue, both by Zipf weight. The logit of a
click is the sum of user, query and position biases and of three item-dependent terms (quality
for everyone, fit to the user, fit to the query); a play is a click followed by a second draw.
Rows are made block by block, so memory does not grow with the length of the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.causal import CausalColumns, CausalConfig, CausalFeatures
from trainer.data.ragged import Ragged
from trainer.data.streaming_auc import StreamingAUC
from trainer.data.synthetic_config import DAY, MAX_HISTORY, START, SyntheticConfig, schema
from trainer.data.synthetic_world import Doubles, Ints, SyntheticWorld
from trainer.data.writer import DatasetWriter, Manifest, Progress

BLOCK_REQUESTS = 4_096
"""Requests that share a random stream; part of what a seed means."""
CLICK_SCALES = (0.9, 0.9, 0.6)
PLAY_SCALES = (0.8, 0.4, 0.2)
"""Standard deviations of the item's quality, its fit to the user and its fit to the query."""
POSITION_SLOPE = -0.08
CALIBRATION_REQUESTS = 20_000


@dataclass(frozen=True)
class Impressions:
    """R rows of the log; integers are int64, labels int8.

    Attributes:
        requests: page of results that the row belongs to.
        users: user ids.
        queries: query ids.
        items: item ids.
        positions: place on the page, from 0.
        timestamps: seconds.
    """

    requests: Ints
    users: Ints
    queries: Ints
    items: Ints
    positions: Ints
    timestamps: Ints


@dataclass(frozen=True)
class Outcomes:
    """What happened, and how probable it was.

    Attributes:
        p_click: float64, probability of a click.
        p_play: float64, probability of a play, never above `p_click`.
        click: int8 label.
        play: int8 label, 0 where there was no click.
    """

    p_click: Doubles
    p_play: Doubles
    click: NDArray[np.int8]
    play: NDArray[np.int8]


class SyntheticLog:
    """Draws impressions and their outcomes.

    Args:
        config: size, character and seed.
    """

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self.world = SyntheticWorld(config)
        rng = np.random.default_rng([config.seed, 4])
        sample = self._impressions(
            rng, rng.integers(config.num_requests, size=CALIBRATION_REQUESTS)
        )
        # Each term has its scale over impressions, in the semantic and the idiosyncratic part.
        self._spread = np.ones((2, 2, 3))
        self._spread = np.array([self.item_terms(sample, task).std(axis=2) for task in (0, 1)])
        self._intercepts = np.zeros(2)
        click, play = self._logits(sample)
        self._intercepts[0] = _intercept(click, config.click_rate)
        clicks = rng.random(len(click)) < _sigmoid(click + self._intercepts[0])
        self._intercepts[1] = _intercept(play[clicks], config.play_rate)

    def blocks(self) -> Iterator[tuple[Impressions, Outcomes]]:
        """Yield the whole log in time order."""
        config = self.config
        for block, first in enumerate(range(0, config.num_requests, BLOCK_REQUESTS)):
            rng = np.random.default_rng([config.seed, 5, block])
            last = min(first + BLOCK_REQUESTS, config.num_requests)
            impressions = self._impressions(rng, np.arange(first, last))
            outcomes = self._outcomes(rng, impressions)
            yield impressions, outcomes

    def item_terms(self, rows: Impressions, task: int) -> Doubles:
        """Item-dependent terms of a logit, each of unit scale.

        Args:
            rows: R impressions.
            task: 0 for click, 1 for play given a click.

        Returns:
            (2, 3, R): semantic and idiosyncratic part of quality, fit to user, fit to query.
        """
        world = self.world
        parts = []
        for latent_ID in (world.semantic_ID, world.idiosyncratic_ID):
            item_RD = latent_ID[rows.items]
            parts.append(
                [
                    item_RD @ world.quality_2D[task],
                    np.einsum("rd,rd->r", item_RD, world.user_UD[rows.users]),
                    np.einsum("rd,rd->r", item_RD, world.query_QD[rows.queries]),
                ]
            )
        return np.array(parts, np.float64) / self._spread[task][:, :, None]

    def item_logits(self, rows: Impressions, task: int) -> Doubles:
        """Item-dependent logit in two parts (2, R): told by content, and idiosyncratic."""
        share = self.config.idiosyncratic_share
        scales = np.array((CLICK_SCALES, PLAY_SCALES)[task])
        parts = np.einsum("ptr,t->pr", self.item_terms(rows, task), scales)
        return parts * np.sqrt([[1 - share], [share]])

    def click_gradients(self, users: Ints, queries: Ints) -> Doubles:
        """What the click logit of a context gains by each latent of the item, which is all it does.

        The logit is linear in the item's latents, so the length of its gradient is the smallest
        Lipschitz constant (L_eta of TRM Eq. 9 at s = 1) of the context.

        Args:
            users: (C,) of each context.
            queries: (C,) of each context.

        Returns:
            (C, 2 * D): by semantic latents, then by idiosyncratic ones.
        """
        world, share = self.world, self.config.idiosyncratic_share
        directions_CTD = np.stack(
            [
                np.broadcast_to(world.quality_2D[0], world.user_UD[users].shape),
                world.user_UD[users],
                world.query_QD[queries],
            ],
            axis=1,
        )
        weights_PT = np.array(CLICK_SCALES) / self._spread[0] * np.sqrt([[1 - share], [share]])
        gradients_CPD = np.einsum("ctd,pt->cpd", directions_CTD, weights_PT)
        return gradients_CPD.reshape(len(users), -1)

    def probabilities(self, rows: Impressions) -> tuple[Doubles, Doubles]:
        """True probability of a click (R,), and of a play given a click (R,)."""
        click_logit, play_logit = self._logits(rows)
        return _sigmoid(click_logit), _sigmoid(play_logit)

    def _impressions(self, rng: np.random.Generator, requests: Ints) -> Impressions:
        config, world = self.config, self.world
        page = config.impressions_per_request
        users = _weighted(rng, world.user_weight_cumulative, len(requests))
        queries = _weighted(rng, world.query_weight_cumulative, len(requests))
        step = config.days * DAY / config.num_requests
        seconds = ((requests + rng.random(len(requests))) * step).astype(np.int64)
        num_fitting = page - page // 2
        nodes = np.repeat(world.query_node_Q[queries], num_fitting)
        fitting = world.sample_slots(_spread_draws(rng, len(requests), num_fitting), nodes)
        others = world.sample_slots(_spread_draws(rng, len(requests), page // 2))
        pages = [part.reshape(len(requests), -1) for part in (fitting, others)]
        slots = rng.permuted(np.concatenate(pages, axis=1), axis=1)
        items = world.items_at(slots.ravel(), np.repeat(seconds, page))
        positions = np.tile(np.arange(page), len(requests))
        # The last request is cut where the log ends.
        keep = np.repeat(requests, page) * page + positions < config.num_rows
        return Impressions(
            requests=np.repeat(requests, page)[keep],
            users=np.repeat(users, page)[keep],
            queries=np.repeat(queries, page)[keep],
            items=items[keep],
            positions=positions[keep],
            timestamps=START + np.repeat(seconds, page)[keep],
        )

    def _logits(self, rows: Impressions) -> tuple[Doubles, Doubles]:
        """Logits of a click, and of a play given a click."""
        world = self.world
        biases = world.user_bias_U[rows.users] + world.query_bias_Q[rows.queries]
        click = self._intercepts[0] + biases + POSITION_SLOPE * rows.positions
        play = self._intercepts[1] + biases
        return click + self.item_logits(rows, 0).sum(0), play + self.item_logits(rows, 1).sum(0)

    def _outcomes(self, rng: np.random.Generator, rows: Impressions) -> Outcomes:
        p_click, p_play_after_click = self.probabilities(rows)
        click = rng.random(len(p_click)) < p_click
        play = click & (rng.random(len(p_click)) < p_play_after_click)
        return Outcomes(
            p_click=p_click,
            p_play=p_click * p_play_after_click,
            click=click.astype(np.int8),
            play=play.astype(np.int8),
        )


def write_synthetic(
    config: SyntheticConfig, folder: Path, *, progress: Progress | None = None
) -> Manifest:
    """Simulate a log and write it as a data set folder.

    The manifest's facts hold the AUC of the true probabilities (nothing can be better but by
    luck), the measured idiosyncratic share of the item-dependent click logit's variance, and the
    measured churn in births per live item and day.

    Args:
        config: size, character and seed.
        folder: target folder.
        progress: told about rows written.
    """
    log = SyntheticLog(config)
    world = log.world
    causal = CausalFeatures(
        num_users=config.num_users,
        item_genres=Ragged(world.category_1_I, np.arange(config.num_items_ever + 1)),
        num_genres=config.num_nodes[0],
        config=CausalConfig(max_history=MAX_HISTORY),
    )
    best = {"click": StreamingAUC(), "play": StreamingAUC()}
    moments = np.zeros((3, 2))
    written = 0
    source = {"simulator": repr(config)}
    with DatasetWriter(folder, schema=schema(config), source=source) as out:
        out.write_items(world.item_table())
        out.write_users(world.user_table())
        for rows, outcomes in log.blocks():
            columns = causal.transform(
                users=rows.users,
                items=rows.items,
                timestamps=rows.timestamps,
                positives=outcomes.click == 1,
            )
            out.write(_table(rows, outcomes, world, columns))
            best["click"].update(outcomes.p_click, outcomes.click)
            best["play"].update(outcomes.p_play, outcomes.play)
            told, untold = log.item_logits(rows, 0)
            for at, part in enumerate((untold, told + untold)):
                moments[:, at] += len(part), part.sum(), (part**2).sum()
            written += len(rows.users)
            if progress is not None:
                progress(written, config.num_rows)
        variances = moments[2] / moments[0] - (moments[1] / moments[0]) ** 2
        facts = {f"bayes_auc_{label}": auc.compute() for label, auc in best.items()}
        facts["idiosyncratic_share"] = float(variances[0] / variances[1])
        births = int(np.count_nonzero(world.born_I >= START))
        facts["churn_per_day"] = births / config.num_items / config.days
        return out.finish(facts)


def _table(
    rows: Impressions, outcomes: Outcomes, world: SyntheticWorld, columns: CausalColumns
) -> pa.Table:
    table: dict[str, Any] = {
        "user_id": rows.users,
        "item_id": rows.items,
        "timestamp": rows.timestamps,
        "request_id": rows.requests,
        "query_id": rows.queries.astype(np.int32),
        "query_cluster": world.query_cluster_Q[rows.queries].astype(np.int32),
        "position": rows.positions.astype(np.int32),
        "hour": (rows.timestamps // 3_600 % 24).astype(np.int32),
        **columns.table_columns(),
        "click": outcomes.click,
        "play": outcomes.play,
        "p_click": outcomes.p_click,
        "p_play": outcomes.p_play,
    }
    return pa.table(table)


def _weighted(rng: np.random.Generator, cumulative: Doubles, count: int) -> Ints:
    draws = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    return np.minimum(draws, len(cumulative) - 1)


def _spread_draws(rng: np.random.Generator, num_pages: int, count: int) -> Doubles:
    """Draw `count` numbers a page, one from each stretch of [0, 1), so that few items repeat."""
    return ((np.arange(count) + rng.random((num_pages, count))) / max(count, 1)).ravel()


def _sigmoid(logits: Doubles) -> Doubles:
    return 1 / (1 + np.exp(-logits))


def _intercept(logits: Doubles, rate: float) -> float:
    """Constant to add so that the mean probability is `rate`, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(logits + middle).mean() < rate else (low, middle)
    return (low + high) / 2
