"""SASRec (Kang and McAuley) as a retriever: a causal transformer that predicts the next item.

Legend: B cases of a batch, T clicks, D dimensions, N items.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from tokenization.sasrec import SASRec, SASRecNetwork, last_clicks
from trainer.baselines.retriever import best_items, popularity
from trainer.data.dataset import Dataset
from trainer.data.ragged import Ragged
from trainer.ranked_lists import score_lists
from trainer.retrieval_task import RetrievalTask

logger = logging.getLogger(__name__)

_SCORED_VALUES = 1 << 24
_CHOSEN_AT = 10


@dataclass(frozen=True, kw_only=True)
class SASRecRetrieverConfig:
    """The row, as a value.

    Args:
        sasrec: sizes and training; its seed is replaced. `num_epochs` is the most there are.
        title: of the row.
        check_every: epochs between two looks at the validation cases.
        patience: looks without progress after which training ends.

    Raises:
        ValueError: when `check_every` or `patience` is not positive.
    """

    sasrec: SASRec = field(default_factory=lambda: SASRec(num_epochs=100))
    title: str = "SASRec"
    check_every: int = 5
    patience: int = 3

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("check_every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"SASRec retriever: {name} is {getattr(self, name)}, expected at least 1"
                )

    def build(self, dataset: Dataset) -> SASRecRetriever:
        """The retriever, not yet fitted; it reads nothing of the log but its task."""
        return SASRecRetriever(self)


class SASRecRetriever:
    """The network of `tokenization.sasrec`, and all items by their product with its last state.

    The weights are those of the epoch with the best NDCG@10 on the validation cases; without
    validation cases, those of the last epoch. Cases without a history get the most popular items.

    Args:
        config: None for the defaults.
    """

    def __init__(self, config: SASRecRetrieverConfig | None = None) -> None:
        self.config = config or SASRecRetrieverConfig()
        self.title = self.config.title

    def fit(self, task: RetrievalTask, *, seed: int) -> None:
        """Train on the sequences of two items or more.

        Raises:
            ValueError: when there is none.
        """
        config = dataclasses.replace(self.config.sasrec, seed=seed)
        check_every = self.config.check_every
        lengths, starts = task.train.lengths, task.train.offsets[:-1]
        longer = lengths > 1
        if not longer.any():
            raise ValueError(
                f"{self.title}: expected training sequences of two items or more, found none"
            )
        sequences_UT = last_clicks(
            task.train.values, starts[longer], lengths[longer], config.max_length + 1
        )
        self._leaves_out = task.leave_out_history
        self._popularity = popularity(task)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._network = SASRecNetwork(task.num_items, config)
            best, best_epoch, weights = -1.0, 0, None
            for epoch, loss in enumerate(config.epochs(self._network, sequences_UT), start=1):
                if not len(task.valid) or (epoch % check_every and epoch < config.num_epochs):
                    continue
                lists = self.top(task.valid.history, _CHOSEN_AT)
                ndcg = score_lists(lists, task.valid, at=(_CHOSEN_AT,))[_CHOSEN_AT].mean()["ndcg"]
                self._network.train()
                logger.info(
                    "%s: epoch %d, loss %.4f, valid NDCG@10 %.4f", self.title, epoch, loss, ndcg
                )
                if ndcg > best:
                    best, best_epoch = ndcg, epoch
                    weights = copy.deepcopy(self._network.state_dict())
                elif epoch - best_epoch >= self.config.patience * check_every:
                    break
        if weights is not None:
            self._network.load_state_dict(weights)

    @torch.no_grad()
    def top(self, histories: Ragged, k: int) -> NDArray[np.int64]:
        """See `Retriever.top`."""
        network = self._network.eval()
        items_ND = network.items.weight[1:]
        length = len(network.positions.weight)
        part = max(1, _SCORED_VALUES // max(len(items_ND), 4 * length * items_ND.shape[1]))
        found = [np.zeros((0, k), dtype=np.int64)]
        for start in range(0, len(histories), part):
            mine = histories.gather(np.arange(start, min(start + part, len(histories))))
            clicks_BT = torch.from_numpy(
                last_clicks(mine.values, mine.offsets[:-1], mine.lengths, length)
            )
            last_B = (clicks_BT > 0).sum(dim=1)
            # Without the columns that nobody fills; at least one, for cases without a history.
            clicks_BT = clicks_BT[:, : max(1, int(last_B.max()))]
            state_BD = network(clicks_BT)[torch.arange(len(last_B)), last_B.clamp_min(1) - 1]
            scores = (state_BD @ items_ND.T).numpy()
            scores[last_B.numpy() == 0] = self._popularity
            found.append(best_items(scores, k, left_out=mine if self._leaves_out else None))
        return np.concatenate(found)
