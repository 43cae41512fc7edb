"""`python -m export`: make an ONNX package of a Qwen3-VL-Embedding or Qwen3-VL-Reranker checkpoint."""

import sys
from collections.abc import Callable, Sequence

from runtime.commands.exit_code import exit_code
from runtime.extras import needing_extra


def main(arguments: Sequence[str] | None = None) -> int:
    """As `export.cli.main`, also where the extra `export` is not installed."""
    return exit_code(lambda: _command()(arguments))


def _command() -> Callable[[Sequence[str] | None], int]:
    with needing_extra("export"):
        from export.cli import main as command
    return command


if __name__ == "__main__":
    sys.exit(main())
