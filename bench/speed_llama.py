"""Peer of the speed benchmark: what bench.speed_llama_export wrote, on llama.cpp.

python -m bench.speed_llama GGUF THREADS

Needs PyPI's `llama-cpp-python`. Text only: from token ids to the last token's hidden state.
"""

import sys
from pathlib import Path

import llama_cpp
import numpy as np

from bench.speed_cases import Case, input_ids
from bench.speed_worker import Run, reply_channel, serve

MOST_TOKENS, MOST_ROWS = 1024, 4


class Peer:
    """One model and one context, whose cache is emptied before each run."""

    def __init__(self, file: Path, threads: int):
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {file}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = MOST_TOKENS
        options.n_seq_max, options.kv_unified = MOST_ROWS, True
        options.n_threads = options.n_threads_batch = threads
        options.embeddings, options.pooling_type = True, llama_cpp.LLAMA_POOLING_TYPE_LAST
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.size = llama_cpp.llama_model_n_embd(self.model)

    def prepare(self, case: Case) -> Run:
        """As the other peers': hidden states [B, D]."""
        if case.grid is not None:
            raise ValueError(f"{case.name} is a picture, and this peer takes text")
        ids = input_ids(case)
        batch = llama_cpp.llama_batch_init(ids.size, 0, MOST_ROWS)
        batch.n_tokens = ids.size
        for place, (row, column) in enumerate(np.ndindex(ids.shape)):
            batch.token[place], batch.pos[place] = int(ids[row, column]), column
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, row, 1

        def run() -> np.ndarray:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
            if llama_cpp.llama_decode(self.context, batch):
                raise RuntimeError(f"llama.cpp cannot run {case.name}")
            rows = [llama_cpp.llama_get_embeddings_seq(self.context, row) for row in range(len(ids))]
            return np.stack([np.ctypeslib.as_array(row, (self.size,)) for row in rows])

        return run


def main() -> None:
    """Serve the file named on the command line."""
    reply = reply_channel()
    peer = Peer(Path(sys.argv[1]), int(sys.argv[2]))
    facts = {"llama-cpp-python": llama_cpp.__version__, "weights": Path(sys.argv[1]).stem}
    serve(reply, facts, peer.prepare)


if __name__ == "__main__":
    main()
