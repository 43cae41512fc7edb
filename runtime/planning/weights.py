"""What the weights of a graph take of memory, from the sizes and schemes in the manifest."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.graphs.memory import VISION_MATRICES, GraphMemory, Resident
from runtime.manifest import DECODER, Manifest, TextConfig, VisionConfig

TOKEN_TABLE = "model.language_model.embed_tokens.weight"
PER_TOKEN = "int8-per-token"
BLOCKS = re.compile(r"int(\d)-block(\d+)-(a?)symmetric")
TWO_LEVELS = re.compile(r"int4-two-level-(signed-)?block(\d+)")  # earlier packages have offsets, too
FLOAT_BYTES = 4
# Bytes held at once of a 4-bit weight while it becomes an int8 one, a matrix at a time. Measured.
UNPACKED = 2.5
# Where onnxruntime stores int8 weights as uint8 (`let_weights_become_uint8` in graphs/probe.py): the new weights
# are held twice, or once beside the prepacked ones. Measured at matrices of 1 to 4 MB.
COPIES, COPIES_PREPACKED = 1.7, 1.9


@dataclass(frozen=True)
class MatrixBytes:
    """Bytes of one matrix: in the file, of its prepacked copy, and those of the file that the copy does not replace."""

    stored: int
    prepacked: int
    kept: int


def graph_weights(manifest: Manifest, graph: str, memory: GraphMemory, copied: bool) -> Resident:
    """What the weights of an open graph take once all of them were used, token table aside.

    `copied`: int8 weights are stored anew as uint8, in memory of the process's own.
    """
    anonymous, mapped = 0.0, 0.0
    for name, scheme in matrices_of(manifest, graph).items():
        matrix = matrix_bytes(scheme, *matrix_shape(name, manifest.text, manifest.vision))
        if copied and scheme == PER_TOKEN:
            anonymous += matrix.stored * (COPIES_PREPACKED if memory.prepack else COPIES)
        elif memory.prepack:
            anonymous, mapped = anonymous + matrix.prepacked, mapped + matrix.kept
        else:
            mapped += matrix.stored
    return Resident(int(anonymous), int(mapped))


def unpacking_bytes(manifest: Manifest) -> int:
    """Bytes that 4-bit weights take while a call multiplies by them."""
    shapes = [
        matrix_shape(name, manifest.text, manifest.vision)
        for name, scheme in manifest.matrices.items()
        if TWO_LEVELS.fullmatch(scheme)
    ]
    return int(UNPACKED * max((size * width for size, width in shapes), default=0))


def table_bytes(manifest: Manifest) -> int:
    """Bytes of the token table: what the decoder's file holds beside its matrices."""
    (stored,) = (file.size for file in manifest.files if file.name == f"{DECODER}.data")
    others = (
        matrix_bytes(scheme, *matrix_shape(name, manifest.text, manifest.vision)).stored
        for name, scheme in matrices_of(manifest, DECODER).items()
    )
    return stored - sum(others)


def matrices_of(manifest: Manifest, graph: str) -> Mapping[str, str]:
    """The schemes of a graph's matrices by name, without the token table."""
    return {
        name: scheme
        for name, scheme in manifest.matrices.items()
        if name != TOKEN_TABLE and name.startswith(VISION_MATRICES) == (graph != DECODER)
    }


def matrix_bytes(scheme: str, size: int, width: int) -> MatrixBytes:
    """Bytes of a matrix [size, width] in a scheme of the manifest."""
    if scheme == PER_TOKEN:
        return MatrixBytes(size * width, size * width, 0)
    if found := BLOCKS.fullmatch(scheme):
        bits, block = int(found[1]), int(found[2])
        count = math.ceil(width / block)
        codes, scales = size * count * block * bits // 8, size * count * FLOAT_BYTES
        zeros = size * math.ceil(count * bits / 8) if found[3] else 0
        # The copy holds the scales and as many block sums; the operator goes on reading scales and zeros.
        return MatrixBytes(codes + scales + zeros, codes + 2 * scales, scales + zeros)
    if found := TWO_LEVELS.fullmatch(scheme):
        count = size * width // math.gcd(int(found[2]), width)
        # Codes, multipliers and offsets, read where they are mapped.
        stored = size * width // 2 + (count if found[1] else 2 * count)
        return MatrixBytes(stored, 0, stored)
    return MatrixBytes(size * width * FLOAT_BYTES, size * width * FLOAT_BYTES, 0)


def matrix_shape(name: str, text: TextConfig, vision: VisionConfig) -> tuple[int, int]:
    """(outputs, inputs) of a matrix by its name in the manifest. Raises KeyError for an unknown one."""
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    merged = vision.hidden_size * vision.spatial_merge_size**2
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    hidden, wide = text.hidden_size, text.intermediate_size
    seen, seen_wide = vision.hidden_size, vision.intermediate_size
    shapes = {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (wide, hidden),
        "up_proj": (wide, hidden),
        "down_proj": (hidden, wide),
        "patch_embed.proj": (seen, patch),
        "attn.qkv": (seen, seen),  # in three parts
        "attn.proj": (seen, seen),
        "mlp.linear_fc1": (seen_wide, seen),
        "mlp.linear_fc2": (seen, seen_wide),
        "linear_fc1": (merged, merged),  # of the mergers
        "linear_fc2": (vision.out_hidden_size, merged),
    }
    stem = name.partition(".weight")[0]
    return shapes[next((key for key in shapes if stem.endswith(key)), name)]
