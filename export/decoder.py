"""The language backbone as decoder.onnx. Mirrors transformers' Qwen3VLTextModel (4.57).

Shapes: B batch, S new tokens, C past capacity, D hidden, h head_dim, V visual tokens, L DeepStack layers.
The last layer computes keys and values for every token and (almost) everything else for the last one only.
On the CPU S is even: MatMulNBits multiplies rows in pairs, and calculates a row left over in another order.
Inputs and outputs are the same for every target, in float32; a target may leave some inputs unused.
"""

import numpy as np

from export.blocks import Parts, entering, leaving, linear, linears, matrix, reshape, rms_norm, swiglu, table_rows
from export.graph import CONTRIB, Graph, Value
from export.heads import Head
from quant.kernels import NUMPY_DTYPES
from quant.schemes import Linear
from runtime.manifest import TextConfig

PREFIX = "model.language_model"


def build_decoder(parts: Parts, config: TextConfig, num_deepstack: int, head: Head) -> Graph:
    """Add the whole decoder to `parts.graph` and return it."""
    graph, hidden_size = parts.graph, config.hidden_size
    half = config.head_dim // 2
    input_ids = graph.input("input_ids", "int64", ["B", "S"])
    visual_tokens = entering(parts, graph.input("visual_tokens", "float32", ["V", hidden_size]))
    visual_index = graph.input("visual_index", "int64", ["V", 2])  # (batch, token) of each visual token
    deepstack = entering(parts, graph.input("deepstack", "float32", [num_deepstack, "V", hidden_size]))
    rotary = (
        entering(parts, graph.input("rotary_cos", "float32", ["B", "S", half])),
        entering(parts, graph.input("rotary_sin", "float32", ["B", "S", half])),
    )
    lengths, last_token = Lengths(graph), LastToken(parts)

    table = (config.vocab_size, hidden_size)
    hidden = table_rows(parts, f"{PREFIX}.embed_tokens.weight", table, input_ids)  # [B,S,D]
    hidden = graph.op("ScatterND", hidden, visual_index, visual_tokens)
    last = config.num_hidden_layers - 1
    for index in range(last):
        layer = DecoderLayer(parts, config, index)
        hidden = layer.every_token(hidden, rotary, lengths)
        if index < num_deepstack:
            features = graph.op("Gather", deepstack, graph.constant(np.array(index, np.int64)), axis=0)  # [V,D]
            hidden = add_at(parts, hidden, visual_index, features)
        hidden.name = f"layers.{index}:hidden"  # for comparing packages layer by layer
    pooled = DecoderLayer(parts, config, last).last_token(hidden, rotary, lengths, last_token)  # [B,1,D]
    pooled.name = f"layers.{last}:hidden"
    pooled = leaving(parts, pooled)
    pooled = rms_norm(parts, pooled, f"{PREFIX}.norm.weight", hidden_size, config.rms_norm_eps, "float32")
    pooled = reshape(graph, pooled, (-1, hidden_size))  # [B,D]
    head.emit(parts, pooled)
    return graph


def add_at(parts: Parts, hidden: Value, index: Value, features: Value) -> Value:
    """hidden [B,S,D] with features [V,D] added at the (batch, token) pairs of index [V,2]; V may be 0."""
    graph = parts.graph
    if parts.kernels.scatter_add:
        return graph.op("ScatterND", hidden, index, features, reduction="add")
    zero = graph.constant(np.zeros((1, 1, 1), NUMPY_DTYPES[parts.kernels.activations]))
    nothing = graph.op("Expand", zero, graph.op("Shape", hidden))  # [B,S,D]
    return graph.op("Add", hidden, graph.op("ScatterND", nothing, index, features))


class Lengths:
    """The graph inputs that say how long each row and its past are.

    query_lengths [B]   new tokens of each row, the rest of S is right padding
    last_position [B]   index of the last token, past included (GroupQueryAttention's seqlens_k)
    capacity []         C + S, an upper bound of every row's length
    """

    def __init__(self, graph: Graph):
        self.query_lengths = graph.input("query_lengths", "int32", ["B"])
        self.last_position = graph.input("last_position", "int32", ["B"])
        self.capacity = graph.input("capacity", "int32", [])


