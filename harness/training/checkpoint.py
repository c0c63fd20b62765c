"""Weights, tokenizer and head ledger, from a Hub id, a folder, a package, or at random."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from harness import experiment, record
from harness.errors import CheckpointError, Unavailable
from harness.training import stored, tiny, tokenizer

Model = Any
Stored = experiment.HubCheckpoint | experiment.FolderCheckpoint | experiment.PackageCheckpoint
Tokenizer = Any

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.codes", "*.spm", "*.tiktoken"]
"""What is fetched from the Hub: configuration, safetensors weights, tokenizer. Never a pickle, never code."""
_SUBFOLDERS = ["*/*"]
"""What is left there: the same weights for other runtimes, mostly."""
_VOCABULARIES = ("tokenizer.json", "tekken.json", "tokenizer.model", "tiktoken.model")
"""What transformers turns into the tokenizer of any class, beside the files that the class names itself."""
_UNUSABLE = (OSError, ValueError, TypeError, KeyError, SafetensorError, StrictDataclassError)
"""What transformers raises, version by version, over files that are missing, torn or not what they should be."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory, on the CPU, as no step has touched it."""

    model: Model
    tokenizer: Tokenizer
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


@dataclass
class Shelf:
    """Keeps what one experiment file has loaded, so that its cases read the weights once.

    Taking a checkpoint for another file clears it: memory holds the weights of one file at a time.
    """

    _file: Path | None = None
    _loaded: dict[str, Loaded] = field(default_factory=dict)

    def take(self, file: Path, settings: experiment.Settings) -> Loaded:
        """The checkpoint of these settings, read from disk only once per file, checkpoint and seed.

        The seed belongs to the key because the new head is drawn with it, and the texts because a tokenizer for
        random weights is trained on them.
        """
        if file != self._file:
            self.clear()
            self._file = file
        texts = settings.data.sequences if isinstance(settings.checkpoint, experiment.ArchitectureCheckpoint) else ()
        labels = settings.data.resolved_num_labels
        key = repr((settings.task, settings.checkpoint, settings.tokenizer, texts, labels, settings.train.seed))
        if key not in self._loaded:
            self._loaded[key] = load(settings)
        return self._loaded[key]

    def clear(self) -> None:
        """Let go of everything."""
        self._file = None
        self._loaded.clear()


def load(settings: experiment.Settings) -> Loaded:
    """Load weights in fp32 with a new head for the task, and the tokenizer.

    The seed is set first, because the head (or, without a checkpoint, every weight) is drawn here.

    Raises:
        Unavailable: the Hub cannot be reached and nothing is cached.
        CheckpointError: the checkpoint cannot be had or used; says which and why.
    """
    source = settings.checkpoint
    if isinstance(source, experiment.ArchitectureCheckpoint):
        return _random(source, settings)
    folder, revision = _folder(source)
    if not any(folder.glob("*.safetensors*")):
        raise CheckpointError(f"{source}: no weights as safetensors: other formats can run code and are not loaded")
    words = _words(source, folder) if settings.tokenizer is None else _named_words(settings.tokenizer)
    set_seed(settings.train.seed)
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=settings.data.resolved_num_labels,
            dtype=torch.float32,  # else weights keep the file's dtype, and AdamW turns fp16 ones into NaN
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported in the ledger and judged there
            output_loading_info=True,
        )
    except _UNUSABLE as error:
        raise CheckpointError(f"{source}: cannot be loaded: {_first_line(error)}") from error
    _give_pad_token(model, words)
    compared, differing = stored.compare(folder, model)
    return Loaded(
        compared=compared,
        differing=differing,
        model=model,
        tokenizer=words,
        source=str(source),
        revision=revision,
        pretrained=True,
        missing=tuple(sorted(report["missing_keys"])),
        unused=tuple(sorted(report["unexpected_keys"])),
        mismatched=tuple(sorted(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])),
    )


