"""A generative retriever: fixed tokens, a generator trained on users' sequences, beam search.

With tokens of RQ-VAE, LETTER, DAS or DOS these are the baselines of DIG section 4.1.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.baselines.retriever import popularity, without_known
from trainer.data.ragged import Ragged
from trainer.distributed import pick_device
from trainer.generative_retrieval.generator import Generator, GeneratorConfig
from trainer.generative_retrieval.item_tokens import ItemTokens, TokenSource
from trainer.generative_retrieval.search import TupleSearch
from trainer.generative_retrieval.sequences import (
    batches,
    codes_of,
    last_items,
    num_batches,
    windows,
)
from trainer.generative_retrieval.training import GeneratorTraining, Stepper, train_until_best
from trainer.retrieval_task import RetrievalTask

_WIDER = 4


class TupleRetriever:
    """What generative retrievers share: lists of items from a generator and tokens.

    Args:
        title: of the row.
        generator: sizes.
        training: of the generator, and the width of beams.
    """

    def __init__(self, title: str, generator: GeneratorConfig, training: GeneratorTraining) -> None:
        self.title = title
        self.config = generator
        self.training = training
        self.device = pick_device()

    def begin(self, task: RetrievalTask, num_levels: int, num_codes: int) -> None:
        """Build the generator; call `use_tokens` before it is asked."""
        self._num_items = task.num_items
        self._leaves_out = task.leave_out_history
        self._popularity = popularity(task)
        self._generator = Generator(self.config, num_levels=num_levels, num_codes=num_codes)
        self._generator.to(self.device)

    def use_tokens(self, tokens: ItemTokens) -> None:
        """Search these tuples from now on."""
        self._search = TupleSearch(
            tokens.codes,
            num_codes=tokens.num_codes,
            popularity=self._popularity,
            device=self.device,
        )

    def top(self, histories: Ragged, k: int) -> NDArray[np.int64]:
        """See `Retriever.top`.

        Where leaving out known items leaves lists too short, these histories are searched again
        with wider beams, until there is nothing more to find.
        """
        lists = np.full((len(histories), k), -1, dtype=np.int64)
        missing = np.arange(len(histories))
        width = max(self.training.beam_width, k)
        while len(missing):
            mine = histories.gather(missing)
            longest = int(mine.lengths.max()) if self._leaves_out else 0
            items_RT = last_items(mine, self.config.max_items)
            found = self._search.best(self._generator.eval(), items_RT, k + longest, width=width)
            if self._leaves_out:
                found = without_known(found, mine, k, num_items=self._num_items)
            lists[missing] = found
            if width >= self._search.num_tuples:
                break
            missing = missing[found[:, -1] < 0]
            width *= _WIDER
        return lists


class GenerativeRetriever(TupleRetriever):
    """A next-token transformer on tokens that do not change.

    Args:
        title: of the row, e.g. "TIGER".
        source: of the tokens.
        generator: sizes.
        training: of the generator.

    Example::

        tiger = GenerativeRetriever(
            "TIGER",
            FittedTokens(
                tokenizer=RQVAE(num_levels=3), content=embeddings, collisions="extra_code"
            ),
        )
        tiger.fit(task, seed=0)
        tiger.top(task.test.history, 50)
    """

    def __init__(
        self,
        title: str,
        source: TokenSource,
        generator: GeneratorConfig | None = None,
        training: GeneratorTraining | None = None,
    ) -> None:
        super().__init__(title, generator or GeneratorConfig(), training or GeneratorTraining())
        self.source = source

    def fit(self, task: RetrievalTask, *, seed: int) -> None:
        """Make the tokens, train the generator, keep the weights of the best look."""
        tokens = self.source.tokens(task, seed=seed)
        rng = np.random.default_rng(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.begin(task, tokens.codes.shape[1], tokens.num_codes)
            self.use_tokens(tokens)
            generator, training = self._generator, self.training
            codes_NL = torch.from_numpy(tokens.codes.astype(np.int64)).to(self.device)
            windows_MT = windows(task.train, self.config.max_items)
            stepper = Stepper(
                generator.parameters(),
                learning_rate=training.learning_rate,
                weight_decay=training.weight_decay,
                warmup_steps=training.warmup_steps,
                num_steps=training.num_epochs * num_batches(windows_MT, training.batch_size),
            )

            def epoch(number: int) -> float:
                generator.train()
                losses = []
                for items_BT in batches(windows_MT, training.batch_size, rng):
                    codes_BTL, there_BT = codes_of(codes_NL, items_BT)
                    loss = generator.loss(generator(codes_BTL), codes_BTL, there_BT)
                    losses.append(stepper.step(loss))
                return float(np.mean(losses))

            best = train_until_best(
                self, task.valid, training, epoch=epoch, state=generator.state_dict, seed=seed
            )
            generator.load_state_dict(best)
