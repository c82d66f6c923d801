"""The `farewell` command: one verb, one module of this package."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

from trainer.stop import EXIT_STOPPED, StoppedError

VERBS = {
    "doctor": "check this installation and say how to mend it",
    "data": "write a data set folder: a public log, a simulated one, or more columns for one",
    "embed": "texts of a catalogue -> one embedding an item",
    "tokenize": "item embeddings -> gen-tokens and mem-tokens",
    "plan": "shard an experiment's tables on a cluster that need not be there",
    "train": "train a named experiment on one or many ranks",
    "evaluate": "metrics of a finished run, with intervals and buckets",
    "export": "a trained run -> a folder for serving, quantised and measured",
    "predict": "score a parquet file with an exported model",
    "retrieve": "items for users, out of a trained DIG model",
    "compare": "train and report a named comparison: quality, storage, speed",
    "scale": "sweep tower sizes and fit loss over size",
    "demo": "from nothing to the report on MovieLens-1M",
}
USAGE = "usage: farewell VERB [options]      farewell VERB --help tells more\n"


def main() -> None:
    """Run one verb; every expected error ends as one message and a non-zero exit code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        print(USAGE)
        for verb, what in VERBS.items():
            print(f"  {verb:<{width}}  {what}")
        print("\nfirst steps:  farewell doctor;  farewell demo")
        raise SystemExit(0 if arguments else 2)
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        _fail(f"no verb {verb!r}; there are {', '.join(VERBS)}", 2)
    try:
        importlib.import_module(f"launch.{verb}").main(rest)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except StoppedError as error:
        if "RANK" in os.environ:
            _tell_agent(error)
        _fail(str(error), EXIT_STOPPED)
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        if "RANK" in os.environ:
            _tell_agent(error)
        if os.environ.get("FAREWELL_TRACEBACK") == "1":
            raise
        _fail(str(error) or type(error).__name__, 1)
    except ImportError as error:
        _fail(f"{error}; run `farewell doctor`", 1)


def _tell_agent(error: Exception) -> None:
    """Leave the error where torchrun's agent finds it for its summary."""
    errors = importlib.import_module("torch.distributed.elastic.multiprocessing.errors")
    errors.get_error_handler().record_exception(error)


def _fail(message: str, code: int) -> NoReturn:
    print(f"farewell: {message}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
