"""How a command ends: its own exit code, or that of an error, with one sentence on stderr."""

import os
import sys
from collections.abc import Callable

from runtime.commands.results import give_up_standard_output
from runtime.errors import Qwen3VLError


def exit_code(run: Callable[[], int], interrupted: str = "") -> int:
    """What `run` returns; 2 for an error, 130 after Ctrl-C, 141 where nobody reads standard output any more.

    `interrupted` is what Ctrl-C leaves behind, in words; a KeyboardInterrupt may bring its own.
    """
    if sys.stderr is None:  # closed, as by 2>&-: words go nowhere, and no file gets its number
        sys.stderr = open(os.devnull, "w", errors="backslashreplace")  # noqa: SIM115 (stays open)
    try:
        return run()
    except Qwen3VLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("error: there is not enough memory; give fewer inputs at a time.", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader went away, as `head` does
        give_up_standard_output()
        return 141
    except KeyboardInterrupt as error:
        print(f"error: interrupted{error if str(error) else interrupted}.", file=sys.stderr)
        return 130
