"""Records to and from a folder: ``records/RUN.jsonl``, one line a case, flushed before anything judges it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from harness.errors import HarnessError, count, shown
from harness.exploration import Trial

if TYPE_CHECKING:  # a run without experiments names its store, and no more
    from pydantic import ValidationError

    from harness.record import Part, Record

Kept = TypeVar("Kept", bound="Part")
"""A record, or what holds records."""


NAMED = 20
"""Lines of a file that are named where they are no records."""

NOT_JSON = "not JSON"
"""What is said of a line that does not even begin as a record does."""


def new_run() -> str:
    """Name a run so that names sort by time: ``20260131T120000Z-3f9a``, its second and a fraction of it in 65536ths."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{now.microsecond * 2**16 // 10**6:04x}"


@dataclass(frozen=True)
class Store:
    """The records of one run, below a report folder.

    Writers of the same run that are apart (pytest-xdist workers) each have a `part`, and so a file, of their own.
    """

    folder: Path
    run: str = field(default_factory=new_run)
    part: str = ""

    @property
    def path(self) -> Path:
        """Where this writer's records go."""
        name = f"{self.run}.{self.part}.jsonl" if self.part else f"{self.run}.jsonl"
        return self.folder / "records" / name

    def prepare(self, exploring: bool = False) -> None:
        """Make the folder, and see that what comes can be written there: before a training, not after it.

        Args:
            exploring: whether texts that break a law are to be kept, too.

        Raises:
            HarnessError: something is in the way; says what.
        """
        folder, files = self.path.parent, [self.folder / "latest.md", *[self.explored] * exploring]
        try:
            there = next(path for path in (folder, *folder.parents) if path.exists())
            if not there.is_dir():
                raise HarnessError(f"found {there}, which is a file, expected a folder")
            if found := next((file for file in files if file.is_dir()), None):
                raise HarnessError(f"found {found}, which is a folder, expected a file")
            paths = [path for path in (there, *files) if path.exists()]
            if closed := next((path for path in paths if not os.access(path, os.W_OK)), None):
                raise HarnessError(f"found {closed}, which cannot be written: {os.strerror(errno.EACCES)}")
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HarnessError(f"found {folder}, which cannot be made: {error.strerror or error}") from None

    def append(self, record: Record) -> None:
        """Write one line and hand it to the disk: what comes after may crash, the line stays."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            file.seek(max(file.tell() - 1, 0))
            torn = file.read() not in (b"", b"\n")  # the disk was full: what it cut off stays a line of its own
            file.write(b"\n" * torn + record.to_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @property
    def explored(self) -> Path:
        """Texts that broke a law, a line each."""
        return self.folder / "explored.jsonl"

    @property
    def traces(self) -> Path:
        """The folder of this run's traces."""
        return self.folder / "traces" / self.run

    def trace(self, name: str) -> Path:
        """Where the trace of a case goes: ``traces/RUN/FILE-CASE-DIGEST.json.gz``. A file's name may not hold all that
        a case's may, nor be as long.
        """
        plain = re.sub(r"[^A-Za-z0-9._=-]+", "-", name)[:120].strip(".-")
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        return self.traces / f"{plain}-{digest}.json.gz"

    @property
    def files(self) -> tuple[Path, ...]:
        """What all parts of this run have written to; nothing where the folder cannot even be looked for."""
        folder = self.path.parent
        return tuple(sorted(folder.glob(f"{self.run}*.jsonl"))) if os.access(folder, os.F_OK) else ()

    def remember(self, experiment: str, trial: Trial) -> None:
        """Keep texts that broke a law, for every later run: in ``explored.jsonl``."""
        if trial not in self.trials(experiment):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.explored.open("a", encoding="utf-8") as file:
                file.write(trial.to_json(experiment=experiment) + "\n")

    def trials(self, experiment: str) -> tuple[Trial, ...]:
        """What broke a law of the experiment in earlier runs."""
        lines = self.explored.read_bytes().splitlines() if self.explored.exists() else []
        return tuple(dict.fromkeys(trial for line in lines if (trial := Trial.from_json(line, experiment=experiment))))

    def read(self) -> Reading:
        """Everything that all parts of this run have written."""
        return read(self.files)


@dataclass(frozen=True)
class Reading:
    """Records, and a sentence for each line that is none."""

    records: tuple[Record, ...]
    problems: tuple[str, ...] = ()


def read(files: Iterable[Path]) -> Reading:
    """Read record files: every whole line is used, every other one is named."""
    return _gather(_content(file, file.read_bytes) for file in files)


def load(*addresses: str) -> Reading:
    """Read records from wherever they are.

    Args:
        addresses: each a record file; a report folder, of which the newest run is taken; a folder of record files, all
            of which are taken; or any of these as a URL that fsspec knows, such as ``s3://bucket/reports``.
    """
    readings = [_load(address) for address in addresses]
    records = tuple(record for reading in readings for record in reading.records)
    return Reading(records, tuple(problem for reading in readings for problem in reading.problems))


