"""The command line: the only part of the package that prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from lora_autotune.cli.arguments import make_parser
from lora_autotune.errors import LoraAutotuneError, UsageError

_TUNE = "pip install 'lora-autotune[tune]'"
_CUDA = "pip install 'lora-autotune[tune,cuda]'; or search recorded measurements with --replay"
_REMEDIES = {"optuna": _TUNE, "rich": _TUNE, "torch": _CUDA, "triton": _CUDA}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0: done; 1: it could not be done; 2: the arguments make no sense; 130: interrupted.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = make_parser().parse_args(words)
    arguments.words = words
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UsageError as error:
        return _fail(str(error), 2)
    except LoraAutotuneError as error:
        return _fail(str(error), 1)
    except ModuleNotFoundError as error:
        remedy = _REMEDIES.get(error.name or "")
        if remedy is None:
            raise
        return _fail(f"{error.name} is not installed ({remedy})", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return code


def _fail(message: str, code: int) -> int:
    print(f"lora-autotune: error: {message}", file=sys.stderr)
    return code
