"""What the command line takes."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from lora_autotune import __version__
from lora_autotune.errors import UsageError
from lora_autotune.kernel_set import BUILTIN, KERNEL_SETS
from lora_autotune.space import SPACE_NAMES
from lora_autotune.task import CHUNK_SIZES, DTYPES, KERNELS, Instance
from lora_autotune.trial import MAX_REGRESSION
from lora_autotune.workload import PRESETS, parse_instance

_SIZES = " ".join(map(str, CHUNK_SIZES))


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line that says what is allowed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            parser: _Parser = getattr(known, "parser", self)
            parser.error(parser._unknown(unknown[0]))
        return known

    def _unknown(self, argument: str) -> str:
        hint = _hint(argument.partition("=")[0], self._option_string_actions)
        return f"unknown argument {argument} ({hint})"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = _hint(str(value), action.choices)
            raise argparse.ArgumentError(action, f"{value!r} is not known ({hint})")

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: error: {message}\n")
        sys.exit(2)


def _hint(word: str, allowed: Iterable[str]) -> str:
    names = list(allowed)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]}?" if close else f"allowed: {', '.join(names)}"


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive integer is allowed, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a positive number of seconds is allowed, not {text!r}")
    return value


def _fraction(text: str) -> float:
    number, percent = (text[:-1], 0.01) if text.endswith("%") else (text, 1.0)
    try:
        value = float(number) * percent
    except ValueError:
        value = -1.0
    # A bare 2 could be 2% or 200%: only what cannot be a percentage is taken for a fraction.
    if not 0 <= value <= 1 or (percent == 1.0 and value == 1):
        raise argparse.ArgumentTypeError(f"0% to 100%, or 0.02 for 2%, is allowed, not {text!r}")
    return value


def _chunk_size(text: str) -> int:
    if text not in map(str, CHUNK_SIZES):
        raise argparse.ArgumentTypeError(f"{_SIZES.replace(' ', ', ')} is allowed, not {text!r}")
    return int(text)


def _dtype(text: str) -> str:
    return {"fp16": "float16", "bf16": "bfloat16"}.get(text, text)


def _instance(text: str) -> Instance:
    try:
        return parse_instance(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(
            f"TOKENS or TOKENS:ADAPTERS is allowed (30720, 32:8, 64:8,zipf), not {text!r}: {error}"
        ) from None


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``run``, which takes the parsed arguments."""
    parser = _Parser(
        prog="lora-autotune",
        description="Tune the CSGMV LoRA kernels for this machine's GPU, and look up what was.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, module: str, text: str) -> _Parser:
        added: _Parser = commands.add_parser(name, help=text, description=text)

        def run(arguments: Any) -> int:  # each command imports only what it needs
            code: int = getattr(import_module(f"lora_autotune.cli.{module}"), name)(arguments)
            return code

        added.set_defaults(run=run, parser=added)
        return added

    tune = command("tune", "tuning", "Search the configs of a model's layers, or of one task.")
    _add_tasks(tune)
    tune.add_argument("--strategy", default="auto", metavar="NAME", help="default: auto")
    tune.add_argument(
        "--prune",
        action="store_true",
        help="let grid give up what cannot win, as the other strategies do",
    )
    tune.add_argument(
        "--trials", type=_positive, metavar="N", help="most configs per task and chunk size"
    )
    tune.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="search time per task and chunk size"
    )
    tune.add_argument("--seed", type=int, default=0)
    tune.add_argument(
        "--max-regression",
        type=_fraction,
        default=MAX_REGRESSION,
        metavar="PERCENT",
        help=f"most that a winner may lose on any one batch; default: {MAX_REGRESSION:.0%}%",
    )
    tune.add_argument(
        "--replay",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="search recorded landscapes instead of the GPU; without FILE those that ship",
    )
    _add_kernels(tune, "lora_configs")
    tune.add_argument("--journal", type=Path, metavar="PATH", help="default: OUT/tune.journal")
    tune.add_argument("--resume", action="store_true", help="continue what the journal holds")
    tune.add_argument(
        "--write-partial", action="store_true", help="on Ctrl-C write the winners found so far"
    )
    tune.add_argument("--json", action="store_true", help="one object per line on stdout")
    tune.add_argument(
        "--only-missing", action="store_true", help="leave out what OUT has an entry for"
    )
    tune.add_argument(
        "--dry-run", action="store_true", help="list the tasks and what they would take; tune none"
    )
    tune.add_argument("--device", metavar="NAME", help="with --dry-run: another GPU than this one")
    tune.add_argument("--triton", metavar="VERSION", help="with --dry-run: another Triton")

    record = command("record", "recording", "Measure a whole space into landscape files.")
    _add_tasks(record)
    _add_kernels(record, "landscapes")

    lookup = command("lookup", "inspecting", "What a server would get, from which file, and why.")
    lookup.add_argument("--kernel", choices=KERNELS, required=True)
    for name in ("-K", "-R", "-S"):
        lookup.add_argument(name, type=_positive, required=True)
    lookup.add_argument("--chunk-size", type=_positive, required=True)
    lookup.add_argument(
        "--kernels", choices=KERNEL_SETS, default=BUILTIN, help="whose configs; default: builtin"
    )
    lookup.add_argument("--device", metavar="NAME", help="default: this machine's GPU")
    lookup.add_argument("--triton", metavar="VERSION", help="default: the Triton installed here")

    check = command("check", "inspecting", "Validate config files and trees, strictly.")
    check.add_argument("paths", nargs="+", type=Path, metavar="PATH")

    command("strategies", "inspecting", "The strategies that are installed, plug-ins included.")

    doctor = command("doctor", "doctor", "What this machine has, what is wrong, and what to do.")
    doctor.add_argument("--json", action="store_true", help="the same facts, one object")
    commands.metavar = "|".join(commands.choices)
    return parser