def _random(source: experiment.ArchitectureCheckpoint, settings: experiment.Settings) -> Loaded:
    if settings.tokenizer is None:
        words = tokenizer.train(settings.data.sequences, padding_side=tokenizer.padding_side(source.architecture))
    else:
        words = _named_words(settings.tokenizer)
    config = tiny.configure(source.architecture, size=source.size, vocab_size=len(words), overrides=dict(source.config))
    if source.dropout is not None:
        tiny.set_dropout(config, source.dropout, keep=source.config)
    tokenizer.adopt(config, words)
    config.num_labels = settings.data.resolved_num_labels
    set_seed(settings.train.seed)
    model = AutoModelForSequenceClassification.from_config(config)
    if settings.tokenizer is None:
        words.model_input_names = list(tokenizer.input_names(type(model), config))
    return Loaded(model.float(), words, source=str(source), revision=None, pretrained=False)


def _named_words(text: str) -> Tokenizer:
    """The tokenizer of another checkpoint."""
    source = experiment.parse_checkpoint(text)
    return _words(source, _folder(source)[0])


def _words(source: Stored, folder: Path) -> Tokenizer:
    """The tokenizer in a checkpoint's folder."""
    try:
        words = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except _UNUSABLE as error:
        raise CheckpointError(f"{source}: no tokenizer can be loaded: {_first_line(error)}") from error
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
    try:
        folder = Path(
            snapshot_download(source.id, revision=source.revision, allow_patterns=_FILES, ignore_patterns=_SUBFOLDERS)
        )
    # None of these keeps its cause: requests to the Hub hold signed addresses, and a record must not.
    except GatedRepoError:
        raise CheckpointError(f"{source}: gated on the Hub: accept its terms and log in (hf auth login)") from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{source}: the repository has no revision {source.revision!r}") from None
    except RepositoryNotFoundError:
        raise CheckpointError(f"{source}: no such repository on the Hub, or it is private") from None
    except (LocalEntryNotFoundError, HTTPError) as error:
        reason = _first_line(error.__cause__ or error).partition("?")[0]
        if _refused(error) or _refused(error.__cause__):
            raise CheckpointError(f"{source}: the Hub answers: {reason}") from None
        raise Unavailable(f"{source}: the Hub cannot be reached, and no whole copy is cached: {reason}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}: cannot be had from the Hub: {_first_line(error)}") from error
    return folder, folder.name


def _refused(error: BaseException | None) -> bool:
    """Whether the Hub has answered so that asking again is of no use: neither busy nor broken."""
    if not isinstance(error, HfHubHTTPError):
        return False
    return 400 <= error.response.status_code < 500 and error.response.status_code not in (408, 429)


def head_names(model: Model) -> tuple[str, ...]:
    """Parameters outside the backbone, by the model's own ``base_model_prefix``."""
    inside = f"{model.base_model_prefix}."
    return tuple(name for name, _ in model.named_parameters() if not name.startswith(inside))


def describe(loaded: Loaded, model: Model, digest: str, altered: Iterable[str] = ()) -> record.Checkpoint:
    """The evidence of a checkpoint.

    Args:
        loaded: what was loaded.
        model: the copy that is trained.
        digest: of its tensors before the first step; empty where there is none.
        altered: tensors that were other than loaded then.
    """
    return record.Checkpoint(
        source=loaded.source,
        revision=loaded.revision,
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        attention=getattr(model.config, "_attn_implementation", None) or "",
        digest=digest,
        pretrained=loaded.pretrained,
        missing=loaded.missing,
        unused=loaded.unused,
        mismatched=loaded.mismatched,
        head=head_names(model),
        compared=loaded.compared,
        differing=loaded.differing,
        altered=tuple(altered),
    )


def digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each tensor, in order of name."""
    hash = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        hash.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        hash.update(flat.view(torch.uint8).numpy())
    return hash.hexdigest()


def _give_pad_token(model: Model, words: Tokenizer) -> None:
    """Decoder-only checkpoints come without a pad token: the end token serves, masked where it pads."""
    if words.pad_token_id is None:
        words.pad_token = words.eos_token or words.unk_token
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = words.pad_token_id


def _first_line(error: BaseException) -> str:
    """The first line of its text, with the next where it only announces that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])
