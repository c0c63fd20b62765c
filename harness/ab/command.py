"""The commands `harness ab` and `harness bisect`: options in, exit status out."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, count
from harness.option import add_margin, add_page, put, seconds

if TYPE_CHECKING:
    from harness.ab.bisect import Culprit
    from harness.ab.job import Job
    from harness.ab.process import Side
    from harness.compare import Comparison


def add_ab(commands: Any) -> None:
    """`harness ab`."""
    ab = commands.add_parser(
        "ab", help="compare two revisions of your project, or two sets of libraries, in turns on this machine"
    )
    ab.add_argument("base", nargs="?", metavar="BASE_REV", help="git revision to compare with, such as main")
    ab.add_argument(
        "new", nargs="?", metavar="NEW_REV", help="git revision to judge (default: the working tree as it is)"
    )
    ab.add_argument(
        "--against-env",
        type=Path,
        metavar="FILE",
        help="compare with the libraries of this requirements file instead of with a revision",
    )
    _add_job(ab)
    add_page(ab)
    ab.set_defaults(command=_ab)


def add_bisect(commands: Any) -> None:
    """`harness bisect`."""
    bisect = commands.add_parser(
        "bisect", help="find the revision, or the release of a library, that made training slower or wrong"
    )
    bisect.add_argument("good", nargs="?", metavar="GOOD_REV", help="a revision that was still good")
    bisect.add_argument("bad", nargs="?", metavar="BAD_REV", help="a later revision that is slower or wrong")
    bisect.add_argument("--package", metavar="NAME", help="search the releases of this library instead of revisions")
    bisect.add_argument(
        "--releases",
        default="",
        metavar="LIST",
        help="5.20,5.21,5.22, or 5.20..5.22 for all of these in pip's index (default: all in the index)",
    )
    bisect.add_argument(
        "--requirements", type=Path, metavar="FILE", help="requirements file with all else that the project needs"
    )
    _add_job(bisect)
    bisect.set_defaults(command=_bisect)


def _add_job(parser: argparse.ArgumentParser) -> None:
    """What is to be compared, and how long it may take."""
    parser.add_argument(
        "--experiments",
        nargs="+",
        default=["experiments"],
        metavar="PATH",
        help="experiment files or folders (default: experiments)",
    )
    parser.add_argument("-k", dest="selection", metavar="EXPRESSION", help="select cases, as in pytest")
    parser.add_argument(
        "--device", action="append", metavar="NAME", help="instead of the files' own devices; repeatable"
    )
    parser.add_argument(
        "--budget", type=seconds, default=120.0, metavar="SECONDS", help="most time for a case's turns (%(default)g)"
    )
    parser.add_argument(
        "--across",
        action="append",
        default=[],
        metavar="AXIS",
        help="what may differ between the sides, as for `harness compare`; may be given several times",
    )
    add_margin(parser)


def _ab(options: argparse.Namespace) -> int:
    """0 if nothing has regressed, 1 if something has, 2 if sides, or a case of them, cannot be compared."""
    from harness.ab.environment import Environments
    from harness.ab.job import LIBRARIES, compare_sides
    from harness.ab.process import Side
    from harness.ab.revision import Repository
    from harness.ab.stopping import stopped_once
    from harness.compare import NotComparable
    from harness.report import comparison_json, page

    if (options.base is None) == (options.against_env is None):
        raise HarnessError("found neither or both of BASE_REV and --against-env, expected one: `harness ab main`")
    with stopped_once(), contextlib.ExitStack() as sides:
        sides.callback(_tell, "")
        job, folder = _job(options), Path.cwd()
        if options.new is None:
            _require(options.experiments)
        if options.against_env is not None:
            base = Side(str(options.against_env), folder, Environments().python(options.against_env))
            new = Side("this environment", folder, Path(sys.executable))
            job = replace(job, across=(*job.across, LIBRARIES))
        else:
            repository = Repository(folder)
            base, new = sides.enter_context(repository.checked_out(options.base)), repository.as_it_is()
            if options.new is not None:
                new = sides.enter_context(repository.checked_out(options.new))
        try:
            found = compare_sides(base, new, job, _tell)
        except NotComparable as error:
            if options.format == "json":
                put(comparison_json(error), options.output)
            raise
    put(page(found, options.format), options.output)
    return found.status


@dataclass(frozen=True)
class _Range:
    """What is searched."""

    good: str
    candidates: Sequence[str]
    """The oldest first; the last is the bad end."""
    side: Callable[[str], contextlib.AbstractContextManager[Side]]
    title: Callable[[str], str]
    across: tuple[str, ...] = ()


def _bisect(options: argparse.Namespace) -> int:
    """1 if the culprit is found, 0 if the bad end is not bad, 2 if it cannot be said."""
    from harness.ab.bisect import Probe, search
    from harness.ab.job import compare_sides
    from harness.ab.stopping import stopped_once
    from harness.report.table import printable

    def told(probe: Probe) -> None:
        _tell("")
        print(printable(f"{probe.name[:12]}: {probe.state}: {probe.reason}"), flush=True)

    with stopped_once(), contextlib.ExitStack() as sides:
        sides.callback(_tell, "")
        job, among = _job(options), _revisions(options) if options.package is None else _releases(options)
        job = replace(job, across=(*job.across, *among.across))
        base = sides.enter_context(among.side(among.good))

        def attempt(name: str) -> Comparison:
            with among.side(name) as new:
                return compare_sides(base, new, job, _tell)

        found = search(among.candidates, attempt, told)
    print(printable(_culprit(found, among.title)))
    return 1 if found.found else 0 if found.probes[0].state == "good" else 2


def _revisions(options: argparse.Namespace) -> _Range:
    from harness.ab.revision import Repository

    if options.good is None or options.bad is None:
        raise HarnessError("found no GOOD_REV or no BAD_REV, expected both, or --package")
    if options.releases or options.requirements:
        raise HarnessError("found --releases or --requirements, expected --package with them")
    repository = Repository(Path.cwd())
    candidates = repository.between(options.good, options.bad)
    return _Range(options.good, candidates, repository.checked_out, repository.title)


def _releases(options: argparse.Namespace) -> _Range:
    from harness.ab.environment import Environments, releases
    from harness.ab.job import LIBRARIES
    from harness.ab.process import Side

    if options.requirements is None or options.good is not None:
        raise HarnessError("--package: expected --requirements FILE with it, and no revisions")
    _require(options.experiments)
    environments = Environments()

    def side(release: str) -> contextlib.AbstractContextManager[Side]:
        python = environments.python(options.requirements, f"{options.package}=={release}")
        return contextlib.nullcontext(Side(f"{options.package} {release}", Path.cwd(), python))

    good, *candidates = releases(options.package, options.releases)
    return _Range(good, candidates, side, lambda release: f"{options.package} {release}", (LIBRARIES,))


def _culprit(found: Culprit, title: Callable[[str], str]) -> str:
    """What the search came to."""
    names = [title(name) for name in found.suspects]
    if not names:
        return f"nothing to search for: the bad end is {found.probes[0].state}"
    sure = f"{found.certainty:.1%} sure, from {count(len(found.probes), 'comparison')}"
    if found.found:
        return f"{names[0]} is the first bad one ({sure})"
    return "\n".join([f"the first bad one is among these, of which the others cannot be told ({sure}):", *names])


def _job(options: argparse.Namespace) -> Job:
    from harness.ab.job import Job

    return Job(
        experiments=tuple(os.path.relpath(path) for path in options.experiments),
        options=(
            *(f"--device={name}" for name in options.device or ()),
            *(("-k", options.selection) if options.selection else ()),
        ),
        across=tuple(options.across),
        budget=options.budget,
        margin=options.margin,
        seed=time.time_ns(),
    )


def _require(experiments: Sequence[str]) -> None:
    """Of a side that is the folder as it is; of a revision, pytest says what it lacks."""
    for path in map(Path, experiments):
        if not path.exists():
            raise HarnessError(f"{path}: no such file or folder")


def _tell(text: str) -> None:
    """Say on a terminal how far it is, in a line that the next one takes the place of; nothing takes it away."""
    if sys.stderr.isatty():
        print(f"\r\x1b[?7l{text}\x1b[K\x1b[?7h", end="", file=sys.stderr, flush=True)