class LastToken:
    """The graph inputs by which the last layer finds each row's last token and what it sees.

    last_index [B,1,1]     index of the last new token in S
    token_mask [B,S,1]     which of the S tokens are not padding
    last_mask [B,1,1,C+S]  which keys it sees; the last layer's present is the whole past, then the new tokens

    Where rows have to be even, the token is taken twice: T is 2, else 1.
    """

    def __init__(self, parts: Parts):
        graph, twice = parts.graph, parts.kernels.even_rows
        index = graph.input("last_index", "int64", ["B", 1, 1])
        self._index = graph.op("Concat", index, index, axis=1) if twice else index  # [B,T,1]
        self.token_mask = graph.input("token_mask", "bool", ["B", "S", 1])
        mask = graph.input("last_mask", "bool", ["B", 1, 1, "C+S"])
        self.mask = graph.op("Concat", mask, mask, axis=2) if twice else mask  # [B,1,T,C+S]
        self._graph, self._twice = graph, twice

    def of(self, every: Value) -> Value:
        """The last token's row of every [B,S,N] → [B,T,N]."""
        return self._graph.op("GatherND", every, self._index, batch_dims=1)

    def once(self, x: Value) -> Value:
        """x [B,T,N] → [B,1,N]."""
        if not self._twice:
            return x
        return self._graph.op("Gather", x, self._graph.constant(np.array([0], np.int64)), axis=1)


