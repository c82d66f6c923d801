"""ETEGRec (Liu et al., arXiv 2409.05546): tokenizer and generator trained in turns, aligned.

Equation numbers are that paper's. Legend: B windows, M all windows, T items, L levels, D dim of the
generator, P pairs of a sequence and its next item, E dims of the items' embeddings, N items.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenization.autoencoder import load_network
from tokenization.base import Embeddings
from tokenization.collisions import Collisions
from tokenization.rq_vae import RQVAE
from tokenization.sasrec import SASRec
from trainer.generative_retrieval.etegrec_alignment import Both, draw_pairs
from trainer.generative_retrieval.generative_retriever import TupleRetriever
from trainer.generative_retrieval.generator import GeneratorConfig
from trainer.generative_retrieval.item_tokens import check_rows, sasrec_items
from trainer.generative_retrieval.sequences import batches, codes_of, num_batches, windows
from trainer.generative_retrieval.training import GeneratorTraining, Stepper, train_until_best
from trainer.retrieval_task import RetrievalTask


@dataclass(frozen=True, kw_only=True)
class ETEGRecConfig:
    """Settings beside those of the generator. Weights and cycle are the paper's.

    * The generator is the one of all baselines, a causal decoder: what Eq. 14 pools of the encoder
      is here the mean of the outputs from the start token to the end of the history, and the
      decoder's first state of Eq. 16 the output there, which predicts the next item's first code.
    * Eq. 15 is printed with a minus in front of the divergences, which would part the
      distributions; they are to be similar, so we add them. Each side walks the codebooks with its
      own residuals.
    * The paper trains the tokenizer until it converges; here for a fixed number of cycles.

    Args:
        tokenizer: sizes, and how it is trained before the cycles begin.
        sasrec: makes the items' embeddings, where none are given.
        num_cycles: cycles in which the tokenizer still learns.
        cycle_epochs: epochs of a cycle: one of the tokenizer, the others of the generator.
        sequence_item: mu, weight of the sequence-item alignment.
        preference_semantic: lambda, weight of the preference-semantic alignment.
        temperature: tau of that one (the paper does not print its own).
        num_pairs: of a batch's pairs of history and next item, drawn for the alignments.
        learning_rate: of the tokenizer in the cycles.
        collisions: what becomes of items with equal codes, after each epoch of the tokenizer;
            `keep` leaves them to popularity. The paper appends a code (`extra_code`).
    """

    tokenizer: RQVAE = field(default_factory=RQVAE)
    sasrec: SASRec = field(default_factory=SASRec)
    num_cycles: int = 5
    cycle_epochs: int = 4
    sequence_item: float = 3e-4
    preference_semantic: float = 1e-4
    temperature: float = 0.07
    num_pairs: int = 512
    learning_rate: float = 1e-4
    collisions: Collisions = "keep"

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: naming the field.
        """
        for name, least in (("num_cycles", 0), ("cycle_epochs", 2), ("num_pairs", 2)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"etegrec.{name} is {getattr(self, name)}, expected {least} or more"
                )
        for name in ("sequence_item", "preference_semantic"):
            if getattr(self, name) < 0:
                raise ValueError(f"etegrec.{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("temperature", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"etegrec.{name} is {getattr(self, name)}, expected above 0")


class Losses(NamedTuple):
    """Of one batch.

    Attributes:
        next_token: L_REC (Eq. 13).
        quantization: L_SQ (Eq. 8) of the next items.
        sequence_item: L_SIA (Eq. 15).
        preference_semantic: L_PSA (Eq. 16).
    """

    next_token: Tensor
    quantization: Tensor
    sequence_item: Tensor
    preference_semantic: Tensor


class ETEGRec(TupleRetriever):
    """Joint training of tokens and generator.

    Args:
        config: settings of the tokenizer and of alternation.
        content: float32 (N, E) embeddings by item row that are quantized; None takes the item
            vectors of a SASRec on the training sequences, as the paper does.
        generator: sizes.
        training: of the generator; its epochs are those behind the cycles.
        title: of the row.
    """

    def __init__(
        self,
        config: ETEGRecConfig | None = None,
        content: Embeddings | None = None,
        generator: GeneratorConfig | None = None,
        training: GeneratorTraining | None = None,
        title: str = "ETEGRec",
    ) -> None:
        super().__init__(title, generator or GeneratorConfig(), training or GeneratorTraining())
        self.joint = config or ETEGRecConfig()
        self.content = content

    def fit(self, task: RetrievalTask, *, seed: int) -> None:
        """Fit a tokenizer, then train both in turns, then the generator alone until it is best.

        Raises:
            ValueError: for content of another number of items; see `RQVAE.fit`.
        """
        config = self.joint
        if self.content is None:
            embeddings = sasrec_items(task, config.sasrec, seed=seed)
        else:
            check_rows("content", len(self.content), task)
            embeddings = self.content
        settings = dataclasses.replace(config.tokenizer, seed=seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fitted = settings.fit(embeddings)
            num_levels = settings.num_levels + (config.collisions == "extra_code")
            self.begin(task, num_levels, settings.num_codes)
            both = Both(settings, embeddings, self._generator.config.dim)
            load_network(both.tokenizer, fitted.tensors)
            both.to(self.device)
            self._train(task, embeddings, both, seed)

    def _train(self, task: RetrievalTask, embeddings: Embeddings, both: Both, seed: int) -> None:
        config, generator = self.joint, self._generator
        last_joint = config.num_cycles * config.cycle_epochs
        training = dataclasses.replace(
            self.training, num_epochs=last_joint + self.training.num_epochs
        )
        rng = np.random.default_rng(seed)
        windows_MT = windows(task.train, self.config.max_items)
        own_epochs = training.num_epochs - config.num_cycles  # one of each cycle is the tokenizer's
        of_generator = Stepper(
            [*generator.parameters(), *both.heads.parameters()],
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            warmup_steps=training.warmup_steps,
            num_steps=own_epochs * num_batches(windows_MT, training.batch_size),
        )
        of_tokenizer = Stepper(both.tokenizer.parameters(), learning_rate=config.learning_rate)
        tokens = both.tokens(embeddings, config.collisions)
        self.use_tokens(tokens)

        def epoch(number: int) -> float:
            nonlocal tokens
            tokenizer_s = number <= last_joint and (number - 1) % config.cycle_epochs == 0
            for module in (generator, both.heads):
                module.requires_grad_(not tokenizer_s).train(not tokenizer_s)
            both.tokenizer.requires_grad_(tokenizer_s)
            stepper = of_tokenizer if tokenizer_s else of_generator
            codes_NL = torch.from_numpy(tokens.codes.astype(np.int64)).to(self.device)
            values = []
            for items_BT in batches(windows_MT, training.batch_size, rng):
                if items_BT.shape[1] < 2 and tokenizer_s:
                    continue  # no item follows another, so nothing says where it should move
                codes_BTL, there_BT = codes_of(codes_NL, items_BT)
                output_BTLD = generator(codes_BTL)
                pairs_P2 = draw_pairs(there_BT, config.num_pairs)
                losses = Losses(
                    generator.loss(output_BTLD, codes_BTL, there_BT),
                    *both.losses(output_BTLD, items_BT, pairs_P2, config.temperature),
                )
                own = losses.quantization if tokenizer_s else losses.next_token  # Eq. 17, 18
                total = own + config.sequence_item * losses.sequence_item
                total = total + config.preference_semantic * losses.preference_semantic
                values.append(stepper.step(total))
            if tokenizer_s:
                tokens = both.tokens(embeddings, config.collisions)
                self.use_tokens(tokens)
            return float(np.mean(values)) if values else 0.0

        weights, tokens = train_until_best(
            self,
            task.valid,
            training,
            epoch=epoch,
            state=lambda: (generator.state_dict(), tokens),
            at_least=last_joint,
            seed=seed,
        )
        generator.load_state_dict(weights)
        self.use_tokens(tokens)
