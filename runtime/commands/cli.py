"""The command line of the runtime: results on stdout, words and progress on stderr, the exit code tells the truth."""

import argparse
import sys
import warnings
from collections.abc import Sequence

from runtime.commands.bench import add_bench
from runtime.commands.check import add_check
from runtime.commands.embed import add_embed
from runtime.commands.exit_code import exit_code
from runtime.commands.plan import add_plan
from runtime.commands.rerank import add_rerank
from runtime.commands.results import print_line
from runtime.commands.search import add_search
from runtime.commands.verify import add_verify
from runtime.version import VERSION

EXAMPLES = """examples:
  python -m runtime embed PACKAGE --text "a red car" --image car.jpg
  python -m runtime embed PACKAGE --input items.jsonl --output vectors.npy --dimensions 512
  python -m runtime rerank PACKAGE --query "a red car" --image car.jpg --text "a blue bicycle"
  python -m runtime rerank PACKAGE --input requests.jsonl
  python -m runtime search EMBEDDER --index DIR --add photos --text "a red car" --reranker RERANKER --sheet out.png
  python -m runtime plan PACKAGE --image 4000x3000 --video 30s@1280x720 --ram 4GB
  python -m runtime bench PACKAGE --quick --json machine.json
  python -m runtime check PACKAGE
  python -m runtime verify PACKAGE
"""


def parser() -> argparse.ArgumentParser:
    """The commands of `python -m runtime`."""
    parser = argparse.ArgumentParser(
        "python -m runtime",
        description="Embed and rerank text, pictures and video with a package made by `python -m export`.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"qwen3vl-edge {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_command in (add_embed, add_rerank, add_search, add_plan, add_bench, add_check, add_verify):
        add_command(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    The exit code is 0, 1 if it has complaints such as an input skipped, 2 for an error, 130 after Ctrl-C.
    """
    options = parser().parse_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    """The command's lines, and its complaints behind them however it ends."""
    complaints: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            for line in options.run(options, complaints):
                print_line(line)
    finally:
        for complaint in complaints:
            print(complaint, file=sys.stderr)
    return 1 if complaints else 0


def _show_warning(message: Warning | str, *place: object, **more: object) -> None:
    print(f"warning: {message}", file=sys.stderr)
