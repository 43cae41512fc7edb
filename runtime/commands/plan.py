"""`python -m runtime plan`: what inputs would cost, said before they run."""

import argparse
import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from runtime.commands.options import Lines, add_budgets, add_command, add_resources, budgets
from runtime.errors import MediaError, PackageError
from runtime.graphs.memory import memory_policy
from runtime.graphs.package import chosen_threads, open_encoder, require_positive
from runtime.graphs.session import require_providers
from runtime.manifest import Manifest
from runtime.planning.plan import Planned, Planner, Setting, measure
from runtime.planning.report import facts, size, table
from runtime.planning.workload import VIDEO_FPS, Outline, Workload, picture_workload, text_workload, video_workload

SHORT_TEXT, LONG_TEXT = "32", "1024"
UNITS = {"MB": 10**6, "MIB": 2**20, "GB": 10**9, "GIB": 2**30}
AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?([MG]I?B)", re.IGNORECASE)


def add_plan(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    command = add_command(commands, "plan", plan, "tokens, memory and seconds of inputs, before they run")
    command.add_argument("--tokens", action="append", default=[], metavar="N", help="a text of N tokens; 4xN: four")
    command.add_argument("--image", action="append", default=[], metavar="WxH", help="a picture, such as 4000x3000")
    command.add_argument(
        "--video",
        action="append",
        default=[],
        metavar="Ns@WxH",
        help=f"a video file, such as 30s@1280x720, of {VIDEO_FPS} frames a second",
    )
    command.add_argument(
        "--ram",
        type=_amount,
        metavar="SIZE",
        help="say which --max-pixels fits into that much memory, such as 4GB, mapped files included;\n"
        "exit code 1 if none does",
    )
    command.add_argument("--json", action="store_true", help="the same facts as JSON")
    add_budgets(command)
    add_resources(command)


def plan(options: argparse.Namespace, complaints: list[str]) -> Lines:
    """A table, or one JSON object. Raises InputError, PackageError."""
    setting = _setting(options)
    planner = Planner(setting)
    inputs = [_planned(planner, name, make) for name, make in _asked(options, setting)]
    picture = planner.largest_picture(options.ram) if options.ram else None
    lacking = picture is not None and picture.resident > options.ram
    # Opening what does not fit would only show how slow a machine becomes then.
    measured = None if lacking else measure(setting, any(each.work and each.work.visuals for each in inputs))
    found = facts(setting, planner, inputs, measured, picture)
    if options.json:
        yield json.dumps(found, indent=1)
    else:
        yield from table(found)
    if picture is not None and lacking:
        complaints.append(
            f"{setting.folder}: not even the smallest picture fits into {size(options.ram)}, it takes "
            f"{size(picture.resident)}; try --memory low, another precision, or more memory."
        )


def _setting(options: argparse.Namespace) -> Setting:
    manifest = Manifest.read(options.package)
    if manifest.target != "cpu":
        raise PackageError(
            f"{options.package} was made for {manifest.target}, a plan knows calls and memory of the CPU only; "
            f"measure instead: python -m runtime bench {options.package}"
        )
    policy = memory_policy(options.memory, manifest.matrices)
    threads = chosen_threads(options.threads)
    if options.batch_tokens is not None:
        require_positive("batch_tokens", options.batch_tokens)
    return Setting(
        options.package,
        manifest,
        options.memory,
        open_encoder(options.package, manifest, budgets(options)),
        policy,
        require_providers(None, manifest.target, options.package),
        threads,
        options.batch_tokens or policy.batch_tokens,
    )


def _asked(options: argparse.Namespace, setting: Setting) -> Iterator[tuple[str, Callable[[], Workload]]]:
    """What to plan, by name: the asked inputs, or two texts and a picture at the pixel budget."""
    encoder, chosen = setting.encoder, setting.encoder.options
    side = math.isqrt(min(chosen.max_pixels, chosen.fetch.max_image_pixels))
    nothing = not (options.tokens or options.image or options.video)
    for tokens in [SHORT_TEXT, LONG_TEXT] if nothing else options.tokens:
        yield f"text of {tokens}", partial(text_workload, tokens, encoder)
    for picture in [f"{side}x{side}"] if nothing else options.image:
        yield f"picture {picture}", partial(picture_workload, picture, encoder)
    for video in options.video:
        yield f"video {video}", partial(video_workload, video, encoder)


def _planned(planner: Planner, name: str, make: Callable[[], Workload]) -> Planned:
    try:
        return planner.plan(make())
    except MediaError as error:  # a shape that the runtime refuses before it counts tokens
        return Planned(name, Outline(None, 0, 0, f"refused, {name}: {error}"))


def _amount(text: str) -> int:
    """Bytes of `4GB`, `512 MB`, `3.5GiB`; argparse says what it expects of anything else."""
    match = AMOUNT.fullmatch(text.strip())
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; write 4GB, 512MB or 3.5GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])