def _load(address: str) -> Reading:
    if "://" in address:
        return _load_url(address)
    path = Path(address)
    if not path.is_dir():
        return read([path])
    if not os.access(path, os.R_OK | os.X_OK):
        return Reading((), (f"{path}: cannot be read: {os.strerror(errno.EACCES)}",))
    files = latest_run(path) or tuple(sorted(path.glob("*.jsonl")))
    return read(files) if files else Reading((), (f"{path}: found no records, expected *.jsonl or records/*.jsonl",))


def _load_url(address: str) -> Reading:
    from fsspec.core import url_to_fs

    try:
        system, place = url_to_fs(address)
        names = [place]
        if system.isdir(place):
            found = sorted(system.glob(f"{place}/records/*.jsonl"))
            names = _of_latest(found) or sorted(system.glob(f"{place}/*.jsonl"))
    except Exception as error:  # each file system has its own: no such protocol, no credentials, no network
        return Reading((), (f"{address}: cannot be read: {type(error).__name__}: {error}",))
    if not names:
        return Reading((), (f"{address}: found no records, expected *.jsonl or records/*.jsonl",))
    protocol = address.partition("://")[0]
    return _gather(_content(f"{protocol}://{name}", partial(system.cat_file, name)) for name in names)


Content = tuple[object, bytes | str]
"""A file, and what is in it or why it cannot be read."""


def _content(file: object, get: Callable[[], bytes]) -> Content:
    try:
        return file, get()
    except Exception as error:  # of a file system that is not this machine's
        return file, f"cannot be read: {getattr(error, 'strerror', None) or f'{type(error).__name__}: {error}'}"


def _gather(contents: Iterable[Content]) -> Reading:
    records: list[Record] = []
    problems: list[str] = []
    for file, content in contents:
        if isinstance(content, str):
            problems.append(f"{file}: {content}")
            continue
        wrong: list[str] = []
        foreign = True  # a file of something else: its first line says enough
        for number, line in enumerate(content.split(b"\n"), start=1):
            if not line.strip():
                continue
            found = _records(line)
            if isinstance(found, str):
                wrong.append(f"{file}:{number}: {found}")
            else:
                records.extend(found)
            foreign = foreign and isinstance(found, str) and found.startswith(NOT_JSON)
        named = 1 if foreign else NAMED
        problems += wrong if len(wrong) <= named else [*wrong[:named], f"{file}: {len(wrong) - named} more such lines"]
    return Reading(tuple(records), tuple(problems))


def latest_run(folder: Path) -> tuple[Path, ...]:
    """The record files of the newest run below a report folder; none where there is no run."""
    files = {str(file): file for file in sorted((folder / "records").glob("*.jsonl"))}
    return tuple(files[name] for name in _of_latest(list(files)))


def _of_latest(names: Sequence[str]) -> list[str]:
    """Those of the run that comes last."""

    def run(name: str) -> str:
        return re.split(r"[/\\]", name)[-1].split(".")[0]

    return [name for name in names if run(name) == run(names[-1])]


def parsed(line: bytes, model: type[Kept], number: str, newest: int) -> Kept | str:
    """What a line of JSON holds, or why it holds no such thing.

    Args:
        line: of a file.
        model: what it should hold.
        number: the field with the number of its format.
        newest: the highest such number that this harness reads.
    """
    from pydantic import ValidationError

    what = model.__name__.lower()
    try:
        text = line.decode("utf-8-sig")  # some editors on Windows put a signature first
        data = json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError):
        return f"{'torn line' if line.lstrip().startswith(b'{') else NOT_JSON}, expected a {what}"
    found = data.get(number) if isinstance(data, dict) else None
    if not isinstance(found, int):
        return f"not a {what}: found no number under '{number}', expected a JSON object with one"
    if found > newest:
        return f"{what} of format {found}, this harness reads up to {newest}; upgrade pytest-finetune"
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        return f"not a {what}: {_first(error)}"


def _whole(digits: str) -> int:
    """An integer of at most 64 bits; of a longer one no figure can be computed.

    Raises:
        ValueError: it is longer.
    """
    value = int(digits)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{len(digits)} digits")
    return value


def _first(wrong: ValidationError) -> str:
    """The first thing that is wrong: where, what was found, what is expected."""
    from harness.experiment.source import dotted

    error = wrong.errors(include_url=False)[0]
    where, said = dotted(error["loc"]), error["msg"]
    match error["type"]:
        case "json_invalid":
            return said
        case "mistake":
            return f"{where}: {said}"
        case "missing":
            return f"{where}: found nothing, expected this field"
        case "too_short":
            return (
                f"{where}: found {shown(error['input'])}, expected at least {count(error['ctx']['min_length'], 'item')}"
            )
    return f"{where}: found {shown(error['input'])}, expected {said.removeprefix('Input should be ')}"


def _records(line: bytes) -> list[Record] | str:
    """The record of a line, those of a baseline's line, or why it is neither."""
    from harness.record import FORMAT, Record

    found = parsed(line, Record, "format", FORMAT)
    if not isinstance(found, str):
        return [found]
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        kept = [parsed(json.dumps(each).encode(), Record, "format", FORMAT) for each in json.loads(line)["records"]]
        wrong = next((each for each in kept if isinstance(each, str)), None)
        return wrong or [each for each in kept if not isinstance(each, str)]
    return found
