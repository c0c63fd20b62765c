"""Weights, tokenizer and head ledger, from a Hub id, a folder, a package, or at random."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, set_seed

from harness import experiment, record
from harness.errors import CheckpointError
from harness.training import adapters, attention, repository, stored, tiny, tokenizer
from harness.training.ceiling import Ceilings
from harness.training.repository import first_line
from harness.training.rows import Rows, open_rows
from harness.training.tasks import Task, task_of

Model = Any
Stored = experiment.HubCheckpoint | experiment.FolderCheckpoint | experiment.PackageCheckpoint
Tokenizer = Any

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.codes", "*.spm", "*.tiktoken", "*.tokenizer", "*.jinja"]
"""What is fetched from the Hub: configuration, safetensors weights, tokenizer and its chat template. Never a pickle,
never code.
"""
_SUBFOLDERS = ["*/*"]
"""What is left there: the same weights for other runtimes, mostly."""
_VOCABULARIES = ("tokenizer.json", "tekken.json", "tokenizer.model", "tiktoken.model")
"""What transformers turns into the tokenizer of any class, beside the files that the class names itself."""
_UNUSABLE = (OSError, ValueError, TypeError, KeyError, SafetensorError, StrictDataclassError)
"""What transformers raises, version by version, over files that are missing, torn or not what they should be."""

TEXTS = 10_000
"""Rows whose texts a tokenizer of the data's own is trained on, at most: the first."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory, on the CPU, as no step has touched it."""

    model: Model
    tokenizer: Tokenizer
    rows: Rows
    """What it is trained on: the classes of the head come from them, and the words of a tokenizer of their own."""
    source: str
    revision: str | None
    pretrained: bool
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    compared: int = 0
    """Tensors that the files hold under the model's own names."""
    differing: tuple[str, ...] = ()
    """Those of them that were loaded with other values than the files hold."""
    brings_head: bool = False
    """The task's head is expected to come with the checkpoint."""
    folder: Path | None = None
    """Its files; none where every weight is random."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why the pad token or the padding side is another than the tokenizer came with."""
    replaced: Tokenizer | None = None
    """The tokenizer that came with the checkpoint, where another one is declared."""
    adapters: record.Adapters | None = None
    """Where adapters are trained in the place of the weights."""

    @property
    def new(self) -> frozenset[str]:
        """Parameters that are newly initialised, by the model's own names; where all are random, the task's head."""
        if self.pretrained:
            return frozenset((*self.missing, *self.mismatched))
        return frozenset() if self.brings_head else frozenset(map(adapters.plain, head_names(self.model)))


@dataclass
class Shelf:
    """Keeps what one experiment file has loaded, so that its cases read the weights once.

    Taking a checkpoint for another file clears it: memory holds the weights of one file at a time. What was measured of
    devices stays.
    """

    ceilings: Ceilings = field(default_factory=Ceilings)
    """Of the devices that cases have trained on."""
    _file: Path | None = None
    _loaded: dict[str, Loaded] = field(default_factory=dict)

    def take(self, file: Path, settings: experiment.Settings) -> Loaded:
        """The checkpoint of these settings, read from disk only once per file, checkpoint and seed.

        The seed belongs to the key because the new head is drawn with it, and the data because the classes come from
        it, and a tokenizer for random weights is trained on its texts.
        """
        if file != self._file:
            self.clear()
            self._file = file
        data = hashlib.sha256(settings.data.model_dump_json().encode()).hexdigest()
        seed = settings.train.seed_of_weights
        key = repr((settings.task, settings.checkpoint, settings.tokenizer, data, seed, settings.peft))
        if key not in self._loaded:
            self._loaded[key] = load(settings)
        return self._loaded[key]

    def clear(self) -> None:
        """Let go of the weights."""
        self._file = None
        self._loaded.clear()


def load(settings: experiment.Settings) -> Loaded:
    """Load weights in fp32 with a new head for the task and the declared adapters, and the tokenizer.

    The seed is set first, because the head (or, without a checkpoint, every weight) and the adapters are drawn here.

    Raises:
        Unavailable: the Hub cannot be reached and nothing is cached, or a library is not installed.
        CheckpointError: the checkpoint cannot be had or used; says which and why.
        DataError: the rows cannot.
    """
    loaded = _load(settings)
    if settings.peft is None:
        return loaded
    model, made = adapters.adapt(loaded.model, settings.peft, settings.task, loaded.new)
    return replace(loaded, model=model, adapters=made)


