"""Configs to JSON and back, without importing anything that a file names."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, get_args

import sharding.tables
import trainer.data.schema
import trainer.models
import trainer.modules.learned_tokens
from sharding.tables import TableSpec, check_tables
from trainer.data.schema import DatasetSchema
from trainer.models.ranking_network import Precision, RankingModelConfig
from trainer.serving.folder import FORMAT, ServingError
from trainer.serving.tables import RowKind


def known_classes(more: Iterable[type] = ()) -> dict[str, type]:
    """Config classes by name: of the schema, of tables, and all that `trainer.models` mention.

    A description's "class" is looked up here; nothing is ever imported because a file says so.

    Args:
        more: a user's own config classes, e.g. of a tower.
    """
    modules = [trainer.data.schema, sharding.tables, trainer.modules.learned_tokens] + [
        importlib.import_module(f"trainer.models.{found.name}")
        for found in pkgutil.iter_modules(trainer.models.__path__)
    ]
    classes = [value for module in modules for value in vars(module).values()]
    return {value.__name__: value for value in [*classes, *more] if _is_config(value)}


def _is_config(value: Any) -> bool:
    if not (isinstance(value, type) and dataclasses.is_dataclass(value)):
        return False
    settings: Any = getattr(value, "__dataclass_params__", None)
    return bool(settings.frozen)


def classes_of(value: Any) -> set[type]:
    """Every config class within a config."""
    if isinstance(value, list | tuple):
        return {one for item in value for one in classes_of(item)}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return set()
    fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
    return {type(value), *classes_of(fields)}


def describe(value: Any) -> Any:
    """A config as JSON values, with the class of every part."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    return [describe(item) for item in value] if isinstance(value, tuple | list) else value


def restore(values: Any, classes: Mapping[str, type], *, at: str) -> Any:
    """The config that was described; fields that are not named take their defaults.

    Args:
        values: what `describe` (or `Experiment.to_dict`) gave, read from JSON.
        classes: by name.
        at: where the values stand, for messages.

    Raises:
        ServingError: on an unknown class or field, or values that the class refuses.
    """
    if isinstance(values, list):
        return tuple(restore(item, classes, at=f"{at}[{n}]") for n, item in enumerate(values))
    if not isinstance(values, dict):
        return values
    name = values.get("class")
    if not isinstance(name, str) or name not in classes:
        raise ServingError(
            f"{at}: of class {str(name)[:60]!r}, which this installation does not have; pass a "
            "config class of your own as classes=(...), or on the command line as --experiment "
            "path/to/mine.py:function"
        )
    fields = {
        field: restore(value, classes, at=f"{at}.{field}")
        for field, value in values.items()
        if field != "class"
    }
    try:
        return classes[name](**fields)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise ServingError(f"{at}: no {name} can be made of these values ({error})") from error


def restored(values: Any, kind: type | UnionType, classes: Mapping[str, type], *, at: str) -> Any:
    """The same, of a given class.

    Raises:
        ServingError: also when it is of another class.
    """
    value = restore(values, classes, at=at)
    if not isinstance(value, kind):
        expected = getattr(kind, "__name__", str(kind))
        raise ServingError(f"{at}: is a {type(value).__name__}, expected a {expected}")
    return value


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What a predictor is built from, beside the tensors.

    Args:
        name: of the experiment.
        step: of the checkpoint.
        rows: how rows of tables are stored.
        precision: of the network's matrix products.
        schema: columns of a request.
        model: the network.
        tables: every table.
        vocabulary: fingerprint of the token vocabulary that the rows mean; None without tokens.
    """

    name: str
    step: int
    rows: RowKind
    precision: Precision
    schema: DatasetSchema
    model: RankingModelConfig
    tables: tuple[TableSpec, ...]
    vocabulary: str | None

    def to_dict(self) -> dict[str, Any]:
        """As `model.json` has it."""
        fields = {f.name: describe(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"format": FORMAT, **fields}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], classes: Mapping[str, type]) -> ModelDescription:
        """Read what `to_dict` gave.

        Raises:
            ServingError: naming the field.
        """
        for name, allowed in (("rows", get_args(RowKind)), ("precision", get_args(Precision))):
            if values.get(name) not in allowed:
                raise ServingError(
                    f"model.json: {name} is {str(values.get(name))[:60]!r}, expected one of "
                    f"{', '.join(allowed)}"
                )
        if not isinstance(tables := values.get("tables"), list):
            raise ServingError("model.json: tables is no list")
        specs = tuple(
            restored(table, TableSpec, classes, at=f"model.json: tables[{n}]")
            for n, table in enumerate(tables)
        )
        try:
            check_tables(specs)
        except ValueError as error:
            raise ServingError(f"model.json: {error}") from error
        step, vocabulary = values.get("step"), values.get("vocabulary")
        if type(step) is not int or step < 0:
            raise ServingError(
                f"model.json: step is {str(step)[:60]!r}, expected a number of at least 0"
            )
        if not isinstance(vocabulary, str | None):
            raise ServingError(
                f"model.json: vocabulary is {str(vocabulary)[:60]!r}, expected a fingerprint or "
                "null"
            )
        return cls(
            name=str(values.get("name")),
            step=step,
            rows=values["rows"],
            precision=values["precision"],
            schema=restored(values.get("schema"), DatasetSchema, classes, at="model.json: schema"),
            model=restored(
                values.get("model"), RankingModelConfig, classes, at="model.json: model"
            ),
            tables=specs,
            vocabulary=vocabulary,
        )
