"""The vision encoder as vision.onnx. Mirrors transformers' Qwen3VLVisionModel (4.57).

Shapes: F equal-sized pictures or frame pairs, P patches each, D hidden, M = merge² patches a token, L DeepStack layers.
Every F attends to itself only, so it is the batch dimension and attention needs no mask. What follows attention knows
rows only, F·P of them, and takes them in pieces.
"""

from collections.abc import Callable, Sequence

import numpy as np

from export.blocks import Parts, entering, layer_norm, leaving, linear, linears, matrix, reshape, row_range, vector
from export.graph import CONTRIB, Graph, Value
from quant.schemes import Linear, cast
from runtime.manifest import VisionConfig

PREFIX = "model.visual"


def build_vision(parts: Parts, config: VisionConfig) -> Graph:
    """Add the whole vision encoder to `parts.graph` and return it."""
    graph, hidden_size = parts.graph, config.hidden_size
    half = hidden_size // config.num_heads // 2
    patch = config.in_channels * config.temporal_patch_size * config.patch_size**2
    patches = entering(parts, graph.input("patches", "float32", ["F", "P", patch]))
    rotary = (
        entering(parts, graph.input("rotary_cos", "float32", ["F", "P", half])),
        entering(parts, graph.input("rotary_sin", "float32", ["F", "P", half])),
    )
    hidden = patch_embedding(parts, config, patches)  # [F,P,D]
    hidden = graph.op("Add", hidden, position_embedding(parts, config))
    pieces = Pieces(parts, patches, hidden_size)
    features = {}
    for index in range(config.depth):
        hidden = block(parts, config, index, hidden, rotary, pieces)
        hidden.name = f"blocks.{index}:hidden"  # for comparing packages layer by layer
        if index in config.deepstack_visual_indexes:
            position = config.deepstack_visual_indexes.index(index)
            features[index] = deepstack_merger(parts, config, position, hidden)
    tokens = merger(parts, config, hidden)
    graph.output("tokens", leaving(parts, tokens), "float32", ["F*P/M", config.out_hidden_size])
    axis = graph.constant(np.array([0], np.int64))
    stacked = graph.op("Concat", *[graph.op("Unsqueeze", each, axis) for each in features.values()], axis=0)
    graph.output("deepstack", leaving(parts, stacked), "float32", [len(features), "F*P/M", config.out_hidden_size])
    return graph


