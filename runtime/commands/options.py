"""What the commands of `python -m runtime` have in common: their arguments, and the shape of a command."""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

from runtime.graphs.memory import MemoryMode
from runtime.graphs.target import TARGETS

Lines = Iterator[str]
# A command gives the lines of its result, and adds to a list of complaints, one sentence each, as they come up.
Command = Callable[[argparse.Namespace, list[str]], Lines]

INPUT_HELP = """JSON lines, - for standard input; each line one dict as `process` takes it:
  embed:  {"text": ..., "image": ..., "video": ..., "instruction": ...}
  rerank: {"query": {...}, "documents": [{...}, ...], "instruction": ...}"""


def add_command(commands: Any, name: str, run: Command, text: str) -> argparse.ArgumentParser:
    """A new command among `commands` (argparse's subparsers), its package the first argument."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, formatter_class=argparse.RawTextHelpFormatter
    )
    command.set_defaults(run=run)
    command.add_argument("package", type=Path, help="the folder that `python -m export` wrote")
    return command


def add_inputs(command: argparse.ArgumentParser, text: str, image: str, video: str) -> None:
    """What is embedded or reranked, as `items` in the order it is given in; the three are help texts."""
    command.add_argument("--input", metavar="FILE", help=INPUT_HELP)
    for key, metavar, help_ in (
        ("text", "TEXT", text),
        ("image", "PATH_OR_URL", image),
        ("video", "PATH_OR_URL", video),
    ):
        command.add_argument(
            f"--{key}",
            dest="items",
            action="append",
            default=[],
            type=partial(_item, key),
            metavar=metavar,
            help=help_,
        )
    command.add_argument("--instruction", help="what the vectors or scores are for; replaces the package's default")
    command.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="skip: go on without an input that cannot be used (null in the output, exit code 1)",
    )


def add_budgets(command: argparse.ArgumentParser) -> None:
    """How much of an input is looked at."""
    command.add_argument("--max-pixels", type=int, help="most pixels of a picture (1,024 make one token)")
    command.add_argument("--fps", type=float, help="frames looked at for each second of video")
    command.add_argument("--max-frames", type=int, help="most frames of a video")
    command.add_argument(
        "--strict-video",
        action="store_true",
        help="give video files the reference's own pixel budget, easily over the token limit",
    )


def add_resources(command: argparse.ArgumentParser) -> None:
    """What a run may take of the machine."""
    normal = ", ".join(f"{target.batch_tokens:,} on {name}" for name, target in TARGETS.items())
    low = " and ".join(f"{target.low_batch_tokens:,}" for target in TARGETS.values())
    command.add_argument(
        "--batch-tokens",
        type=int,
        help="tokens in a decoder call, longer inputs go in pieces "
        f"(default {normal}, twice as many for --int4 on cpu; in low memory {low})",
    )
    command.add_argument("--threads", type=int, help="default: the CPUs this process may use")
    command.add_argument(
        "--memory",
        choices=get_args(MemoryMode),
        default="normal",
        help="low: weights stay in the mapped files, buffers and vision encoder are given back after use; slower",
    )


def budgets(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `add_budgets` under the names of `runtime.prompts.encode.EncodeOptions`."""
    return {
        "max_pixels": options.max_pixels,
        "fps": options.fps,
        "max_frames": options.max_frames,
        "strict_video_budget": options.strict_video,
    }


def constructor_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `add_budgets` and `add_resources` as the two public classes take them."""
    return budgets(options) | {
        "batch_tokens": options.batch_tokens,
        "threads": options.threads,
        "memory": options.memory,
        "show_progress": sys.stderr.isatty(),
    }


def with_instruction(item: Any, instruction: str | None) -> Any:
    """The item with --instruction where it has none of its own; what is no dict is refused later, by its place."""
    if instruction is None or not isinstance(item, dict) or item.get("instruction") is not None:
        return item
    return {**item, "instruction": instruction}


def _item(key: str, value: str) -> dict[str, str]:
    return {key: value}