class DecoderLayer:
    """One layer: attention with q/k norms and grouped keys, then SwiGLU, each with its residual."""

    def __init__(self, parts: Parts, config: TextConfig, index: int):
        self.parts, self.graph, self.config = parts, parts.graph, config
        self.prefix = f"{PREFIX}.layers.{index}"
        past: list[int | str] = ["B", config.num_key_value_heads, "C", config.head_dim]
        self.past_key = entering(parts, self.graph.input(f"past_key.{index}", "float32", past))
        self.past_value = entering(parts, self.graph.input(f"past_value.{index}", "float32", past))
        self.index = index

    def every_token(self, hidden: Value, rotary: tuple[Value, Value], lengths: Lengths) -> Value:
        """hidden [B,S,D] → [B,S,D]."""
        return self._output_and_mlp(hidden, self._attended(hidden, rotary, lengths))

    def last_token(self, hidden: Value, rotary: tuple[Value, Value], lengths: Lengths, last: LastToken) -> Value:
        """hidden [B,S,D] → [B,1,D], the last token's."""
        if self.parts.kernels.masked_attention:
            attended, residual = self._attended_by_last(hidden, rotary, last)
        else:
            attended, residual = (last.of(each) for each in (self._attended(hidden, rotary, lengths), hidden))
        return last.once(self._output_and_mlp(residual, attended))

    def _attended(self, hidden: Value, rotary: tuple[Value, Value], lengths: Lengths) -> Value:
        """hidden [B,S,D] → [B,S,heads·h] by GroupQueryAttention, causal over past and new tokens."""
        x = self._norm(hidden, "input_layernorm")
        query, key, value = linears(self.parts, x, [self._projection(name) for name in ("q", "k", "v")])
        attended, present_key, present_value = self.graph.op_many(
            "GroupQueryAttention",
            [
                self._head_norm_and_rotary(query, "q", rotary),
                self._head_norm_and_rotary(key, "k", rotary),
                value,
                self.past_key,
                self.past_value,
                lengths.last_position,
                lengths.capacity,
                # Input 16: right-padded batches, also with a past.
                *([*[None] * 9, lengths.query_lengths] if self.parts.kernels.query_lengths else []),
            ],
            3,
            CONTRIB,
            {"num_heads": self.config.num_attention_heads, "kv_num_heads": self.config.num_key_value_heads},
        )
        # Declared outputs even when nobody fetches them: only then does the flash path run on the CPU.
        self._declare_present(present_key, present_value)
        return attended

    def _attended_by_last(self, hidden: Value, rotary: tuple[Value, Value], last: LastToken) -> tuple[Value, Value]:
        """hidden [B,S,D] → [B,T,heads·h] and [B,T,D] of the last token: fewer queries than keys, so with a mask."""
        # GroupQueryAttention leaves padding rows undefined; here a key's NaN would pass through the mask.
        zero = self.graph.constant(np.array(0, np.float32))
        x = self.graph.op("Where", last.token_mask, self._norm(hidden, "input_layernorm"), zero)
        key, value = linears(self.parts, x, [self._projection(name) for name in ("k", "v")])
        x_last, cos, sin, residual = (last.of(every) for every in (x, *rotary, hidden))  # [B,T,...]
        query = linears(self.parts, x_last, [self._projection("q")])[0]
        attended, present_key, present_value = self.graph.op_many(
            "Attention",
            [
                self._head_norm_and_rotary(query, "q", (cos, sin)),
                self._head_norm_and_rotary(key, "k", rotary),
                value,
                last.mask,
                self.past_key,
                self.past_value,
            ],
            3,
            attributes={
                "q_num_heads": self.config.num_attention_heads,
                "kv_num_heads": self.config.num_key_value_heads,
            },
        )
        self._declare_present(present_key, present_value)
        return attended, residual

    def _norm(self, x: Value, name: str) -> Value:
        sizes = self.config.hidden_size, self.config.rms_norm_eps
        return rms_norm(self.parts, x, f"{self.prefix}.{name}.weight", *sizes)

    def _projection(self, name: str) -> Linear:
        heads = self.config.num_attention_heads if name == "q" else self.config.num_key_value_heads
        sizes = (heads * self.config.head_dim, self.config.hidden_size)
        # A norm over each head follows q and k: a token's activation scale would cancel there.
        return Linear(matrix(self.parts, f"{self.prefix}.self_attn.{name}_proj.weight", sizes), scale_free=name in "qk")

    def _head_norm_and_rotary(self, x: Value, name: str, rotary: tuple[Value, Value]) -> Value:
        """x [B,S,heads·h] → RMSNorm over each head, then M-RoPE by the host's cos and sin → [B,S,heads·h]."""
        head_dim = self.config.head_dim
        heads = self.config.num_attention_heads if name == "q" else self.config.num_key_value_heads
        x = reshape(self.graph, x, (0, 0, heads, head_dim))
        x = rms_norm(self.parts, x, f"{self.prefix}.self_attn.{name}_norm.weight", head_dim, self.config.rms_norm_eps)
        x = reshape(self.graph, x, (0, 0, heads * head_dim))
        return self.graph.op("RotaryEmbedding", x, *rotary, num_heads=heads)

    def _declare_present(self, key: Value, value: Value) -> None:
        shape: list[int | str] = ["B", self.config.num_key_value_heads, "C+S", self.config.head_dim]
        for name, present in (("key", key), ("value", value)):
            # Inferred it would have past's length, and CUDA's kernel would be given past's buffer to write to.
            self.graph.declare(present, self.parts.kernels.activations, shape)
            self.graph.output(f"present_{name}.{self.index}", leaving(self.parts, present), "float32", shape)

    def _output_and_mlp(self, residual: Value, attended: Value) -> Value:
        config = self.config
        width = config.num_attention_heads * config.head_dim
        out = linear(self.parts, attended, f"{self.prefix}.self_attn.o_proj", (config.hidden_size, width))
        hidden = self.graph.op("Add", residual, out)
        x = self._norm(hidden, "post_attention_layernorm")
        mlp = swiglu(self.parts, x, f"{self.prefix}.mlp", (config.intermediate_size, config.hidden_size))
        return self.graph.op("Add", hidden, mlp)
