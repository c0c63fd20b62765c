"""A pytest plugin (`-p no_torch`), or a plain import: from here on torch and its kind cannot be imported."""

import sys
from collections.abc import Sequence
from types import ModuleType

BLOCKED = ("torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy", "scipy")


class Block:
    """Finds blocked modules first, and refuses them."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """Refuse, or leave it to the next finder."""
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by a test)", name=name)


sys.meta_path.insert(0, Block())
