"""Names of parametrised cases that are the same in every process, which running tests side by side needs."""

import re


def shown(value: object) -> str:
    """`repr` without addresses."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(value))
