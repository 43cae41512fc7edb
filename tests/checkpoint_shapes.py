"""What a Qwen3-VL checkpoint of given sizes holds: its tensors by published name, and its config.json."""

from dataclasses import asdict, dataclass
from typing import Any

Dims = tuple[int, ...]


@dataclass(frozen=True)
class TextShape:
    """The sizes of config.json's text_config, under its names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    mrope_section: tuple[int, int, int]
    vocab_size: int = 151936
    rope_theta: int = 5_000_000
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(f"mrope_section {self.mrope_section} must sum to half of head_dim {self.head_dim}.")


@dataclass(frozen=True)
class VisionShape:
    """The sizes of config.json's vision_config, under its names."""

    hidden_size: int
    intermediate_size: int
    depth: int
    num_heads: int
    deepstack_visual_indexes: tuple[int, ...]
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    num_position_embeddings: int = 2304
    in_channels: int = 3


@dataclass(frozen=True)
class Shape:
    """Everything config.json says about sizes; where `tied`, there is no lm_head.weight."""

    text: TextShape
    vision: VisionShape
    tied: bool


SHAPE_2B = Shape(
    text=TextShape(
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        mrope_section=(24, 20, 20),
    ),
    vision=VisionShape(
        hidden_size=1024, intermediate_size=4096, depth=24, num_heads=16, deepstack_visual_indexes=(5, 11, 17)
    ),
    tied=True,
)
SHAPE_8B = Shape(
    text=TextShape(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        mrope_section=(24, 20, 20),
    ),
    vision=VisionShape(
        hidden_size=1152, intermediate_size=4304, depth=27, num_heads=16, deepstack_visual_indexes=(8, 16, 24)
    ),
    tied=False,
)
# Like the 2B: tied, two query heads per key head.
TINY_2B = Shape(
    text=TextShape(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        mrope_section=(6, 5, 5),
    ),
    vision=VisionShape(hidden_size=48, intermediate_size=96, depth=6, num_heads=3, deepstack_visual_indexes=(1, 3, 4)),
    tied=True,
)
# Like the 8B: untied, four query heads per key head, vision heads of 72, MLP widths no multiple of 32.
TINY_8B = Shape(
    text=TextShape(
        hidden_size=96,
        intermediate_size=208,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        mrope_section=(6, 5, 5),
    ),
    vision=VisionShape(
        hidden_size=144, intermediate_size=304, depth=5, num_heads=2, deepstack_visual_indexes=(0, 2, 3)
    ),
    tied=False,
)
SHAPES = {"tiny-2b": TINY_2B, "tiny-8b": TINY_8B, "2b": SHAPE_2B, "8b": SHAPE_8B}


def tensor_shapes(shape: Shape) -> dict[str, Dims]:
    """Every tensor of the checkpoint by its published name (2B: 625 tensors, 8B: 750)."""
    text = {f"model.language_model.{name}": dims for name, dims in _text_tensors(shape.text).items()}
    vision = _vision_tensors(shape.vision, shape.text.hidden_size)
    head = {} if shape.tied else {"lm_head.weight": (shape.text.vocab_size, shape.text.hidden_size)}
    return text | {f"model.visual.{name}": dims for name, dims in vision.items()} | head


def config_json(shape: Shape, dtype: str) -> dict[str, Any]:
    """config.json as transformers 4.57 writes it, rope settings under rope_theta and rope_scaling."""
    text = asdict(shape.text)
    rope = {"mrope_interleaved": True, "mrope_section": text.pop("mrope_section"), "rope_type": "default"}
    text |= {"rope_scaling": rope, "model_type": "qwen3_vl_text", "hidden_act": "silu"}
    text |= {"attention_bias": False, "tie_word_embeddings": shape.tied, "max_position_embeddings": 262144}
    vision = asdict(shape.vision) | {"out_hidden_size": shape.text.hidden_size}
    vision |= {"model_type": "qwen3_vl", "hidden_act": "gelu_pytorch_tanh"}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "dtype": dtype,
        "transformers_version": "4.57.1",
        "tie_word_embeddings": shape.tied,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "text_config": text,
        "vision_config": vision,
    }


def _text_tensors(text: TextShape) -> dict[str, Dims]:
    hidden, wide = text.hidden_size, text.intermediate_size
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    layer: dict[str, Dims] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "self_attn.q_norm": (text.head_dim,),
        "self_attn.k_norm": (text.head_dim,),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    tensors: dict[str, Dims] = {"embed_tokens.weight": (text.vocab_size, hidden), "norm.weight": (hidden,)}
    for index in range(text.num_hidden_layers):
        tensors |= {f"layers.{index}.{name}.weight": dims for name, dims in layer.items()}
    return tensors


def _vision_tensors(vision: VisionShape, out_hidden_size: int) -> dict[str, Dims]:
    hidden, wide = vision.hidden_size, vision.intermediate_size
    merged = hidden * vision.spatial_merge_size**2
    weights: dict[str, Dims] = {
        "patch_embed.proj": (
            *(hidden, vision.in_channels),
            *(vision.temporal_patch_size, vision.patch_size, vision.patch_size),
        ),
    }
    for index in range(vision.depth):
        block = f"blocks.{index}"
        weights |= {f"{block}.norm1": (hidden,), f"{block}.norm2": (hidden,)}
        weights |= {f"{block}.attn.qkv": (3 * hidden, hidden), f"{block}.attn.proj": (hidden, hidden)}
        weights |= {f"{block}.mlp.linear_fc1": (wide, hidden), f"{block}.mlp.linear_fc2": (hidden, wide)}
    # The last merger normalises before the 2x2 shuffle, the DeepStack mergers after it.
    mergers = {"merger": hidden}
    mergers |= {f"deepstack_merger_list.{i}": merged for i in range(len(vision.deepstack_visual_indexes))}
    for merger, norm_width in mergers.items():
        weights |= {f"{merger}.norm": (norm_width,), f"{merger}.linear_fc1": (merged, merged)}
        weights |= {f"{merger}.linear_fc2": (out_hidden_size, merged)}
    tensors: dict[str, Dims] = {"pos_embed.weight": (vision.num_position_embeddings, hidden)}
    for name, dims in weights.items():
        tensors |= {f"{name}.weight": dims, f"{name}.bias": dims[:1]}
    return tensors