def _load(settings: experiment.Settings) -> Loaded:
    source, rows = settings.checkpoint, open_rows(settings.data, settings.task)
    if isinstance(source, experiment.ArchitectureCheckpoint):
        return _random(source, settings, rows)
    folder, revision = _folder(source)
    if not any(folder.glob("*.safetensors*")):
        raise CheckpointError(f"{source}: no weights as safetensors: other formats can run code and are not loaded")
    words = _words(source, folder) if settings.tokenizer is None else _named_words(settings.tokenizer)
    task = task_of(settings)
    set_seed(settings.train.seed_of_weights)
    try:
        model, report = task.auto.from_pretrained(
            folder,
            **_configuration(task, rows),
            dtype=torch.float32,  # else weights keep the file's dtype, and AdamW turns fp16 ones into NaN
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported in the ledger and judged there
            output_loading_info=True,
        )
    except _UNUSABLE as error:
        raise CheckpointError(f"{source}: cannot be loaded: {first_line(error)}") from error
    reasons = _fit_padding(model, words, task)
    compared, differing = stored.compare(folder, model)
    return Loaded(
        compared=compared,
        differing=differing,
        model=model,
        tokenizer=words,
        rows=rows,
        source=str(source),
        revision=revision,
        pretrained=True,
        missing=tuple(sorted({_canonical(model).get(key, key) for key in report["missing_keys"]})),
        unused=tuple(sorted(report["unexpected_keys"])),
        mismatched=tuple(sorted(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])),
        brings_head=task.brings_head,
        reasons=reasons,
        folder=folder,
        replaced=None if settings.tokenizer is None else _own_words(source, folder),
    )


