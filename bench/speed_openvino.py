"""Peer of the speed benchmark: what bench.speed_openvino_export wrote, on OpenVINO's CPU plugin.

python -m bench.speed_openvino FOLDER CHECKPOINT int8|int4 bf16|f32 THREADS

Needs torch, transformers 4.57, openvino and what runtime imports. The vision tower has int8 weights in
both. What transformers' host code computes (positions, angles) is not timed.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel, Qwen3VLTextRotaryEmbedding

from bench.speed_cases import IMAGE_PAD, MERGE, Case, input_ids, patches
from bench.speed_worker import Run, reply_channel, serve
from runtime.prompts.positions import patch_positions


class Peer:
    """Compiled graphs; the vision tower opens with the first picture."""

    def __init__(self, folder: Path, checkpoint: Path, weights: str, settings: dict[str, Any]):
        core = openvino.Core()
        self.compile = lambda name: core.compile_model(folder / f"{name}.xml", "CPU", settings)
        self.config: Any = Qwen3VLConfig.from_pretrained(str(checkpoint))
        self.table = torch.load(folder / "embeddings.pt")  # bfloat16
        self.position_table = torch.load(folder / "positions.pt").numpy()
        self.decoder, self.vision = self.compile(f"decoder-{weights}"), None
        rotary: Any = Qwen3VLTextRotaryEmbedding
        self.rotary = rotary(self.config.text_config)

    def prepare(self, case: Case) -> Run:
        """As the other peers': hidden states [B, D] or visual tokens [V, D]."""
        ids = torch.from_numpy(input_ids(case))
        decode = self._decoding(ids, case) if case.decoder else None
        if case.grid is None:
            return lambda: decode(None)  # type: ignore[misc]
        if self.vision is None:
            self.vision = self.compile("vision-int8")
        feeds = self._vision_feeds(case)

        def run() -> np.ndarray:
            tokens, deepstack = self.vision(feeds).to_tuple()  # type: ignore[misc]
            return np.asarray(tokens) if decode is None else decode((tokens, deepstack))

        return run

    def _decoding(self, ids: torch.Tensor, case: Case) -> Any:
        grid = None if case.grid is None else torch.tensor([[1, *case.grid]])
        # get_rope_index needs nothing of the model but its configuration.
        positions, _ = Qwen3VLModel.get_rope_index(self, ids, grid, attention_mask=torch.ones_like(ids))  # type: ignore[arg-type]
        cos, sin = (each.numpy() for each in self.rotary(torch.zeros(1), positions))
        pads = (ids == IMAGE_PAD).numpy()

        def decode(features: Any) -> np.ndarray:
            hidden = torch.nn.functional.embedding(ids, self.table).float().numpy()  # [B,S,D]
            deepstack = np.zeros((3, *hidden.shape), np.float32)
            if features is not None:
                hidden[pads], deepstack[:, pads] = features
            return np.asarray(self.decoder([hidden, cos, sin, deepstack])[0])

        return decode

    def _vision_feeds(self, case: Case) -> list[np.ndarray]:
        assert case.grid is not None
        vision = self.config.vision_config
        side = int(vision.num_position_embeddings**0.5)
        place = patch_positions(case.grid, MERGE, vision.hidden_size // vision.num_heads, side)
        embedding = (self.position_table[place.index] * place.weight).sum(axis=0)
        whole = (np.concatenate([each, each], axis=1) for each in (place.rotary.cos, place.rotary.sin))
        return [patches(case), embedding, *whole]


def main() -> None:
    """Serve the converted graphs named on the command line."""
    reply = reply_channel()
    folder, checkpoint, weights, precision, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    settings = {
        "INFERENCE_NUM_THREADS": int(threads),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    peer = Peer(Path(folder), Path(checkpoint), weights, settings)
    chosen = ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "INFERENCE_NUM_THREADS")
    facts = {name.lower(): str(peer.decoder.get_property(name)) for name in chosen}
    with torch.inference_mode():
        serve(reply, {"openvino": openvino.__version__, "weights": weights, **facts}, peer.prepare)


if __name__ == "__main__":
    main()
