"""Memory as a sum of parts: weights against the files they lie in, and the parts against a real process."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_shapes import TINY_2B, TINY_8B
from onnx_files import external, load, weights
from random_checkpoint import Shape

from runtime.graphs.memory import GraphMemory, Resident, memory_policy, peak_resident, resident
from runtime.manifest import DECODER, VISION, Manifest
from runtime.planning.footprint import Footprint
from runtime.planning.weights import (
    PER_TOKEN,
    graph_weights,
    matrices_of,
    matrix_bytes,
    matrix_shape,
    table_bytes,
    unpacking_bytes,
)
from runtime.planning.work import Work

Packages = Callable[..., Path]
PROCESS = Resident(1000, 100)
ROOT = Path(__file__).parent.parent
PREPACKED, MAPPED = GraphMemory(prepack=True), GraphMemory(prepack=False)
BESIDE = ("zeros", "lower:multipliers", "upper:multipliers")
on_linux = pytest.mark.skipif(resident() is None, reason="this system does not tell anonymous from mapped memory")


@pytest.mark.parametrize("shape", [TINY_2B, TINY_8B], ids=["2b", "8b"])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-portable", "int4", "int4-portable"])
def test_matrices_have_the_bytes_that_the_graphs_say(package: Packages, shape: Shape, precision: str) -> None:
    folder = package(shape, "embedding", precision)
    manifest = Manifest.read(folder)
    for graph in (DECODER, VISION):
        sizes = {each.name: external(each)[2] for each in weights(load(folder, graph))}
        for name, scheme in matrices_of(manifest, graph).items():
            parts = [sizes[key] for key in (name, *(f"{name}:{part}" for part in BESIDE)) if key in sizes]
            parts += [sizes[f"{name}:scales"]] if "-block" in scheme and "-two-level-" not in scheme else []
            found = matrix_bytes(scheme, *matrix_shape(name, manifest.text, manifest.vision))
            assert found.stored == sum(parts), name


@pytest.mark.parametrize(("precision", "row"), [("fp32", 128), ("int8", 68), ("int4", 68)])
def test_the_token_table_is_the_rest_of_the_file(package: Packages, precision: str, row: int) -> None:
    manifest = Manifest.read(package(TINY_2B, "embedding", precision))
    table = manifest.text.vocab_size * row
    assert table <= table_bytes(manifest) < table + 200_000  # norms, per-token scales, padding of the file


def test_prepacked_weights_are_anonymous_and_others_mapped(package: Packages) -> None:
    manifest = Manifest.read(package(TINY_2B, "embedding", "int8"))
    packed, mapped = (graph_weights(manifest, DECODER, memory, copied=False) for memory in (PREPACKED, MAPPED))
    assert packed.mapped == mapped.anonymous == 0
    assert packed.anonymous == mapped.mapped > 0


def test_weights_that_are_stored_anew_are_anonymous_in_both_modes(package: Packages) -> None:
    manifest = Manifest.read(package(TINY_2B, "embedding", "int8"))
    stored = graph_weights(manifest, DECODER, MAPPED, copied=False).mapped
    for memory in (PREPACKED, MAPPED):
        found = graph_weights(manifest, DECODER, memory, copied=True)
        assert found.mapped == 0 and 1.5 * stored < found.anonymous < 2 * stored
    float32 = Manifest.read(package(TINY_2B, "embedding"))
    assert graph_weights(float32, DECODER, MAPPED, copied=True) == graph_weights(float32, DECODER, MAPPED, copied=False)


def test_blocks_keep_their_scales_mapped_beside_the_copy() -> None:
    whole = matrix_bytes("int4-block32-asymmetric", 10, 100)
    # 4 blocks of 32 a row: 64 bytes of codes, 16 of scales, 2 of zeros.
    assert (whole.stored, whole.prepacked, whole.kept) == (820, 960, 180)
    symmetric = matrix_bytes("int8-block128-symmetric", 10, 100)
    assert (symmetric.stored, symmetric.prepacked, symmetric.kept) == (1320, 1360, 40)


def test_earlier_packages_have_offsets_beside_their_multipliers() -> None:
    assert matrix_bytes("int4-two-level-block16", 10, 64).stored == 10 * (32 + 2 * 4)
    assert matrix_bytes("int4-two-level-signed-block8", 10, 64).stored == 10 * (32 + 8)


def test_two_levels_stay_mapped_and_take_room_while_they_are_unpacked(package: Packages) -> None:
    manifest = Manifest.read(package(TINY_2B, "embedding", "int4"))
    int8 = sum(
        math.prod(matrix_shape(name, manifest.text, manifest.vision))
        for name, scheme in matrices_of(manifest, DECODER).items()
        if scheme == PER_TOKEN
    )
    found, mapped = (graph_weights(manifest, DECODER, memory, copied=False) for memory in (PREPACKED, MAPPED))
    assert found.anonymous == int8 > 0 == mapped.anonymous
    assert found.mapped == mapped.mapped - int8 > 0
    widest = manifest.text.intermediate_size * manifest.text.hidden_size
    assert unpacking_bytes(manifest) == 2.5 * widest
    floats = Manifest.read(package(TINY_2B, "embedding"))
    more, less = (parts(footprint(each, "low"), Work(1, 16, 16)) for each in (manifest, floats))
    assert more["buffers of the decoder"] - less["buffers of the decoder"] == 2.5 * widest
    assert unpacking_bytes(Manifest.read(package(TINY_2B, "embedding", "int8"))) == 0


def footprint(manifest: Manifest, mode: str, batch_tokens: int = 1024) -> Footprint:
    return Footprint(manifest, memory_policy(mode, manifest.matrices), batch_tokens, PROCESS, copied=False)


def parts(found: Footprint, work: Work, phase: str = "decoder") -> dict[str, int]:
    """Bytes of each part of a phase, both kinds."""
    (wanted,) = (each for each in found.phases(work) if each.name == phase)
    return {part.name: part.anonymous + part.mapped for part in wanted.parts}


def test_keys_and_values_grow_with_the_prompt_and_buffers_with_the_call(package: Packages) -> None:
    manifest = Manifest.read(package(TINY_2B, "embedding"))
    text = manifest.text
    found = footprint(manifest, "normal")
    one, long = (parts(found, Work(1, length, length)) for length in (1024, 2048))
    token = 8 * text.num_key_value_heads * text.head_dim * text.num_hidden_layers
    assert one["keys and values"] == 1024 * token and long["keys and values"] == 2048 * token
    assert one["buffers of the decoder"] == long["buffers of the decoder"]
    together = parts(found, Work(4, 128, 128))
    assert together["keys and values"] == parts(found, Work(1, 512, 512))["keys and values"]
    halved = parts(footprint(manifest, "normal", 512), Work(1, 1024, 1024))
    assert 2 * halved["buffers of the decoder"] == one["buffers of the decoder"]


def test_the_last_layers_keys_and_values_are_joined_by_copies(package: Packages) -> None:
    manifest = Manifest.read(package(TINY_2B, "embedding"))
    long = parts(footprint(manifest, "normal"), Work(1, 8192, 8192))
    layers = manifest.text.num_hidden_layers
    assert long["buffers of the decoder"] == 2 * long["keys and values"] / layers


def test_a_text_needs_no_vision_encoder(package: Packages) -> None:
    found = footprint(Manifest.read(package(TINY_2B, "embedding")), "normal")
    assert [phase.name for phase in found.phases(Work(1, 64, 64))] == ["decoder"]
    assert "weights of the vision encoder" not in parts(found, Work(1, 64, 64))


def test_the_vision_encoder_stays_in_the_normal_mode_only(package: Packages) -> None:
    manifest = Manifest.read(package(TINY_2B, "embedding"))
    work = Work(1, 300, 44, ((1, 1024),), 640 * 480)
    for mode, kept in (("normal", True), ("low", False)):
        found = footprint(manifest, mode)
        assert "weights of the vision encoder" in parts(found, work, "vision")
        assert ("weights of the vision encoder" in parts(found, work)) == kept


def test_the_decoder_keeps_its_buffers_in_the_normal_mode_only(package: Packages) -> None:
    manifest = Manifest.read(package(TINY_2B, "embedding"))
    work = Work(1, 300, 44, ((1, 1024),))
    normal, low = (footprint(manifest, mode) for mode in ("normal", "low"))
    for phase in ("reading", "vision"):
        assert (
            parts(normal, work, phase)["buffers that the decoder keeps"]
            == parts(normal, work)["buffers of the decoder"]
        )
        assert "buffers that the decoder keeps" not in parts(low, work, phase)


def test_a_video_goes_through_the_vision_encoder_in_bounded_calls(package: Packages) -> None:
    found = footprint(Manifest.read(package(TINY_2B, "embedding")), "normal")
    few, many = (parts(found, Work(1, frames * 250 + 50, 50, ((frames, 1000),)), "vision") for frames in (8, 32))
    assert few["buffers of the vision encoder"] == many["buffers of the vision encoder"]
    assert many["patches"] == 4 * few["patches"]


def test_the_peak_is_the_largest_phase(package: Packages) -> None:
    found = footprint(Manifest.read(package(TINY_2B, "embedding")), "normal")
    work = Work(1, 300, 44, ((1, 1024),), 4000 * 3000)
    assert found.largest(work).name == "reading"  # the picture itself, twice, is more than a tiny model
    assert found.largest(Work(1, 8192, 7936, ((1, 1024),), 640 * 480)).name == "decoder"
    assert found.peak(work).anonymous == found.largest(work).anonymous
    assert found.peak(work).mapped == max(phase.mapped for phase in found.phases(work))


# Without the tokenizer: reading it leaves room in the heap, which hides what comes after.
MEASURE = """
import json, sys
from pathlib import Path
from runtime.manifest import Manifest
from runtime.graphs.memory import peak_resident, resident
from runtime.graphs.model import Model
from runtime.planning.pace import text_span
folder = Path(sys.argv[1])
manifest = Manifest.read(folder)
model = Model(folder, manifest, ["CPUExecutionProvider"], 1)
model.pooled([text_span(16, 0, manifest).prompt])
before = resident()
model.pooled([text_span(4096, 0, manifest).prompt], 1024)
after = resident()
print(json.dumps(peak_resident() - before.anonymous - after.mapped))
"""


@on_linux
def test_what_a_long_text_takes_is_what_the_parts_say(package: Packages) -> None:
    """Keys and values and the buffers of a call, as a fresh process finds them."""
    folder = package(TINY_8B, "embedding")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, folder], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = parts(footprint(Manifest.read(folder), "normal"), Work(1, 4096, 4096))
    expected = found["keys and values"] + found["buffers of the decoder"]
    assert 0.7 < json.loads(done.stdout) / expected < 1.5


def test_the_peak_of_a_process_is_at_least_what_it_holds() -> None:
    peak, now = peak_resident(), resident()
    assert (peak is None) == (sys.platform == "win32")
    if peak is not None and now is not None:
        assert peak > 10_000_000 and peak >= 0.99 * (now.anonymous + now.mapped)
