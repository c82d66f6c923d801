"""From a name on the command line to the value that it names."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import configs

Value = TypeVar("Value")


def load_named(name: str, kind: type[Value]) -> Value:
    """Call the function that `name` points to.

    Args:
        name: `family.function` of the package `configs`, or `path/to/mine.py:function`.
        kind: class of the value that is expected.

    Raises:
        ValueError: naming what does exist.
    """
    path, _, function = name.rpartition(":") if ":" in name else name.rpartition(".")
    module = _own_file(Path(path)) if ":" in name else _family(name, path)
    builder = getattr(module, function, None)
    if not callable(builder):
        functions = [f for f in vars(module) if _is_experiment(module, f)]
        raise ValueError(f"{name}: {path} has no function {function!r}; it has {functions}")
    value = builder()
    if not isinstance(value, kind):
        raise ValueError(
            f"{name} gives a value of type {type(value).__name__}, expected {kind.__name__}"
        )
    return value


def _family(name: str, family: str) -> object:
    families = sorted(module.name for module in pkgutil.iter_modules(configs.__path__))
    if family not in families:
        raise ValueError(
            f"{name}: expected FAMILY.NAME or path/to/mine.py:NAME; families are "
            f"{', '.join(families)}"
        )
    return importlib.import_module(f"configs.{family}")


def _own_file(path: Path) -> object:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _is_experiment(module: object, name: str) -> bool:
    value = getattr(module, name)
    return getattr(value, "__module__", None) == getattr(module, "__name__", None) and callable(
        value
    )


def name_and_options(
    args: Sequence[str], *, verb: str, description: str | None
) -> tuple[str, list[str]]:
    """Split the words after a verb into the name that comes first and its options.

    Without a name, help is printed and the program ends.
    """
    if args and not args[0].startswith("-"):
        return args[0], list(args[1:])
    families = ", ".join(sorted(module.name for module in pkgutil.iter_modules(configs.__path__)))
    print(f"usage: farewell {verb} NAME [options]\n\n{description}\nfamilies of names: {families}")
    if args and args[0] in ("-h", "--help"):
        raise SystemExit(0)
    raise ValueError(f"farewell {verb}: expected a name first, found {args[0] if args else 'none'}")
