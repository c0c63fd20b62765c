"""Files of the Hub, and the datasets library: what is asked of them, and their errors in our words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from harness import experiment
from harness.errors import CheckpointError, DataError, Unavailable

_BUILDERS = ("arrow", "csv", "json", "parquet", "text")
"""What of the many builders of `datasets` is used: formats that hold nothing but data."""
_CSV = {"keep_default_na": False, "na_values": [""]}
"""An empty cell holds nothing; `NA`, `None` and `null` are words."""
_LOT = 20_000
"""Rows that stand together in the library's copy: opening it looks at the head of each lot."""
_FOOTERS = 64
"""Parquet files of a stream whose footers are read before its first row, at most."""
_CARD = ["README.md", ".huggingface.yaml", ".gitattributes"]
"""What tells of a dataset and is fetched first: with it, the commit is known, and is known again offline."""


@dataclass(frozen=True)
class Found:
    """A declared dataset, opened by the datasets library."""

    name: str
    """For messages."""
    rows: Any
    """A `datasets.Dataset`, or an `IterableDataset` where the data is streamed."""
    revision: str | None
    columns: tuple[str, ...] | None
    """None where only the first row tells."""
    files: tuple[Path, ...] = ()
    """Where it is read from, if that is on this machine."""


def library() -> Any:
    """The datasets library.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise Unavailable(
            "data.files and data.dataset need the datasets library: pip install 'pytest-finetune[data]'"
        ) from None
    return datasets


def load(data: experiment.Data) -> Found:
    """Open the files or the dataset that an experiment declares.

    Raises:
        Unavailable: the datasets library is missing, or the Hub cannot be reached and nothing is cached.
        DataError: they cannot be had or read; says why.
    """
    if data.files is not None:
        name = data.files if isinstance(data.files, str) else ", ".join(data.files)
        paths = data.paths
        if not paths:
            raise DataError(f"{name}: no such file")
        kind = experiment.FILE_KINDS[paths[0].suffix]
        with reading(name, paths):
            said = {"data_files": {"train": [escape(str(path)) for path in paths]}, **(_CSV if kind == "csv" else {})}
            return replace(
                _open(name, library().load_dataset_builder(kind, writer_batch_size=_LOT, **said), data, None),
                files=paths,
            )
    name = str(data.dataset)
    if data.place is not None:
        paths = tuple(sorted(data.place.rglob("*.*")))
        with reading(name, paths):
            found = _open(
                name, library().load_dataset_builder(str(data.place), data.name, writer_batch_size=_LOT), data, None
            )
            return replace(found, files=paths)
    source = name if data.revision is None else f"{name}@{data.revision}"
    library()  # before anything is asked of the Hub
    commit = snapshot(name, data.revision, _CARD, source, kind="dataset").name
    with reading(source):
        builder = library().load_dataset_builder(name, data.name, revision=commit, writer_batch_size=_LOT)
        if builder.hash != commit:  # without the Hub, the library takes whatever it has
            raise Unavailable(f"{source}: the Hub cannot be reached, and commit {commit[:12]} is not cached")
        return _open(source, builder, data, commit)


def _open(name: str, builder: Any, data: experiment.Data, revision: str | None) -> Found:
    """The declared split of what a builder reads."""
    kind = type(builder).__mro__[1].__name__ if type(builder).__name__.startswith("Configured") else ""
    module = type(builder).__module__.rpartition(".")[2]
    if module not in (*_BUILDERS, "cache") and kind.lower() not in _BUILDERS:
        raise DataError(f"{name}: data of the kind {module}, expected {', '.join(_BUILDERS)}")
    if data.streaming:
        splits = builder.as_streaming_dataset()
        if data.split not in splits:
            raise DataError(f"{name}: no split {data.split!r}, it has {', '.join(map(repr, splits))}")
        rows = splits[data.split]
        if module == "parquet" and rows.num_shards <= _FOOTERS:
            rows = rows.reshard()  # by row groups: Arrow decodes up to 1 GiB of a file ahead of what is asked for
        return Found(name, rows, revision, tuple(rows.features) if rows.features else None)
    builder.download_and_prepare()
    if not any(split.num_examples for split in (builder.info.splits or {}).values()):
        raise DataError(f"{name}: split {data.split} has no rows")
    rows = builder.as_dataset(split=data.split)
    return Found(name, rows, revision, tuple(rows.column_names))


def snapshot(
    name: str, revision: str | None, patterns: list[str], source: str, *, kind: str = "model", leave: Sequence[str] = ()
) -> Path:
    """The folder with those files of a repository; its name is their commit.

    Args:
        name: OWNER/NAME.
        revision: a branch, tag or commit; none for the default branch.
        patterns: which files are fetched.
        source: what messages call it.
        kind: `model` or `dataset`.
        leave: patterns of files that are not.

    Raises:
        Unavailable: the Hub cannot be reached, and no whole copy is cached.
        CheckpointError: a model's repository cannot be had.
        DataError: a dataset's cannot.
    """
    with _hub(source, kind, revision):
        return Path(
            snapshot_download(
                name, repo_type=kind, revision=revision, allow_patterns=patterns, ignore_patterns=list(leave)
            )
        )


@contextmanager
def _hub(source: str, kind: str, revision: str | None) -> Iterator[None]:
    """The Hub's errors in our words. None keeps its cause: requests hold signed addresses, and a record must not."""
    refused = CheckpointError if kind == "model" else DataError
    try:
        yield
    except GatedRepoError:
        raise refused(f"{source}: gated on the Hub: accept its terms and log in (hf auth login)") from None
    except RevisionNotFoundError:
        raise refused(f"{source}: the repository has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise refused(f"{source}: no such repository on the Hub, or it is private") from None
    except (LocalEntryNotFoundError, HTTPError) as error:
        reason = first_line(error.__cause__ or error).partition("?")[0]
        if _refused(error) or _refused(error.__cause__):
            raise refused(f"{source}: the Hub answers: {reason}") from None
        raise Unavailable(f"{source}: the Hub cannot be reached, and no whole copy is cached: {reason}") from None
    except (OSError, ValueError) as error:
        raise refused(f"{source}: cannot be had from the Hub: {first_line(error)}") from error


@contextmanager
def reading(name: str, files: Sequence[Path] = ()) -> Iterator[None]:
    """What the datasets library raises while it finds, fetches and reads rows, as one sentence.

    Args:
        name: of the data.
        files: where it is read from, to look for the line that is no text.
    """
    try:
        yield
    except (DataError, Unavailable):
        raise
    except Exception as error:
        chain = list(_causes(error))
        undecoded = next((one for one in chain if isinstance(one, UnicodeDecodeError)), None)
        if undecoded is not None:
            raise DataError(f"{name}: {_not_utf8(files) or undecoded}") from None
        web = next((one for one in chain if isinstance(one, HTTPError | OfflineModeIsEnabled | ConnectionError)), None)
        if isinstance(web, GatedRepoError):
            raise DataError(f"{name}: gated on the Hub: accept its terms and log in (hf auth login)") from None
        if web is not None:
            reason = first_line(web).partition("?")[0]
            if _refused(web):
                raise DataError(f"{name}: the Hub answers: {reason}") from None
            raise Unavailable(f"{name}: the Hub cannot be reached, and the rows are not cached: {reason}") from None
        if isinstance(error, MemoryError):
            raise
        raise DataError(f"{name}: cannot be read: {first_line(chain[-1])}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, to the first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _not_utf8(files: Sequence[Path]) -> str:
    """The first line of these files that is not UTF-8; empty where there is none."""
    for file in files:
        if file.suffix not in experiment.FILE_KINDS or file.suffix == ".parquet":
            continue
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    found = line[max(0, error.start - 10) : error.end + 10]
                    return f"{file.name}, line {number}: not UTF-8: byte 0x{line[error.start]:02x} in {found!r}"
    return ""


def _refused(error: BaseException | None) -> bool:
    """Whether the Hub has answered so that asking again is of no use: neither busy nor broken."""
    if not isinstance(error, HfHubHTTPError):
        return False
    return 400 <= error.response.status_code < 500 and error.response.status_code not in (408, 429)


def first_line(error: BaseException) -> str:
    """The first line of its text, with the next where it only announces that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])
