"""All ways to combine codes into mem-tokens by kind, and the way back from recorded settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tokenization.mem_tokens import MemTokens
from tokenization.ngrams import KGrams, PrefixNGrams

AnyMem = MemTokens | PrefixNGrams | KGrams
"""Settings of any of the combinations of codes."""

MEM_KINDS: dict[str, type[AnyMem]] = {
    config.kind: config for config in (MemTokens, PrefixNGrams, KGrams)
}


def mem_config(settings: Mapping[str, Any]) -> AnyMem:
    """Return the settings that a token artifact's manifest records under `mem`.

    Raises:
        ValueError: a kind that is not known here.
    """
    kind = settings.get("kind")
    if kind not in MEM_KINDS:
        raise ValueError(f"mem kind: expected one of {', '.join(MEM_KINDS)}, found {kind!r}")
    names = {entry.name for entry in dataclasses.fields(MEM_KINDS[kind])}
    return MEM_KINDS[kind](**{name: value for name, value in settings.items() if name in names})
