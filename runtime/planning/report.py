"""A plan as facts for JSON, and the facts as lines of text."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from runtime.planning.plan import Fit, Measured, Planned, Planner, Setting

WIDTHS = "{:<30} {:>7} {:>7} {:>10} {:>9} {:>9} {:>9}"
HEADER = ("input", "visual", "tokens", "anonymous", "mapped", "resident", "seconds")
FEW_SECONDS = 10


def facts(
    setting: Setting,
    planner: Planner,
    inputs: Sequence[Planned],
    measured: Measured | None,
    picture: Fit | None,
) -> dict[str, Any]:
    """Everything that the plan found, bytes and seconds; None where it is refused, not measured or not asked."""
    ram = None if picture is None else picture.ram
    manifest = setting.manifest
    return {
        "package": {
            "name": manifest.name,
            "task": manifest.task,
            "precision": manifest.precision,
            "fingerprint": manifest.fingerprint,
        },
        "memory": setting.memory,
        "threads": setting.threads,
        "batch_tokens": setting.batch_tokens,
        "int8_weights_copied": planner.copied,
        "inputs": [_input(setting, each, measured, ram) for each in inputs],
        "picture_for_ram": picture and asdict(picture),
        "measured": measured and asdict(measured),
    }


def table(found: dict[str, Any]) -> Iterator[str]:
    """The facts as a table, the sentences that belong to it, and what the largest peak is made of."""
    package, memory, threads = found["package"], found["memory"], found["threads"]
    yield f"{package['name']}: {package['task']}, {package['precision']}, memory {memory}, {threads} threads"
    yield WIDTHS.format(*HEADER)
    for each in found["inputs"]:
        sizes = (_size(each[key]) for key in ("anonymous", "mapped", "resident"))
        yield WIDTHS.format(
            each["name"], f"{each['visual_tokens']:,}", f"{each['tokens']:,}", *sizes, _seconds(each["seconds"])
        )
    yield from (each["note"] for each in found["inputs"] if each["note"])
    yield from _made_of(found)
    yield from _measured(found["measured"])
    if (fit := found["picture_for_ram"]) and fit["resident"] <= fit["ram"]:
        yield (
            f"\n--max-pixels {fit['max_pixels']} fits into {size(fit['ram'])}: "
            f"{fit['visual_tokens']:,} visual tokens, {size(fit['resident'])} at the peak"
        )


def size(count: int) -> str:
    """Bytes for a reader."""
    return f"{count / 1e9:.2f} GB"


def _input(setting: Setting, planned: Planned, measured: Measured | None, ram: int | None) -> dict[str, Any]:
    outline, work, phase, peak = planned.outline, planned.work, planned.phase, planned.peak
    length = None if outline.sequence is None else len(outline.sequence.input_ids)
    seconds = measured.pace.seconds(work, setting.manifest, setting.batch_tokens) if work and measured else None
    return {
        "name": planned.name,
        "visual_tokens": outline.visual_tokens,
        "tokens": length or outline.tokens,
        "note": outline.note,
        "anonymous": peak and peak.anonymous,
        "mapped": peak and peak.mapped,
        "resident": phase and phase.resident,
        "fits": None if ram is None or phase is None else phase.resident <= ram,
        "phase": phase and phase.name,
        "parts": [asdict(part) for part in phase.parts] if phase else [],
        "seconds": seconds,
    }


def _made_of(found: dict[str, Any]) -> Iterator[str]:
    counted = [each for each in found["inputs"] if each["parts"]]
    if not counted:
        return
    largest = max(counted, key=lambda each: each["resident"])
    yield f"\npeak of {largest['name']}, in the phase {largest['phase']}:"
    for part in largest["parts"]:
        if part["anonymous"] or part["mapped"]:
            mapped = f" and {part['mapped'] / 1e6:,.1f} MB mapped" if part["mapped"] else ""
            yield f"  {part['anonymous'] / 1e6:10,.1f} MB{mapped}  {part['name']}"
    if found["int8_weights_copied"]:
        yield "  (int8 weights are copied on this processor, also with --memory low)"


def _measured(measured: dict[str, Any] | None) -> Iterator[str]:
    if measured is None:
        return
    vision = measured["opening_vision"]
    opened = f"{measured['opening']:.1f} s" + ("" if vision is None else f", of the vision encoder {vision:.1f} s")
    yield f"\nmeasured here in {measured['timing']:.1f} s, after opening ({opened}); reading files is not included:"
    for name, unit in (("decoder", "token"), ("vision", "patch")):
        if cost := measured["pace"][name]:
            rate = f"{1 / cost['operation'] / 1e9:,.0f} GFLOP/s" if cost["operation"] else "too fast to see"
            yield (
                f"  {name}: {cost['call'] * 1e3:.1f} ms a call, {cost['unit'] * 1e3:.3f} ms a {unit}, "
                f"attention at {rate}"
            )


def _size(count: int | None) -> str:
    return "-" if count is None else size(count)


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= FEW_SECONDS else f"{value:.3f}"