def _add_kernels(parser: argparse.ArgumentParser, folder: str) -> None:
    parser.add_argument(
        "--kernels",
        choices=KERNEL_SETS,
        default=BUILTIN,
        help="sglang: the kernels of the SGLang that is installed; default: builtin, our own",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"where files go; default: {folder}, {folder}/sglang for its kernels",
    )


def out_folder(arguments: Any, usual: str) -> Path:
    """--out; without it the usual folder, or one in it for kernels that are not ours."""
    named: Path | None = arguments.out
    return named or Path(usual, *[name for name in [arguments.kernels] if name != BUILTIN])


def _add_tasks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME|DIR|config.json", help="the model whose layers")
    parser.add_argument("--kernel", choices=KERNELS, help="one task by hand, with -K and -S")
    parser.add_argument("-K", type=_positive, help="shrink: input width; expand: output width")
    parser.add_argument("-S", type=_positive, help="fused slices; default: 1")
    parser.add_argument(
        "--slices",
        type=_positive,
        nargs="+",
        metavar="WIDTH",
        help="widths of an expand's slices; default: equal ones",
    )
    parser.add_argument(
        "--rank",
        type=_positive,
        nargs="+",
        metavar="R",
        help="the largest rank that the server allows; several: each",
    )
    parser.add_argument("--tp", type=_positive, help="tensor-parallel size; default: 1")
    parser.add_argument(
        "--lm-head", action="store_true", help="the model's lm_head too, on few rows"
    )
    parser.add_argument("--dtype", type=_dtype, choices=DTYPES, help="default: float16")
    parser.add_argument(
        "--chunk-sizes",
        type=_positive,
        nargs="+",
        metavar="N",
        help=f"default: {_SIZES}, or those that a server of --max-lora-chunk-size would use",
    )
    parser.add_argument(
        "--tokens",
        type=_instance,
        nargs="+",
        metavar="TOKENS[:ADAPTERS]",
        help="batches to tune on; default: those that reach each chunk size",
    )
    parser.add_argument(
        "--workload",
        metavar="NAME|FILE",
        help=f"what is served: {', '.join(PRESETS)}, or a file with a batch and a weight per line",
    )
    parser.add_argument(
        "--traffic",
        type=Path,
        metavar="FILE",
        help="a server's own steps, a line each: PHASE TOKENS [ADAPTERS [COUNT]]",
    )
    parser.add_argument(
        "--max-lora-chunk-size",
        type=_chunk_size,
        metavar="N",
        help="the server's own; default: whatever a server may have",
    )
    parser.add_argument("--space", choices=SPACE_NAMES, help="default: wide")
