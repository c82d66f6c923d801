"""Retrieval with a checkpoint of a run: for requests from a file, or for a part of the log.

Legend: R requests, K items that are kept.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from trainer.batch import Batch
from trainer.checkpoint_choice import AUTO, NEWEST
from trainer.data.dataset import Dataset
from trainer.data.reader import InteractionReader
from trainer.data.schema import RowRange
from trainer.distributed import start_ranks
from trainer.experiment import Experiment
from trainer.item_index import ItemIndex
from trainer.metrics import auc
from trainer.models.dig import DigNetwork
from trainer.parallelize import unwrapped
from trainer.ranked_lists import recall_and_ndcg
from trainer.retrieval import DigRetriever, build_index
from trainer.retrieval_files import PairFeatures, write_request_log
from trainer.retrieved_part import RetrievedPart
from trainer.run import Trainer
from trainer.run_folder import RunFolder, log_to

_BATCH = 64
MAX_TARGETS = 20_000
"""Positive impressions of a part of the log that are retrieved for, evenly spaced."""


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """How to retrieve.

    Args:
        width: beams.
        top: items that are kept.
        free: search all SIDs, not only those that exist.
        index: folder of the index; made from the checkpoint where it is missing, and kept up to
            date with items.parquet. None for `index` in the run folder.
    """

    width: int = 50
    top: int = 10
    free: bool = False
    index: Path | None = None

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: naming the option.
        """
        for name in ("width", "top"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, expected at least 1")
        if self.width < self.top:
            raise ValueError(
                f"--width is {self.width} and --top {self.top}; expected a beam for each item of "
                "the list, set --width to at least that"
            )


class TrainedRetriever:
    """A run's model and index; this process alone.

    Args:
        experiment: that was trained, with the same settings.
        folder: of the run.
        options: see :class:`Retrieval`.
        checkpoint: which one, see :func:`~trainer.checkpoint_choice.choose`.
        keeps_index: whether the index is read from the disk, and left there.

    Attributes:
        index_changes: what items.parquet did to the index on the disk, in words; None for nothing.

    Raises:
        CheckpointError: when there is no such checkpoint, or it is of other settings.
        IndexMismatchError: when the index is damaged or of another tokenizer.
        ValueError: for a model without a retrieval path.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        options: Retrieval,
        checkpoint: str = AUTO,
        *,
        keeps_index: bool = True,
    ) -> None:
        run = RunFolder(folder)
        ranks = start_ranks()
        log_to(run.log(ranks.rank))
        self.options = options
        # Parts of the network are called one by one, which FSDP does not expect; and there is no
        # other rank to hold a part of it.
        sharding = replace(experiment.sharding, fsdp_min_parameters=sys.maxsize)
        self.trainer = Trainer(replace(experiment, sharding=sharding), run, ranks)
        network = self.trainer.parallel.network
        if not isinstance(network, DigNetwork) or not network.config.recall_weight:
            raise ValueError(
                f"{experiment.name!r} has no retrieval path; expected a DigModelConfig with "
                "recall_weight above 0"
            )
        self.chosen = self.trainer.load_chosen(checkpoint)
        self.trainer.parallel.model.eval()
        self.network = network
        self.sparse = unwrapped(self.trainer.parallel.model).sparse
        self.index_changes: str | None = None
        index = self._index((options.index or folder / "index") if keeps_index else None)
        self.retriever = DigRetriever(
            network,
            index,
            self.trainer.dataset.item_rows(index.item_ids),
            width=options.width,
            free=options.free,
        )

    def _index(self, folder: Path | None) -> ItemIndex:
        """The index of items.parquet; the one on the disk is made, or brought up to date."""
        index = build_index(self.network, self.trainer.dataset.item_ids)
        if folder is None:
            return index
        if folder.exists():
            before = ItemIndex.load(folder, tokens=index.tokens)
            if before.fingerprint == index.fingerprint:
                return index
            self.index_changes = index.changes_since(before)
        index.save(folder)
        return index

    def _batches(
        self, dataset: Dataset, rows: RowRange
    ) -> Iterator[tuple[Batch, KeyedTensor, dict[str, JaggedTensor]]]:
        """Batches of a log in its order, with their embeddings."""
        reader = InteractionReader(
            dataset,
            rows=rows,
            item_features=self.trainer.item_features,
            batch_size=_BATCH,
            rank=0,
            world_size=1,
            shuffle_rows=None,
            seed=0,
            drop_last=False,
        )
        with torch.no_grad():
            for batch in reader:
                batch = batch.to(self.trainer.ranks.device)
                yield batch, *self.sparse(batch)

    def for_requests(self, requests: Path, out: Path, cross: Path | None = None) -> int:
        """Write the best items of each request: `request`, `rank`, item id, `score`, `recall`.

        Args:
            requests: parquet file, see `trainer.retrieval_files.write_request_log`.
            out: parquet file that is written.
            cross: parquet file with cross features of pairs, see `PairFeatures`.

        Returns:
            number of requests.
        """
        dataset = self.trainer.dataset
        requests_of, ranks_of, items, scores, recalls = [], [], [], [], []
        with tempfile.TemporaryDirectory() as scratch:
            order = write_request_log(requests, Path(scratch) / "log", dataset)
            pairs = None if cross is None else PairFeatures(cross, dataset, self.network, order)
            log = Dataset.open(Path(scratch) / "log", dataset.schema)
            done = 0
            for batch, pooled, embedded in self._batches(log, RowRange(0, len(order))):
                request = self.retriever.request(batch, pooled)
                found = self.retriever.retrieve(request, embedded, pairs, done)
                item, score, recall = found.best(self.options.top, found.rank_RC)
                row, place = (item >= 0).nonzero(as_tuple=True)
                requests_of.append(order[(row + done).cpu().numpy()])
                ranks_of.append(place.cpu().numpy() + 1)
                items.append(dataset.item_ids[item[row, place].cpu().numpy()])
                scores.append(score[row, place].float().cpu().numpy())
                recalls.append(recall[row, place].float().cpu().numpy())
                done += batch.batch_size
        table = pa.table(
            {
                "request": np.concatenate(requests_of),
                "rank": np.concatenate(ranks_of),
                dataset.schema.item: np.concatenate(items),
                "score": np.concatenate(scores),
                "recall": np.concatenate(recalls),
            }
        ).sort_by([("request", "ascending"), ("rank", "ascending")])
        partial = out.with_name(f".{out.name}.partial")
        pq.write_table(table, partial)
        partial.replace(out)
        return len(order)

    def retrieve_rows(self, rows: RowRange, asked: NDArray[np.int64]) -> RetrievedPart:
        """Retrieve for some rows of a part of the log, and score all of them by both paths.

        Args:
            rows: part of the log.
            asked: int64 (C,) rows of the log within the part, ascending.
        """
        ranks, recalls = [], []
        lists: dict[str, list[Tensor]] = {"recall": [], "rank": []}
        is_asked = np.zeros(len(rows), dtype=bool)
        is_asked[asked - rows.start] = True
        for batch, pooled, items in self._batches(self.trainer.dataset, rows):
            request = self.retriever.request(batch, pooled)
            rank_B, recall_B = self.retriever.score(batch, pooled, items, request)
            ranks.append(rank_B.cpu())
            recalls.append(recall_B.cpu())
            row_of = torch.from_numpy(is_asked[batch.row_B.cpu().numpy() - rows.start]).nonzero()
            row_M = row_of.squeeze(1).to(batch.candidate_B.device)
            if not len(row_M):
                continue
            best = self.retriever.retrieve(request.take(row_M), items)
            for name, by in (("recall", best.recall_RC), ("rank", best.rank_RC)):
                item = best.best(self.options.top, by)[0]
                lists[name].append(pad(item, (0, self.options.top - item.shape[1]), value=-1))
        empty = [torch.zeros(0, self.options.top, dtype=torch.int64)]
        return RetrievedPart(
            by_recall_CM=torch.cat(lists["recall"] or empty).cpu().numpy(),
            by_rank_CM=torch.cat(lists["rank"] or empty).cpu().numpy(),
            rank_N=torch.cat(ranks).double().sigmoid().numpy(),
            recall_N=torch.cat(recalls).double().sigmoid().numpy(),
        )

    def measure(self, rows: RowRange) -> dict[str, Any]:
        """Recall and NDCG over the whole catalogue, and the AUCs of both paths (Tables 2 and 4).

        A part with positives alone has no AUCs, so there are none.

        Each positive impression is a request whose one right answer is its item. Items that the
        user knows are not left out.

        Args:
            rows: part of the log.
        """
        dataset, task = self.trainer.dataset, self.trainer.dataset.schema.labels[0]
        columns = dataset.read(rows, [task, dataset.schema.item])
        asked = np.flatnonzero(columns[task] > 0.5)
        asked = asked[:: -(-len(asked) // MAX_TARGETS) or 1]
        target_C1 = dataset.item_rows(columns[dataset.schema.item][asked])[:, None]
        found = self.retrieve_rows(rows, rows.start + asked)
        measured: dict[str, Any] = {
            "at": self.options.top,
            "beam_width": self.options.width,
            "targets": len(asked),
            "items": len(self.retriever.index.item_ids),
        }
        aucs = [auc(columns[task], scores) for scores in (found.rank_N, found.recall_N)]
        if np.isfinite(aucs).all():
            measured |= {"rank_auc": aucs[0], "recall_auc": aucs[1], "gap": aucs[1] - aucs[0]}
        for name, lists in (("recall_order", found.by_recall_CM), ("rank_order", found.by_rank_CM)):
            if len(asked):
                hit = lists == target_C1
                place = np.where(hit.any(axis=1), hit.argmax(axis=1), -1)
                measured[name] = recall_and_ndcg(place)
        return measured


def retrieve_part(
    experiment: Experiment,
    folder: Path,
    options: Retrieval,
    rows: RowRange,
    asked: NDArray[np.int64],
    path: Path,
) -> None:
    """Retrieve with a trained run and write a `RetrievedPart`; one rank calls this.

    Args:
        experiment: that was trained, with the same settings.
        folder: of the run.
        options: see :class:`Retrieval`.
        rows: part of the log.
        asked: int64 rows to retrieve for, ascending.
        path: file that is written.
    """
    # The newest, since a run's predictions of the test part are of its last step.
    model = TrainedRetriever(experiment, folder, options, NEWEST, keeps_index=False)
    model.retrieve_rows(rows, asked).save(path)