def patch_embedding(parts: Parts, config: VisionConfig, patches: Value) -> Value:
    """The Conv3d whose stride is its kernel, as the linear layer it is: [F,P,C·T·p·p] → [F,P,D]."""
    kernel = (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
    prefix, hidden_size = f"{PREFIX}.patch_embed.proj", config.hidden_size
    weight = matrix(parts, f"{prefix}.weight", (hidden_size, *kernel))
    bias = matrix(parts, f"{prefix}.bias", (hidden_size,))
    return linears(parts, patches, [Linear(weight, bias)])[0]


def position_embedding(parts: Parts, config: VisionConfig) -> Value:
    """Four weighted rows of the position table a patch → [P,D]; mirrors fast_pos_embed_interpolate.

    The host gives the four neighbours' indices [4,P] and weights [4,P,1]; they are added in the reference's order, in
    float32 for every target.
    """
    graph, stored = parts.graph, parts.kernels.weights
    index = graph.input("position_index", "int64", [4, "P"])
    weight = graph.input("position_weight", "float32", [4, "P", 1])
    name, shape = f"{PREFIX}.pos_embed.weight", (config.num_position_embeddings, config.hidden_size)
    table = graph.weight(name, stored, shape, matrix(parts, name, shape).blocks)
    total = None
    for corner in range(4):
        at = graph.constant(np.array(corner, np.int64))
        rows = cast(graph, graph.op("Gather", table, graph.op("Gather", index, at, axis=0)), stored, "float32")  # [P,D]
        rows = graph.op("Mul", rows, graph.op("Gather", weight, at, axis=0))
        total = rows if total is None else graph.op("Add", total, rows)
    assert total is not None
    return entering(parts, total)


class Pieces:
    """The graph input `pieces` [1], in how many pieces of equal length the rows of all pictures are taken.

    Large pictures take less time and, an MLP being what is widest here, half the memory for buffers.
    """

    def __init__(self, parts: Parts, patches: Value, size: int):
        self._parts, self._size = parts, size
        # Where weights become uint8 there are no bodies: onnxruntime changes none that is used in one.
        self._scans = parts.kernels.pieces and not parts.plan.to_uint8
        graph, count = parts.graph, parts.graph.input("pieces", "int64", [1])
        if self._scans:
            rest, width = (graph.constant(np.array([number], np.int64)) for number in (-1, size))
            self._cut = graph.op("Concat", count, rest, width, axis=0)  # n, R, D
            self._whole = graph.op("Concat", graph.op("Shape", patches, end=2), width, axis=0)  # F, P, D

    def each(self, function: Callable[..., Value], *inputs: Value) -> Value:
        """`function` of pieces [R,D] of the `inputs` [F,P,D] → [F,P,D]; of all rows at once where there is no Scan."""
        if not self._scans:
            return function(*inputs)
        graph, dtype = self._parts.graph, self._parts.kernels.activations
        cut = [graph.op("Reshape", each, self._cut) for each in inputs]  # [n,R,D]
        return graph.op("Reshape", graph.scan(function, cut, dtype, ["R", self._size]), self._whole)


def block(
    parts: Parts,
    config: VisionConfig,
    index: int,
    hidden: Value,
    rotary: Sequence[Value],
    pieces: Pieces | None = None,
) -> Value:
    """Attention and MLP with their residuals, [F,P,D] → [F,P,D]; without `pieces` over all rows at once."""
    graph, size = parts.graph, config.hidden_size
    prefix = f"{PREFIX}.blocks.{index}"
    x = layer_norm(parts, hidden, f"{prefix}.norm1", size)
    query, key, value = linears(parts, x, _query_key_value(parts, f"{prefix}.attn.qkv", size))
    query, key = (graph.op("RotaryEmbedding", each, *rotary, num_heads=config.num_heads) for each in (query, key))
    attended = _attention(parts, query, key, value, config.num_heads)

    def rest(hidden: Value, attended: Value) -> Value:
        return _after_attention(parts, config, prefix, hidden, attended)

    return pieces.each(rest, hidden, attended) if pieces else rest(hidden, attended)


def _after_attention(parts: Parts, config: VisionConfig, prefix: str, hidden: Value, attended: Value) -> Value:
    """The output projection and the MLP, each with its residual: two times [...,D] → [...,D]."""
    graph, size = parts.graph, config.hidden_size
    hidden = graph.op("Add", hidden, linear(parts, attended, f"{prefix}.attn.proj", (size, size), bias=True))
    x = layer_norm(parts, hidden, f"{prefix}.norm2", size)
    x = _tanh_gelu(parts, x, f"{prefix}.mlp.linear_fc1", (config.intermediate_size, size))
    x = linear(parts, x, f"{prefix}.mlp.linear_fc2", (size, config.intermediate_size), bias=True, after_gelu=True)
    return graph.op("Add", hidden, x)


def _attention(parts: Parts, query: Value, key: Value, value: Value, heads: int) -> Value:
    """Of every patch to all of its picture. With 3-D inputs, no mask and no past: else no flash kernel takes it."""
    if parts.kernels.multi_head:
        return parts.graph.op("MultiHeadAttention", query, key, value, domain=CONTRIB, num_heads=heads)
    return parts.graph.op("Attention", query, key, value, q_num_heads=heads, kv_num_heads=heads)


def _tanh_gelu(parts: Parts, x: Value, prefix: str, sizes: tuple[int, int]) -> Value:
    """Gelu, tanh's form, of a product with a bias; together they are a pass less over what is widest here."""
    fused = parts.kernels.biased_gelu
    x = linear(parts, x, prefix, sizes, bias=not fused)
    if not fused:
        return parts.graph.op("Gelu", x, approximate="tanh")
    return parts.graph.op("FastGelu", x, vector(parts, f"{prefix}.bias", sizes[0]), domain=CONTRIB)


def _query_key_value(parts: Parts, prefix: str, size: int) -> list[Linear]:
    """The packed product as three row ranges: a Split after it would copy everything once more."""
    weight = parts.checkpoint.tensor(f"{prefix}.weight", (3 * size, size))
    bias = parts.checkpoint.tensor(f"{prefix}.bias", (3 * size,))
    ranges = [(part, position * size) for position, part in enumerate("qkv")]
    return [
        Linear(
            row_range(parts, f"{prefix}.weight[{part}]", weight, (start, start + size)),
            row_range(parts, f"{prefix}.bias[{part}]", bias, (start, start + size)),
        )
        for part, start in ranges
    ]


def merger(parts: Parts, config: VisionConfig, hidden: Value) -> Value:
    """Norm over each patch, then merge²  patches become one token: [F,P,D] → [F·P/M, out]."""
    x = layer_norm(parts, hidden, f"{PREFIX}.merger.norm", config.hidden_size)
    return _merge(parts, config, f"{PREFIX}.merger", _shuffle(parts, config, x))


def deepstack_merger(parts: Parts, config: VisionConfig, position: int, hidden: Value) -> Value:
    """The same with the norm after the shuffle: [F,P,D] → [F·P/M, out]."""
    prefix = f"{PREFIX}.deepstack_merger_list.{position}"
    width = config.hidden_size * config.spatial_merge_size**2
    x = layer_norm(parts, _shuffle(parts, config, hidden), f"{prefix}.norm", width)
    return _merge(parts, config, prefix, x)


def _shuffle(parts: Parts, config: VisionConfig, x: Value) -> Value:
    """Neighbouring patches of one token side by side: [F,P,D] → [F·P/M, M·D]."""
    return reshape(parts.graph, x, (-1, config.hidden_size * config.spatial_merge_size**2))


def _merge(parts: Parts, config: VisionConfig, prefix: str, x: Value) -> Value:
    """x [R,M·D] → [R,out]; where the kernels want it, over an even number of rows."""
    graph = parts.graph
    if not parts.kernels.even_rows:
        return _merger_mlp(parts, config, prefix, x)
    start, two = (graph.constant(np.array([number], np.int64)) for number in (0, 2))
    rows = graph.op("Shape", x, start=0, end=1)  # [1]
    first = graph.op("Slice", x, start, graph.op("Mod", rows, two))  # [R mod 2,M·D]
    x = _merger_mlp(parts, config, prefix, graph.op("Concat", x, first, axis=0))
    return graph.op("Slice", x, start, rows)


def _merger_mlp(parts: Parts, config: VisionConfig, prefix: str, x: Value) -> Value:
    """x [R,M·D] → [R,out]."""
    width = config.hidden_size * config.spatial_merge_size**2
    x = linear(parts, x, f"{prefix}.linear_fc1", (width, width), bias=True)
    x = parts.graph.op("Gelu", x)  # exact here, tanh in the blocks
    return linear(parts, x, f"{prefix}.linear_fc2", (config.out_hidden_size, width), bias=True, after_gelu=True)
