"""Does the generative objective learn? Recall of generated tuples against the most popular ones.

Legend: R rows, W beams, L levels, K codes of a level, V = L * K gen-tokens, d table dim.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tokenization.vocabulary import gen_code
from trainer.batch import Batch
from trainer.checkpoint_choice import AUTO
from trainer.data.reader import InteractionReader
from trainer.data.schema import RowRange
from trainer.distributed import start_ranks
from trainer.experiment import Experiment
from trainer.generation import TupleTrie, beam_search
from trainer.loop import SplitName
from trainer.models.ranking_model import RankingNetwork
from trainer.models.sparse_arch import SparseArch
from trainer.modules.hybrid_tokens import GEN_TOKEN
from trainer.modules.next_token import EncodedContext
from trainer.parallelize import unwrapped
from trainer.run import Trainer
from trainer.run_folder import RunFolder, log_to, write_json

RECALL_AT = 10
MAX_CONTEXTS = 20_000
"""Positive impressions that are generated for, evenly spaced over the part of the log."""
_BATCH = 512


def generate_split(
    experiment: Experiment,
    folder: Path,
    split: SplitName,
    width: int,
    path: Path,
    checkpoint: str = AUTO,
) -> None:
    """Generate with a checkpoint of a run and write the recall; every rank calls this.

    Args:
        experiment: that was trained, with the same settings.
        folder: of the run.
        split: part of the log whose positive impressions are generated for.
        width: of the beam.
        path: JSON file for what :func:`generated_recall` finds.
        checkpoint: which one, see :func:`~trainer.checkpoint_choice.choose`.

    Raises:
        CheckpointError: when there is no such checkpoint, or it is of other settings.
        ValueError: when the experiment has no generative objective, or the beam is narrower than
            the list that recall is taken of.
    """
    check_can_generate(experiment, width)
    ranks = start_ranks()
    run = RunFolder(folder)
    log_to(run.log(ranks.rank))
    trainer = Trainer(experiment, run, ranks)
    trainer.load_chosen(checkpoint)
    found = generated_recall(trainer, getattr(trainer.splits, split), width=width)
    if found is not None:
        write_json(path, {"split": split, **found})
    ranks.barrier()


def check_can_generate(experiment: Experiment, width: int) -> None:
    """Check that a model generates, and enough.

    Raises:
        ValueError: naming the field, what was found and what is expected.
    """
    config = experiment.model.next_token
    if config is None or not config.weight:
        raise ValueError(
            f"--generate: model.next_token of {experiment.name!r} is "
            f"{'None' if config is None else 'without a loss (weight 0)'}, so it has learned "
            "nothing to generate; train with a NextTokenConfig"
        )
    if width < RECALL_AT:
        raise ValueError(
            f"--generate: the beam is {width} wide, expected at least {RECALL_AT}, the length of "
            "the list that recall is taken of"
        )


def generated_recall(trainer: Trainer, rows: RowRange, *, width: int) -> dict[str, Any] | None:
    """How often the tuple of a positive impression's item is among the best generated ones.

    The beam is held to tuples that exist in the catalogue. Set against it is one list for all: the
    tuples with the most positive impressions in the training part. Neither leaves out items that
    the user knows already.

    Args:
        trainer: with the trained model.
        rows: part of the log; up to `MAX_CONTEXTS` of its positives are generated for.
        width: of the beam.

    Returns:
        On rank 0 `{"recall_at", "beam_width", "contexts", "tuples", "generated", "popularity",
        "ratio"}`; None elsewhere.
    """
    ranks, dataset, network = trainer.ranks, trainer.dataset, trainer.parallel.network
    module = network.next_token
    assert module is not None
    gen_rows = trainer.item_features.features[GEN_TOKEN].values.reshape(-1, module.num_levels)
    codes = gen_code(gen_rows, module.num_codes)
    task = dataset.schema.labels[module.positive_column]
    is_chosen = np.zeros(len(rows), dtype=bool)
    positives = np.flatnonzero(dataset.read(rows, [task])[task] > 0.5)
    is_chosen[positives[:: -(-len(positives) // MAX_CONTEXTS) or 1]] = True
    popular_RL = torch.from_numpy(most_popular(trainer, codes, task)).to(ranks.device)
    trie = TupleTrie(codes, num_codes=module.num_codes, device=ranks.device)
    sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)
    reader = InteractionReader(
        dataset,
        rows=rows,
        item_features=trainer.item_features,
        batch_size=_BATCH,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shuffle_rows=None,
        seed=0,
        drop_last=False,
    )
    sparse = unwrapped(trainer.parallel.model).sparse
    trainer.parallel.model.eval()
    gen_Vd: Tensor | None = None
    with torch.no_grad():
        for batch in reader:
            batch = batch.to(ranks.device)
            pooled, items = sparse(batch)
            if gen_Vd is None:
                num_tokens = module.num_levels * module.num_codes
                gen_Vd = gen_embeddings(sparse, batch, num_tokens=num_tokens)
                if isinstance(network, FSDPModule):  # it wants to see a whole forward pass first
                    network(batch, pooled, items)
                    network.unshard()
            chosen = torch.from_numpy(
                np.flatnonzero(is_chosen[batch.row_B.cpu().numpy() - rows.start])
            ).to(ranks.device)
            context = network.encode_context(batch, pooled, items, chosen)
            scorer = NextTokenScorer(network, context, gen_Vd)
            beams = beam_search(scorer, num_levels=module.num_levels, width=width, trie=trie)
            target_RL = (
                batch.items[GEN_TOKEN]
                .values()
                .view(-1, module.num_levels)[batch.candidate_B[chosen]]
                % module.num_codes
            )
            best_RWL = beams.codes_RWL[:, :RECALL_AT]
            is_real_RW = beams.scores_RW[:, :RECALL_AT] > float("-inf")
            sums += torch.stack(
                [
                    (hits(best_RWL, target_RL) & is_real_RW).sum(),
                    hits(popular_RL.unsqueeze(0), target_RL).sum(),
                    target_RL.new_tensor(len(target_RL)),
                ]
            ).double()
    generated, popular, number = (float(value) for value in ranks.all_reduce(sums))
    if not ranks.is_first:
        return None
    return {
        "recall_at": RECALL_AT,
        "beam_width": width,
        "contexts": int(number),
        "tuples": trie.num_nodes[-1],
        "generated": generated / number,
        "popularity": popular / number,
        "ratio": generated / popular if popular else None,
    }


def most_popular(trainer: Trainer, codes: NDArray[np.int32], task: str) -> NDArray[np.int64]:
    """The tuples with the most positive impressions in the training part, int64 (10, L).

    Args:
        trainer: with the log.
        codes: of every item, in the order of items.parquet.
        task: label of the positives.
    """
    dataset = trainer.dataset
    log = dataset.read(trainer.splits.train, [task, dataset.schema.item])
    items = dataset.item_rows(log[dataset.schema.item][log[task] > 0.5])
    tuples, tuple_of_item = np.unique(codes, axis=0, return_inverse=True)
    counts = np.bincount(tuple_of_item.reshape(-1)[items], minlength=len(tuples))
    return tuples[np.argsort(-counts, kind="stable")[:RECALL_AT]].astype(np.int64)


def hits(list_RWL: Tensor, target_RL: Tensor) -> Tensor:
    """Whether each tuple of each row's list is the row's target, bool (R, W)."""
    return (list_RWL == target_RL.unsqueeze(1)).all(dim=2)


def gen_embeddings(sparse: SparseArch, batch: Batch, *, num_tokens: int) -> Tensor:
    """The whole gen-token table (V, d) on every rank, wherever its rows are.

    Args:
        sparse: the sharded tables.
        batch: any; its pooled ids are looked up besides.
        num_tokens: V.
    """
    keys = batch.items.keys()
    device = batch.candidate_B.device
    lengths = torch.zeros(len(keys), num_tokens, dtype=torch.int64, device=device)
    lengths[keys.index(GEN_TOKEN)] = 1
    every_token = KeyedJaggedTensor(
        keys=keys, values=torch.arange(num_tokens, device=device), lengths=lengths.flatten()
    )
    _, items = sparse(replace(batch, items=every_token))
    return items[GEN_TOKEN].values()


class NextTokenScorer:
    """The next-token transformer as beam search asks for it.

    Args:
        network: with the transformer.
        context: of R rows.
        gen_Vd: embeddings of all gen-tokens.
    """

    def __init__(self, network: RankingNetwork, context: EncodedContext, gen_Vd: Tensor) -> None:
        assert network.next_token is not None
        self._network = network
        self._module = network.next_token
        self._past = context.past
        self._gen_Vd = gen_Vd
        self._num_rows = context.output_BCD.shape[0]
        self._level = 0

    def first(self) -> Tensor:
        """Log-probabilities of level 0's codes (R, K)."""
        assert self._module.tokens is not None
        return self._score(self._module.tokens.start(self._num_rows))

    def following(self, parent_RW: Tensor, code_RW: Tensor) -> Tensor:
        """Log-probabilities of the next level's codes (R, W, K)."""
        tokens, num_rows = self._module.tokens, self._num_rows
        assert tokens is not None
        num_parents = self._past[0].key_BHTh.shape[0] // max(1, num_rows)
        row_R1 = torch.arange(num_rows, device=parent_RW.device).unsqueeze(1)
        from_beam = (row_R1 * num_parents + parent_RW).flatten()
        self._past = [past.take(from_beam) for past in self._past]
        token_RW = self._level * self._module.num_codes + code_RW
        gen_BTd = self._gen_Vd[token_RW.flatten()].unsqueeze(1)
        with self._network.autocast(gen_BTd.device):
            x_BTD = tokens.follow(gen_BTd, level=self._level)
        self._level += 1
        return self._score(x_BTD).unflatten(0, tuple(code_RW.shape))

    def _score(self, x_BTD: Tensor) -> Tensor:
        assert self._module.tokens is not None
        with self._network.autocast(x_BTD.device):
            out_BTD, self._past = self._module.decode(x_BTD, self._past)
            logits_BK = self._module.tokens.level_logits(out_BTD[:, 0], self._level)
        return logits_BK.float().log_softmax(dim=1)
