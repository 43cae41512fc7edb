"""`python -m export`: make an ONNX package of a Qwen3-VL-Embedding or Qwen3-VL-Reranker checkpoint."""

import sys

from export.cli import main

if __name__ == "__main__":
    sys.exit(main())
