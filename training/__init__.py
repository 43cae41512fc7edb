"""How the small pair in export/ was made: drawings and names → trained checkpoints. Needs torch.

    python -m training.embedder FOLDER
    python -m training.reranker FOLDER

What writes a checkpoint in the published layout is shared with the tests.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
