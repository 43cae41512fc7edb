"""Adapters (LoRA) beside or in place of a checkpoint's weights: transformers applies them, an export does not."""

from pathlib import Path

from runtime.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors", "adapter_model.bin")


def require_no_adapter(folder: Path) -> None:
    """CheckpointError where the folder holds an adapter that is not merged into the weights."""
    for name in ADAPTER_FILES:
        if (folder / name).exists():
            raise CheckpointError(
                f"{folder} holds an adapter ({name}), which has to be in the weights themselves: merge it first "
                "(merge_and_unload, then save_pretrained into another folder), or remove its files if it is merged."
            )
