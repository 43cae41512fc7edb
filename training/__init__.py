"""How the small embedder in export/ was made: drawings and names → a trained checkpoint. Needs torch, as nothing else.

    python -m training.embedder FOLDER

What writes a checkpoint in the published layout is shared with the tests.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
