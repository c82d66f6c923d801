"""Make what a run needs and does not find: embeddings and tokens of the items."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.embed import embed
from launch.embed_options import EmbedArgs
from launch.token_tables import quality_tables
from launch.tokenize import tokenize
from launch.tokenize_options import TokenizeArgs, command
from tokenization.alignment import Alignment
from trainer.data.dataset import Dataset
from trainer.experiment import Experiment, TokensConfig
from trainer.modules.learned_tokens import CoClickItemsConfig, LearnedTokensConfig
from trainer.run_inputs import check_item_embeddings, load_tokens
from trainer.sasrec_tokens import SASRecTokensConfig


def prepare(experiment: Experiment, console: Console) -> None:
    """Check the data folder; embed, align and tokenize its items when tokens are not there yet.

    Raises:
        ValueError: when the data folder does not fit its schema, or tokens that are there were
            made with other settings.
    """
    dataset = Dataset.open(experiment.data.folder, experiment.data.schema)
    item = experiment.model.item
    if isinstance(item, LearnedTokensConfig):
        _embed_items(experiment, item, dataset, console)
        check_item_embeddings(item, experiment, dataset)
        return
    config = experiment.tokenizer
    if config is not None and not config.folder.exists():
        if not config.embeddings.exists():
            if isinstance(config, SASRecTokensConfig):
                _embed_behaviour(experiment, config, dataset, console)
            else:
                _embed(experiment, config, console)
        embeddings = config.embeddings
        if config.alignment is not None:
            embeddings = config.aligned_embeddings
            if not embeddings.exists():
                _align(experiment, config, config.alignment, dataset, console)
        _tokenize(config, embeddings, console)
    load_tokens(experiment)


def _embed(experiment: Experiment, config: TokensConfig, console: Console) -> None:
    items = experiment.data.folder / "items.parquet"
    if config.embedding_column is not None:
        arguments = EmbedArgs(
            items=items, out=config.embeddings, embedding_column=config.embedding_column
        )
        shown = f"--embedding-column {config.embedding_column}"
        _show(f"farewell embed --items {items} {shown} --out {config.embeddings}", console)
        embed(arguments)
    else:
        _embed_texts(experiment, config.text_column, config.embeddings, console)


def _embed_texts(experiment: Experiment, column: str, out: Path, console: Console) -> None:
    items = experiment.data.folder / "items.parquet"
    _show(f"farewell embed --items {items} --text-column {column} --out {out}", console)
    embed(EmbedArgs(items=items, out=out, text_column=(column,)))


def _embed_items(
    experiment: Experiment, item: LearnedTokensConfig, dataset: Dataset, console: Console
) -> None:
    """Embed texts, and co-click vectors beside them, of a model that learns its tokens."""
    if item.embeddings is None or item.embeddings.exists():
        return
    if not isinstance(item, CoClickItemsConfig):
        _embed_texts(experiment, item.text_column, item.embeddings, console)
        return
    if item.content is not None and not item.content.exists():
        _embed_texts(experiment, item.text_column, item.content, console)
    _embed_with_clicks(
        experiment,
        dataset,
        console,
        items=item.content or experiment.data.folder / "items.parquet",
        embedding_column="embedding" if item.content else item.content_column,
        out=item.embeddings,
        co_click_log=experiment.data.folder / "interactions",
        co_clicks=item.co_clicks,
    )


def _embed_behaviour(
    experiment: Experiment, config: SASRecTokensConfig, dataset: Dataset, console: Console
) -> None:
    """SASRec on the positive training rows."""
    _embed_with_clicks(
        experiment,
        dataset,
        console,
        items=experiment.data.folder / "items.parquet",
        out=config.embeddings,
        sasrec_log=experiment.data.folder / "interactions",
        sasrec=config.sasrec,
        sasrec_missing="mean",
    )


def _align(
    experiment: Experiment,
    config: TokensConfig,
    alignment: Alignment,
    dataset: Dataset,
    console: Console,
) -> None:
    """Align with the co-clicks of the training rows alone."""
    _embed_with_clicks(
        experiment,
        dataset,
        console,
        items=config.embeddings,
        embedding_column="embedding",
        out=config.aligned_embeddings,
        align_log=experiment.data.folder / "interactions",
        alignment=alignment,
        feature_column=config.feature_columns,
        features=experiment.data.folder / "items.parquet" if config.feature_columns else None,
    )


def _embed_with_clicks(
    experiment: Experiment, dataset: Dataset, console: Console, **options: Any
) -> None:
    """`farewell embed` with a log: the positive training rows alone."""
    schema = experiment.data.schema
    arguments = EmbedArgs(
        **options,
        align_positive=schema.labels[0],
        align_share=1.0,
        align_rows=dataset.split(experiment.data.split).train.stop,
        user_column=schema.user,
        item_column=schema.item,
    )
    names = (
        "items",
        "embedding_column",
        "sasrec_log",
        "sasrec_missing",
        "align_log",
        "co_click_log",
        "align_positive",
        "align_share",
        "align_rows",
        "out",
    )
    given = {
        name: getattr(arguments, name) for name in names if name[:5] == "align" or name in options
    }
    words = " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in given.items() if value is not None
    )
    if arguments.co_click_log is not None:
        for name, value in asdict(arguments.co_clicks).items():
            words += f" --co-clicks.{name.replace('_', '-')} {value}"
    _show(f"farewell embed {words}", console)
    embed(arguments)


def _tokenize(config: TokensConfig, embeddings: Path, console: Console) -> None:
    arguments = TokenizeArgs(
        embeddings=embeddings,
        out=config.folder,
        tokenizer=config.tokenizer,
        mem=config.mem,
        collisions=config.collisions,
    )
    _show(command(arguments), console)
    made = tokenize(arguments)
    assert made is not None  # no ranks here
    for table in quality_tables(made[1]):
        console.print(table)


def _show(words: str, console: Console) -> None:
    console.print(f"[dim]$ {words}[/dim]", soft_wrap=True)