def _configuration(task: Task, rows: Rows) -> dict[str, Any]:
    """What the config has to say of the head: what the task asks for, and the classes as the rows have them."""
    said = {name: value for name, value in task.configuration().items() if value is not None}
    names = rows.labels.names
    if (classes := rows.labels.count or rows.labels.among) is not None:
        said["num_labels"] = classes
    if names is not None:
        said |= {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    return said


def _random(source: experiment.ArchitectureCheckpoint, settings: experiment.Settings, rows: Rows) -> Loaded:
    task = task_of(settings)
    if settings.tokenizer is None:
        side = tokenizer.padding_side(source.architecture)
        words = tokenizer.train([*task.texts(rows.first(TEXTS)), *task.marks], padding_side=side)
        words.chat_template = task.chat_template
    else:
        words = _named_words(settings.tokenizer)
    config = tiny.configure(source.architecture, size=source.size, vocab_size=len(words), overrides=dict(source.config))
    if source.dropout is not None:
        tiny.set_dropout(config, source.dropout, keep=source.config)
    tokenizer.adopt(config, words)
    for name, value in _configuration(task, rows).items():
        setattr(config, name, value)
    set_seed(settings.train.seed_of_weights)
    model = task.auto.from_config(config)
    if settings.tokenizer is None:
        words.model_input_names = list(tokenizer.input_names(type(model), config))
    return Loaded(
        model.float(),
        words,
        rows,
        source=str(source),
        revision=None,
        pretrained=False,
        brings_head=task.brings_head,
        reasons=_fit_padding(model, words, task),
    )


def _named_words(text: str) -> Tokenizer:
    """The tokenizer of another checkpoint."""
    source = experiment.parse_checkpoint(text)
    return _words(source, _folder(source)[0])


def _own_words(source: Stored, folder: Path) -> Tokenizer | None:
    """The tokenizer that a checkpoint came with, if it came with one."""
    try:
        return _words(source, folder)
    except CheckpointError:
        return None


def _words(source: Stored, folder: Path) -> Tokenizer:
    """The tokenizer in a checkpoint's folder."""
    try:
        words = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except _UNUSABLE as error:
        raise CheckpointError(f"{source}: no tokenizer can be loaded: {first_line(error)}") from error
    # Without its vocabulary, a tokenizer is made of the special tokens alone, silently: every word is unknown to it.
    named = type(words).vocab_files_names.values()  # none where the vocabulary is bytes or characters
    if named and not any((folder / name).is_file() for name in (*named, *_VOCABULARIES)):
        raise CheckpointError(f"{source}: no tokenizer: none of {', '.join(named)}")
    return words


def _folder(source: Stored) -> tuple[Path, str | None]:
    """Where the files of a checkpoint are on this machine, and its commit if it came from the Hub."""
    if not isinstance(source, experiment.HubCheckpoint):
        if not source.path.is_dir():
            raise CheckpointError(f"{source}: {source.path} is no folder")
        return source.path, None
    folder = repository.snapshot(source.id, source.revision, _FILES, str(source), leave=_SUBFOLDERS)
    return folder, folder.name


def head_names(model: Model) -> tuple[str, ...]:
    """Parameters outside the backbone, by the model's own ``base_model_prefix``.

    Where the backbone is no module of its own, as in T5, the head is what computes the outputs. Under adapters it is
    what is trained of it, and not what peft keeps of the time before.
    """
    if adapters.is_adapted(model):
        names = map(adapters.outer, head_names(adapters.base(model)))
        return tuple(name for name in names if not adapters.is_adapter(name) and not adapters.is_spare(name))
    if not hasattr(model, model.base_model_prefix):
        head = model.get_output_embeddings()
        own = {id(parameter) for parameter in head.parameters()} if head is not None else set()
        own -= {id(parameter) for parameter in model.get_input_embeddings().parameters()}  # tied
        return tuple(name for name, parameter in model.named_parameters() if id(parameter) in own)
    inside = f"{model.base_model_prefix}."
    return tuple(name for name, _ in model.named_parameters() if not name.startswith(inside))


def describe(
    loaded: Loaded, model: Model, digest: str, altered: Iterable[str] = (), *, attention_reason: str = ""
) -> record.Checkpoint:
    """The evidence of a checkpoint.

    Args:
        loaded: what was loaded.
        model: the copy that is trained.
        digest: of its tensors before the first step; empty where there is none.
        altered: tensors that were other than loaded then.
        attention_reason: why attention is computed as it is.
    """
    return record.Checkpoint(
        source=loaded.source,
        revision=loaded.revision,
        architecture=type(adapters.base(model)).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        attention=attention.chosen(model),
        attention_reason=attention_reason,
        digest=digest,
        pretrained=loaded.pretrained,
        missing=loaded.missing,
        unused=loaded.unused,
        mismatched=loaded.mismatched,
        head=tuple(map(adapters.plain, head_names(model))),
        compared=loaded.compared,
        differing=loaded.differing,
        altered=tuple(altered),
        brings_head=loaded.brings_head,
    )


def digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each tensor, in order of name."""
    hash = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        hash.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        hash.update(flat.view(torch.uint8).numpy())
    return hash.hexdigest()


def _fit_padding(model: Model, words: Tokenizer, task: Task) -> dict[str, str]:
    """Give the tokenizer a pad token and the task's padding side, and say why where that changes it.

    Decoder-only checkpoints come without a pad token: the end token serves, masked where it pads.
    """
    reasons = {}
    if words.pad_token_id is None:
        role = "end" if words.eos_token is not None else "unknown"
        words.pad_token = words.eos_token or words.unk_token
        reasons["pad_token"] = f"no pad token in the tokenizer: its {role} token {words.pad_token!r} serves, masked"
        model.config.pad_token_id = None  # whatever stands there pads nothing: heads look for the last token before it
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = words.pad_token_id
    if task.padding_side is not None and words.padding_side != task.padding_side[0]:
        reasons["padding_side"] = (
            f"padding on the {task.padding_side[0]}, not on the {words.padding_side}: {task.padding_side[1]}"
        )
        words.padding_side = task.padding_side[0]
    return reasons


def _canonical(model: Model) -> dict[str, str]:
    """The one name of each parameter that has several, as tied ones do."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: names[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}
