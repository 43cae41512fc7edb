"""What decides a vector besides its content: the package's weights and kernels, the prompt, the pixel budget.

Vectors of two regimes must not be compared, so an index keeps the one it was made with.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from runtime.manifest import Manifest
from runtime.prompts.encode import EncodeOptions

OF_THE_PACKAGE = ("weights", "precision", "target", "stored")
SHOWN = 40  # characters of an instruction in a message
SHOWN_HASH = 12


@dataclass(frozen=True)
class Regime:
    """`weights` is the SHA-256 of the checkpoint, the fields from `max_length` on are those of EncodeOptions.

    `stored`: the schemes of the matrices, which hold the blocks of int4, and whether they were calibrated; empty in
    older indexes, which do not know.
    """

    weights: str
    precision: str
    target: str
    max_length: int
    min_pixels: int
    max_pixels: int
    total_pixels: int
    fps: float
    max_frames: int
    default_instruction: str
    special_tokens: str
    strict_video_budget: bool
    exact_resize: bool
    stored: str = ""

    @classmethod
    def of(cls, manifest: Manifest, options: EncodeOptions) -> Self:
        """The regime of a package that is used with `options`."""
        calibrated = ["calibrated"] if manifest.calibration else []
        return cls(
            manifest.source.sha256,
            manifest.precision,
            manifest.target,
            options.max_length,
            options.min_pixels,
            options.max_pixels,
            options.total_pixels,
            options.fps,
            options.max_frames,
            options.default_instruction,
            options.special_tokens,
            options.strict_video_budget,
            options.exact_resize,
            ", ".join([*sorted({*manifest.matrices.values()}), *calibrated]),
        )

    def options(self) -> dict[str, Any]:
        """The fields that a caller may choose, under the names of Qwen3VLEmbedder's arguments."""
        return {name: value for name, value in asdict(self).items() if name not in OF_THE_PACKAGE}

    def differences(self, here: "Regime") -> list[str]:
        """A few words for each field in which `here` is another one."""
        known = self.stored and self.precision == here.precision  # another precision says it all
        own, other = asdict(self), asdict(here if known else replace(here, stored=self.stored))
        return [difference(name, own[name], other[name]) for name in own if own[name] != other[name]]


def difference(name: str, there: Any, here: Any) -> str:
    """How a message names what an index has in one way and a query in another."""
    return f"{name} {_shown(name, there)} in the index, {_shown(name, here)} here"


def _shown(name: str, value: Any) -> str:
    if name == "weights":
        return str(value)[:SHOWN_HASH]
    if name == "default_instruction":
        return repr(value if len(value) <= SHOWN else f"{value[:SHOWN]}…")
    return str(value)
