"""Make what a run needs and does not find: embeddings and tokens of the items."""

from __future__ import annotations

from rich.console import Console

from launch.embed import EmbedArgs, embed
from launch.tokenize import TokenizeArgs, command, quality_tables, tokenize
from trainer.data.dataset import Dataset
from trainer.experiment import Experiment, TokensConfig
from trainer.run_inputs import load_tokens


def prepare(experiment: Experiment, console: Console) -> None:
    """Check the data folder; embed and tokenize its items when the tokens are not there yet.

    Raises:
        ValueError: when the data folder does not fit its schema, or tokens that are there were
            made with other settings.
    """
    Dataset.open(experiment.data.folder, experiment.data.schema)
    config = experiment.tokenizer
    if config is not None and not config.folder.exists():
        _tokenize(experiment, config, console)
    load_tokens(experiment)


def _tokenize(experiment: Experiment, config: TokensConfig, console: Console) -> None:
    if not config.embeddings.exists():
        items = experiment.data.folder / "items.parquet"
        if config.embedding_column is not None:
            arguments = EmbedArgs(
                items=items, out=config.embeddings, embedding_column=config.embedding_column
            )
            shown = f"--embedding-column {config.embedding_column}"
        else:
            arguments = EmbedArgs(
                items=items, out=config.embeddings, text_column=config.text_column
            )
            shown = f"--text-column {config.text_column}"
        console.print(
            f"[dim]$ farewell embed --items {items} {shown} --out {config.embeddings}[/dim]",
            soft_wrap=True,
        )
        embed(arguments)
    arguments = TokenizeArgs(
        embeddings=config.embeddings,
        out=config.folder,
        tokenizer=config.tokenizer,
        mem=config.mem,
        collisions=config.collisions,
    )
    console.print(f"[dim]$ {command(arguments)}[/dim]", soft_wrap=True)
    _, quality = tokenize(arguments)
    for table in quality_tables(quality):
        console.print(table)
