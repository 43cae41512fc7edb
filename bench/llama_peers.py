"""What a user would otherwise do with the same model: one activation scale a tensor, optimum, bitsandbytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.llama import NAME, Llama, LlamaGraph
from bench.llama_run import Running
from export.graph import Graph
from export.reference import prepare_reference_imports
from quant.per_token import PerToken
from quant.schemes import GraphBuilder, Linear, Matrix, Value

PER_TOKEN = PerToken()  # the same int8 weights, one scale an output


@dataclass(frozen=True)
class PerTensor:
    """DynamicQuantizeMatMul: one activation scale for all tokens of a call."""

    name: str = "int8-per-tensor"

    def linear(self, graph: GraphBuilder, x: Value, layers: Sequence[Linear]) -> list[Value]:
        """One operator a layer."""
        outputs = []
        for layer in layers:
            (rows,) = layer.weight.blocks()
            codes, scales = PER_TOKEN.quantize(rows)
            weight = held(graph, layer.weight.name, "int8", np.ascontiguousarray(codes.T))
            scale = held(graph, f"{layer.weight.name}:scales", "float32", scales)
            outputs.append(graph.op("DynamicQuantizeMatMul", x, weight, scale, domain="com.microsoft"))
        return outputs

    def rows(self, graph: GraphBuilder, table: Matrix, ids: Value) -> Value:
        """Not for tables."""
        raise NotImplementedError(f"{table.name}: {self.name} is a scheme for products, not for tables.")


@dataclass(frozen=True)
class PlainMatMul:
    """MatMul with a float32 weight [K, N]: what a tracing exporter writes and quantize_dynamic looks for."""

    name: str = "matmul"

    def linear(self, graph: Graph, x: Value, layers: Sequence[Linear]) -> list[Value]:
        """One MatMul a layer."""
        outputs = []
        for layer in layers:
            (rows,) = layer.weight.blocks()
            weight = held(graph, layer.weight.name, "float32", rows.T)
            y = graph.op("MatMul", x, weight)
            # The quantisers must know it, and cannot infer it through onnxruntime's own operators.
            graph.declare(y, "float32", ["B", "S", layer.weight.shape[0]])
            outputs.append(y)
        return outputs

    def rows(self, graph: GraphBuilder, table: Matrix, ids: Value) -> Value:
        """Not for tables."""
        raise NotImplementedError(f"{table.name}: {self.name} is a scheme for products, not for tables.")


def held(graph: GraphBuilder, name: str, dtype: str, values: np.ndarray) -> Value:
    """An initializer whose content is at hand."""
    return graph.weight(name, dtype, values.shape, lambda: iter([values]))


def quantized_dynamically(llama: Llama, ids: np.ndarray, per_channel: bool) -> np.ndarray:
    """hidden [B · S, D] of onnxruntime.quantization.quantize_dynamic; the token table stays float."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def quantize(source: Path, target: Path) -> None:
        operators = ["MatMul"]
        quantize_dynamic(source, target, operators, per_channel=per_channel, weight_type=QuantType.QInt8)

    return _requantized(llama, ids, quantize)


def optimum_quantized(llama: Llama, ids: np.ndarray, per_channel: bool) -> np.ndarray:
    """hidden [B · S, D] of optimum's ORTQuantizer with its avx512_vnni settings, dynamic."""
    prepare_reference_imports()
    optimum: Any = import_module("optimum.onnxruntime")
    configuration: Any = import_module("optimum.onnxruntime.configuration")

    def quantize(source: Path, target: Path) -> None:
        settings = configuration.AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=per_channel)
        settings.operators_to_quantize = ["MatMul"]
        optimum.ORTQuantizer(source).quantize(settings, target.parent, file_suffix=target.stem.split("_")[1])

    return _requantized(llama, ids, quantize)


def bitsandbytes(llama: Llama, ids: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """hidden [B · S, D] of transformers' Llama under BitsAndBytesConfig(**settings), on the CPU, float32."""
    prepare_reference_imports()
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        torch_llama(llama).save_pretrained(folder)
        quantization = transformers.BitsAndBytesConfig(**settings)
        model = transformers.LlamaForCausalLM.from_pretrained(
            folder, quantization_config=quantization, device_map="cpu", dtype=torch.float32
        )
        return torch_hidden(model, ids)


def torch_llama(llama: Llama) -> Any:
    """The same weights as transformers' LlamaForCausalLM, float32."""
    prepare_reference_imports()
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    config, weights = llama.config, llama.weights
    torch_config = transformers.LlamaConfig(
        vocab_size=len(weights["model.embed_tokens.weight"]),
        hidden_size=config.hidden_size,
        intermediate_size=len(weights["model.layers.0.mlp.up_proj.weight"]),
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rope_theta=config.rope_theta,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(torch_config)
    tensors = {name: torch.tensor(values) for name, values in weights.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied
    return model.eval()


def torch_hidden(model: Any, ids: np.ndarray) -> np.ndarray:
    """float32 [B · S, D] after the last norm."""
    torch: Any = import_module("torch")
    with torch.no_grad():
        hidden = model.model(torch.tensor(ids)).last_hidden_state
    return np.asarray(hidden.reshape(-1, hidden.shape[-1]).float().numpy())


def _requantized(llama: Llama, ids: np.ndarray, quantize: Callable[[Path, Path], None]) -> np.ndarray:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        source, target = Path(folder) / NAME, Path(folder) / NAME.replace(".", "_quantized.")
        LlamaGraph(llama, lambda _: PlainMatMul(), {}, observed=False).graph.write(Path(folder), lambda _: None)
        quantize(source, target)
        return Running(llama.config, target).hidden(ids)
