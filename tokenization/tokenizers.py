"""All tokenizers by kind, and the way back from settings and arrays to a fitted tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from tokenization.balanced_kmeans import BalancedRQKMeans, BalancedRQKMeansTokenizer
from tokenization.base import SemanticTokenizer
from tokenization.das import DAS, DASTokenizer
from tokenization.dos import DOS, DOSTokenizer
from tokenization.letter import LETTER, LETTERTokenizer
from tokenization.opmq import OPMQ, OPMQTokenizer
from tokenization.opq import OPQ, OPQTokenizer
from tokenization.rq_kmeans import RQKMeans, RQKMeansTokenizer
from tokenization.rq_vae import RQVAE, RQVAETokenizer

AnyTokenizer = RQKMeans | RQVAE | BalancedRQKMeans | OPQ | OPMQ | LETTER | DAS | DOS
"""Settings of any of the tokenizers."""

CONFIGS: dict[str, type[AnyTokenizer]] = {
    config.kind: config
    for config in (RQKMeans, RQVAE, BalancedRQKMeans, OPQ, OPMQ, LETTER, DAS, DOS)
}
_FITTED: dict[str, type[SemanticTokenizer]] = {
    fitted.kind: fitted
    for fitted in (
        RQKMeansTokenizer,
        RQVAETokenizer,
        BalancedRQKMeansTokenizer,
        OPQTokenizer,
        OPMQTokenizer,
        LETTERTokenizer,
        DASTokenizer,
        DOSTokenizer,
    )
}


def tokenizer_config(settings: Mapping[str, Any]) -> AnyTokenizer:
    """Return the config that `base.describe` turned into `settings`.

    Raises:
        ValueError: a kind that is not known here.
    """
    fields = dict(settings)
    kind = fields.pop("kind", None)
    if kind not in CONFIGS:
        raise ValueError(f"tokenizer kind: expected one of {', '.join(CONFIGS)}, found {kind!r}")
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()
    }
    return CONFIGS[kind](**values)


def restore(settings: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> SemanticTokenizer:
    """Return the fitted tokenizer of `settings` (see `base.describe`) and `tensors`.

    Raises:
        ValueError: a kind that is not known here.
    """
    config = tokenizer_config(settings)
    return _FITTED[config.kind](config=config, tensors=tensors)


def load_tokenizer(path: Path) -> SemanticTokenizer:
    """Read a file that `SemanticTokenizer.save` wrote.

    Raises:
        ValueError: no such file, or not one of a tokenizer.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; fit a tokenizer and save it there")
    try:
        with safe_open(path, framework="numpy") as file:
            settings = json.loads((file.metadata() or {})["tokenizer"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path}: expected a safetensors file of a tokenizer, found {error}"
        ) from error
    return restore(settings, tensors)
