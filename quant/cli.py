"""The command line of quantisation: tables on stdout, words and progress on stderr."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from quant.agreement import FEWEST_LOGITS, require_cosine
from quant.compare import Comparison, compare
from quant.losses import costliest
from quant.plot import require_plot, write_plot
from quant.summary import summary
from runtime.commands.exit_code import exit_code
from runtime.commands.results import print_line
from runtime.errors import InputError
from runtime.manifest import Manifest, Task
from runtime.version import VERSION

EXAMPLES = """examples:
  python -m quant report packages/Qwen3-VL-Embedding-2B-int8 --matrices
  python -m quant compare packages/Qwen3-VL-Embedding-2B-fp32 packages/Qwen3-VL-Embedding-2B-int8 --plot loss.png
"""


def parser() -> argparse.ArgumentParser:
    """The commands of `python -m quant`."""
    parser = argparse.ArgumentParser(
        "python -m quant",
        description="What a package's precision is made of, and what it costs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"qwen3vl-edge {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="how each matrix is stored")
    report.add_argument("package", type=Path)
    report.add_argument("--matrices", action="store_true", help="list every matrix")
    versus = commands.add_parser("compare", help="what a package lost against the float one of the same checkpoint")
    versus.add_argument("float", type=Path, metavar="FLOAT", help="the fp32 package")
    versus.add_argument("quantised", type=Path, metavar="QUANTISED", help="a package of the same checkpoint and task")
    versus.add_argument(
        "--inputs", type=Path, metavar="FILE", help="JSON lines as `python -m runtime` takes them (default: built in)"
    )
    versus.add_argument("--plot", type=Path, metavar="FILE.png", help="draw layers and matrices (needs matplotlib)")
    versus.add_argument(
        "--min-cosine",
        type=float,
        metavar="C",
        help="exit code 1 below this mean cosine (of a reranker: correlation of the logits)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 1 below --min-cosine, or 2 for an error."""
    options = parser().parse_args(arguments)
    run = {"report": _report, "compare": _compare}[options.command]
    return exit_code(lambda: run(options))


def _report(options: argparse.Namespace) -> int:
    manifest = Manifest.read(options.package)
    print_line(f"{manifest.name}: {manifest.task}, {manifest.precision} for {manifest.target}")
    for scheme, count in sorted(Counter(manifest.matrices.values()).items()):
        print_line(f"{count:5} matrices {scheme}")
    for file in manifest.files:
        print_line(f"{file.size / 1e6:12,.1f} MB {file.name}")
    if options.matrices:
        for name, scheme in manifest.matrices.items():
            print_line(f"{scheme:12} {name}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    if options.plot:
        require_plot(options.plot)
    if options.min_cosine is not None:
        require_cosine(options.min_cosine)
    one, other = Manifest.read(options.float), Manifest.read(options.quantised)
    with tqdm(unit="run", disable=None) as progress:

        def start(total: int) -> Callable[[int], object]:
            if options.min_cosine is not None and one.task == "reranker":
                _require_enough(total // 2)
            progress.reset(total)
            return lambda count: progress.update(count)

        comparison = compare(options.float, options.quantised, options.inputs, start)
    title = f"{other.name}, {other.task}: {other.precision} against {one.precision}"
    print_line(title)
    for line in summary(comparison, one.task):
        print_line(line)
    if options.plot:
        write_plot(comparison, title, options.plot)
    return _verdict(comparison, one.task, options.min_cosine)


def _require_enough(pairs: int) -> None:
    if pairs < FEWEST_LOGITS:
        raise InputError(
            f"--min-cosine compares a reranker's logits over all pairs, and these are {pairs}; "
            f"give {FEWEST_LOGITS} or more, or leave it out."
        )


def _verdict(comparison: Comparison, task: Task, least: float | None) -> int:
    agreement, is_vectors = comparison.agreement, task == "embedding"
    if least is None:
        return 0
    if agreement.cosine_mean >= least:
        return 0
    print(
        f"the {'mean cosine' if is_vectors else 'correlation of the logits'} {agreement.cosine_mean:.5f} is below "
        f"--min-cosine {least}; these layers cost most: {costliest(comparison.layers)}.",
        file=sys.stderr,
    )
    return 1
