"""Attention of one vision layer: onnxruntime's fused float32 kernel against int8 products in blocks of queries.

    python bench/vision_attention.py [--patches 1024 4096] [--blocks 64 256]

The int8 way is the cheapest one that keeps the softmax right: queries and keys with a scale a token and head, the
exponentials of a row with 1 as the largest, values with a scale a channel. What it would need beside (quantising q, k
and v, bringing heads together, a loop over the blocks) is not timed, so its times are lower bounds.
Shapes: H heads, P patches, B queries of a block, h head_dim.
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from runtime.planning.machine import machine_facts

HEADS, HEAD_DIM, ROUNDS = 16, 64, 7
CONTRIB = "com.microsoft"
UINT8_MIDDLE, INT8_LARGEST, UINT8_LARGEST = 128, 127, 255
Feeds = dict[str, np.ndarray]


def session(nodes: list[tuple[str, str, str]], types: dict[str, int], constants: Feeds) -> ort.InferenceSession:
    """A graph of (operator, inputs, output) that ends in `y`; operators of onnxruntime's own are marked with a dot."""
    made = [
        helper.make_node(operator.strip("."), inputs.split(), [output], domain=CONTRIB if "." in operator else "")
        for operator, inputs, output in nodes
    ]
    if made[0].op_type == "MultiHeadAttention":
        made[0].attribute.append(helper.make_attribute("num_heads", HEADS))
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(
        helper.make_graph(made, "g", inputs, [output], stored), opset_imports=opsets, ir_version=11
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(model.SerializeToString(), options)


def fused() -> ort.InferenceSession:
    """q, k, v float32 [1,P,H·h] → [1,P,H·h]."""
    return session([(".MultiHeadAttention", "q k v", "y")], dict.fromkeys("qkv", TensorProto.FLOAT), {})


def in_int8() -> ort.InferenceSession:
    """q uint8 [H,B,h], k int8 [H,h,P], v int8 [H,P,h] and their scales → [H,B,h]."""
    nodes = [
        (".MatMulIntegerToFloat", "q k one k_scale middle", "products"),  # [H,B,P]
        ("Mul", "products q_scale", "scores"),
        ("ReduceMax", "scores last", "largest"),
        ("Sub", "scores largest", "below"),
        ("Exp", "below", "weights"),
        ("ReduceSum", "weights last", "total"),
        ("QuantizeLinear", "weights step zero", "codes"),
        (".MatMulIntegerToFloat", "codes v step v_scale zero", "sums"),  # [H,B,h]
        ("Div", "sums total", "y"),
    ]
    types = {"q": TensorProto.UINT8, "k": TensorProto.INT8, "v": TensorProto.INT8}
    constants = {
        "one": np.array(1, np.float32),
        "middle": np.array(UINT8_MIDDLE, np.uint8),
        "zero": np.array(0, np.uint8),
        "step": np.array(1 / UINT8_LARGEST, np.float32),
        "last": np.array([-1]),
    }
    return session(nodes, types | dict.fromkeys(("q_scale", "k_scale", "v_scale"), TensorProto.FLOAT), constants)


def quantised(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Feeds:
    """Heads [H,P,h] as the int8 graph takes them; q_scale has 1/√h in it."""
    q_scale, k_scale = (np.abs(each).max(axis=2, keepdims=True) / INT8_LARGEST for each in (q, k))
    v_scale = np.abs(v).max(axis=1, keepdims=True) / INT8_LARGEST
    return {
        "q": (np.rint(q / q_scale) + UINT8_MIDDLE).astype(np.uint8),
        "q_scale": (q_scale / HEAD_DIM**0.5).astype(np.float32),
        "k": np.ascontiguousarray(np.rint(k / k_scale).astype(np.int8).transpose(0, 2, 1)),
        "k_scale": np.ascontiguousarray(k_scale.astype(np.float32).transpose(0, 2, 1)),
        "v": np.rint(v / v_scale).astype(np.int8),
        "v_scale": v_scale.astype(np.float32),
    }


def blocks(feeds: Feeds, size: int) -> list[Feeds]:
    """The same a block of queries each."""
    starts = range(0, feeds["q"].shape[1], size)
    cut = ("q", "q_scale")
    return [feeds | {n: np.ascontiguousarray(feeds[n][:, start : start + size]) for n in cut} for start in starts]


def interleaved(ways: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Milliseconds of every round and way, after an untimed one."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            before = perf_counter()
            way()
            if number:
                times[name].append((perf_counter() - before) * 1e3)
    return times


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--patches", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--blocks", type=int, nargs="+", default=[64, 256])
    options = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine_facts().items()))
    print("\n| patches | way | ms, median (best) | GFLOP/s (best) | error (norm) |\n| --- | --- | --- | --- | --- |")
    generator, exact, coarse = np.random.default_rng(0), fused(), in_int8()
    for patches in options.patches:
        q, k, v = (generator.standard_normal((HEADS, patches, HEAD_DIM), np.float32) for _ in range(3))
        plain = {n: each.transpose(1, 0, 2).reshape(1, patches, -1) for n, each in zip("qkv", (q, k, v), strict=True)}
        expected = exact.run(None, plain)[0].reshape(patches, HEADS, HEAD_DIM).transpose(1, 0, 2)
        ways: dict[str, Callable[[], object]] = {"float32, fused": lambda feeds=plain: exact.run(None, feeds)}
        errors = {"float32, fused": 0.0}
        for size in options.blocks:
            parts, name = blocks(quantised(q, k, v), size), f"int8, {size} queries"
            found = np.concatenate([coarse.run(None, part)[0] for part in parts], axis=1)
            errors[name] = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
            ways[name] = lambda parts=parts: [coarse.run(None, part) for part in parts]
        operations = 4 * patches**2 * HEADS * HEAD_DIM
        for name, times in interleaved(ways).items():
            speed = operations / min(times) / 1e6
            print(f"| {patches} | {name} | {median(times):.1f} ({min(times):.1f}) | {speed:.0f} | {errors[name]:.1%} |")


if __name__ == "__main__":
    main()
