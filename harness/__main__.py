"""The `harness` command: everything that needs no test session."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness import __version__
from harness.ab.command import add_ab, add_bisect
from harness.errors import HarnessError, InvalidExperiment, count, meant
from harness.option import add_margin, add_page, put, writable

if TYPE_CHECKING:
    from pydantic import BaseModel

    from harness.compare import Comparison, Table
    from harness.experiment import Experiment, Laws
    from harness.journal import Journal
    from harness.mutation import Mutant, Subject
    from harness.plan import Case
    from harness.record import Record
    from harness.training.fault import Fault


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    The exit status is 0 if all is well, 1 if something was looked at and found wrong, 2 if it could not be looked at:
    bad usage, nothing to read, runs that are not alike.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `harness plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except HarnessError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="harness",
        description="Fine-tuning experiments: check files, compare runs. `pytest experiments/` trains them.",
    )
    parser.add_argument("--version", action="version", version=f"pytest-finetune {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("check", help="validate experiment files and print every mistake")
    check.add_argument("paths", nargs="+", type=Path, metavar="FILE", help="experiment file, or folder of them")
    check.set_defaults(command=_check)

    plan = commands.add_parser("plan", help="list the cases of experiments without running them")
    plan.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="experiment file, or folder of them")
    plan.add_argument("--device", action="append", metavar="NAME", help="instead of the files' own devices; repeatable")
    plan.set_defaults(command=_plan)

    devices = commands.add_parser("devices", help="list the devices of this machine")
    devices.set_defaults(command=_devices)

    schema = commands.add_parser("schema", help="print the JSON Schema of experiment files")
    schema.add_argument("--output", type=writable, metavar="FILE", help="write to this file instead of the terminal")
    schema.set_defaults(command=_schema)

    explain = commands.add_parser("explain", help="say what a law states, why, and where its thresholds come from")
    explain.add_argument("laws", nargs="*", metavar="LAW", help="name of a law (default: all, which is docs/laws.md)")
    explain.set_defaults(command=_explain)

    mutate = commands.add_parser(
        "mutate", help="make mistakes on purpose, one at a time, and see which laws catch them"
    )
    mutate.add_argument("paths", nargs="+", type=Path, metavar="FILE", help="experiment file, or folder of them")
    mutate.add_argument(
        "--only", nargs="+", metavar="NAME", help="make only these faults, named as in docs/faults.md (default: all)"
    )
    mutate.add_argument(
        "--device", default="cpu", metavar="NAME", help="where to train, whatever the files name (default: %(default)s)"
    )
    mutate.add_argument(
        "--output", type=writable, metavar="FILE", help="write Markdown to this file instead of text to the terminal"
    )
    mutate.add_argument(
        "--journal", type=Path, metavar="FILE", help="keep the results in this file; a later run goes on from there"
    )
    mutate.set_defaults(command=_mutate)

    compare = commands.add_parser("compare", help="compare stored runs: slower, faster, equivalent or undecided")
    compare.add_argument(
        "addresses",
        nargs="+",
        metavar="ADDRESS",
        help="BASE and NEW: each a record file, a report folder (its newest run), a folder of record files (all of "
        "them) or the URL of one; with --across, one address or more",
    )
    compare.add_argument(
        "--across",
        action="append",
        default=[],
        metavar="AXIS",
        help="what may differ: device, torch, loop, a key of experiments such as precision, or a library; may be given "
        "several times",
    )
    add_margin(compare)
    add_page(compare)
    compare.set_defaults(command=_compare)

    add_ab(commands)
    add_bisect(commands)

    triage = commands.add_parser("triage", help="say whether a difference is noise, the environment, or the code")
    triage.add_argument("baseline", metavar="BASELINE", help="a baseline file, or records as for `harness compare`")
    triage.add_argument("control", metavar="CONTROL", help="records of a commit with the baseline's libraries")
    triage.add_argument("canary", metavar="CANARY", help="records of that commit with the latest libraries")
    add_margin(triage)
    add_page(triage)
    triage.set_defaults(command=_triage)

    baseline = commands.add_parser("baseline", help="keep a run that later ones are compared with: pytest --baseline")
    actions = baseline.add_subparsers(required=True, metavar="ACTION")
    accept = actions.add_parser("accept", help="make or renew the baselines of cases")
    _add_records(accept)
    accept.add_argument("--reason", required=True, metavar="TEXT", help="why these figures are right; kept in the file")
    accept.add_argument(
        "--baseline", type=writable, default="baseline.jsonl", metavar="PATH", help="file to write (%(default)s)"
    )
    accept.set_defaults(command=_accept)

    export = commands.add_parser("export", help="print stored figures for github-action-benchmark or Bencher")
    _add_records(export)
    export.add_argument(
        "--format", required=True, choices=("github-action-benchmark", "bencher"), help="the tool that reads it"
    )
    export.add_argument(
        "--better",
        choices=("bigger", "smaller"),
        help="for github-action-benchmark: rates (bigger, its customBiggerIsBetter; the default), or times, memory and "
        "losses (smaller, its customSmallerIsBetter)",
    )
    export.add_argument("--output", type=writable, metavar="FILE", help="write to this file instead of the terminal")
    export.set_defaults(command=_export)

    report = commands.add_parser("report", help="judge stored records again and print the report")
    _add_records(report)
    report.add_argument(
        "--laws", action="store_true", help="print a Markdown table of which law held in which case instead"
    )
    report.add_argument(
        "--output", type=writable, metavar="FILE", help="write Markdown to this file instead of text to the terminal"
    )
    report.set_defaults(command=_report)
    return parser


def _add_records(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "addresses",
        nargs="*",
        default=["reports"],
        metavar="ADDRESS",
        help="records, as for `harness compare` (default: reports)",
    )


def _check(options: argparse.Namespace) -> int:
    found = _read(_experiments(options.paths))
    wrong = [each for each in found if isinstance(each, InvalidExperiment)]
    print("\n".join(map(str, wrong)) if wrong else f"{count(len(found), 'experiment')}: no mistakes")
    return 1 if wrong else 0


def _plan(options: argparse.Namespace) -> int:
    """Let pytest collect, so that configuration, devices and patterns are those of `pytest PATH`."""
    import pytest

    from harness.plugin.node import Planned

    _require(options.paths)
    planned = Planned()
    devices = [f"--device={name}" for name in options.device or ()]
    # Not `-p no:terminal`, which would make an error of every `-v` or `-ra` in the configuration.
    with contextlib.redirect_stdout(io.StringIO()) as output:
        status = pytest.main(["--collect-only", *devices, *map(str, options.paths)], plugins=[planned])
    if status == pytest.ExitCode.USAGE_ERROR:  # pytest itself has said it
        return 2
    if status == pytest.ExitCode.INTERNAL_ERROR:
        raise HarnessError(output.getvalue())
    for name in planned.cases:
        print(name)
    for error in planned.errors:
        print(error, file=sys.stderr)
    if not planned.cases and not planned.errors:
        where = ", ".join(map(str, options.paths))
        expected = "YAML files in a folder called experiments (or as `experiment_files` says), or a file itself"
        raise HarnessError(f"{where}: found no experiment, expected {expected}")
    return 1 if planned.errors else 0


def _devices(options: argparse.Namespace) -> int:
    from harness.training import devices

    for name, title in devices.here():
        print(f"{name}  {title}".rstrip())
    return 0


def _schema(options: argparse.Namespace) -> int:
    from harness.experiment import schema

    put(json.dumps(schema(_laws()), indent=2, ensure_ascii=False), options.output)
    return 0


def _explain(options: argparse.Namespace) -> int:
    from harness.laws import LAWS
    from harness.laws.explain import explain, page

    known = {law.name: law for law in LAWS}
    for name in options.laws:
        if name not in known:
            expected, hint = ", ".join(known), meant(name, known)
            raise HarnessError(f"{name}: no such law, expected one of {expected}" + (f"; {hint}" if hint else ""))
    print("\n\n".join(explain(known[name]) for name in options.laws) if options.laws else page(LAWS).rstrip())
    return 0


def _mutate(options: argparse.Namespace) -> int:
    """Every fault in every case: 0 if all are caught, 1 if one survives or it is stopped, 2 if a case is not healthy to
    begin with.
    """
    from harness import plan
    from harness.experiment import check_device
    from harness.journal import Journal
    from harness.laws import LAWS
    from harness.mutation import Mutation, Subject, mutants
    from harness.plugin import node
    from harness.report import mutation_markdown, mutation_text
    from harness.training.faults import FAULTS
    from harness.training.mutate import runner

    known = {fault.name: fault for fault in FAULTS}
    for name in options.only or ():
        if name not in known:
            raise HarnessError(f"{name}: no such fault" + (f"; {hint}" if (hint := meant(name, known)) else ""))
    try:
        check_device(options.device)
    except ValueError as error:
        raise HarnessError(f"--device: {error}") from None
    root = Path.cwd()
    cases: list[Case] = []
    for one in _read(_experiments(options.paths)):
        if isinstance(one, InvalidExperiment):
            raise one
        cases += plan.cases(one, [options.device], root=root, override=True)
    cases = list(plan.expand(cases, node.cuda_count))
    runs = runner(root)
    subjects: list[Subject[Fault]] = [Subject(case, LAWS, runs) for case in cases]
    chosen = [known[name] for name in options.only or known]
    journal = Journal(options.journal) if options.journal is not None else None
    if alarms := [alarm for subject in _open(subjects, chosen, journal) for alarm in subject.alarms]:
        print(
            "broken before any fault is made; mend it, or declare it in expect_broken:",
            *alarms,
            sep="\n",
            file=sys.stderr,
        )
        return 2
    found: list[Mutant] = []
    stopped = False
    try:
        found.extend(_told(mutants(subjects, chosen, journal)))
    except KeyboardInterrupt:
        print(f"\nstopped by Ctrl-C after {count(len(found), 'mutant')}; what was found until then:", file=sys.stderr)
        stopped = True
    mutation = Mutation(tuple(found))
    if options.output is None:
        print(mutation_text(mutation))
    else:
        put(mutation_markdown(mutation), options.output)
        print(mutation.score)
    return 1 if mutation.survivors or stopped else 0


def _open(subjects: Sequence[Subject[Fault]], faults: Sequence[Fault], journal: Journal | None) -> list[Subject[Fault]]:
    """The cases of which the journal does not know everything yet."""
    if journal is None:
        return list(subjects)
    return [one for one in subjects if not journal.has_all(one.case, filter(one.suits, faults))]


def _told(found: Iterable[Mutant]) -> Iterator[Mutant]:
    """Say on a terminal how far it is: all faults take minutes."""
    for number, mutant in enumerate(found, start=1):
        if sys.stderr.isatty():
            print(f"\r{number}: {mutant.fault.name}: {mutant.outcome}\x1b[K", end="", file=sys.stderr, flush=True)
        yield mutant
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _compare(options: argparse.Namespace) -> int:
    """0 if nothing has regressed, 1 if something has, 2 if the runs, or those of a case, cannot be compared."""
    from harness import store
    from harness.compare import Comparison, NotComparable, check_axes
    from harness.report import comparison_json, page

    readings = [store.load(address) for address in options.addresses]
    problems = tuple(problem for reading in readings for problem in reading.problems)
    try:
        check_axes(options.across, [record for reading in readings for record in reading.records])
        found = _compared([reading.records for reading in readings], options)
    except HarnessError as error:
        if isinstance(error, NotComparable) and options.format == "json":
            put(comparison_json(error), options.output)
        print("\n".join([*problems, str(error)]), file=sys.stderr)
        return 2
    sides = ["base is {}, new is {}".format(*options.addresses)] if isinstance(found, Comparison) else []
    found = replace(found, notes=(*sides, *problems, *found.notes))
    put(page(found, options.format), options.output)
    return found.status


def _compared(sides: Sequence[tuple[Record, ...]], options: argparse.Namespace) -> Comparison | Table:
    """Two sides as base and new; a table where there are more of them, one, or devices."""
    from harness.compare import compare, side_by_side
    from harness.compare.identity import value

    across = options.across
    if not across and len(sides) != 2:
        raise HarnessError(f"found {len(sides)} of BASE and NEW, expected both, or an axis: --across device")
    for address, records in zip(options.addresses, sides, strict=True):
        if not records:
            raise HarnessError(f"{address}: no records to compare")
    values = [{value(record, across) for record in records} for records in sides]
    if len(sides) == 2 and "device" not in across and all(len(each) == 1 for each in values):
        return compare(*sides, across=across, margin=options.margin)
    return side_by_side([record for records in sides for record in records], across, margin=options.margin)


def _triage(options: argparse.Namespace) -> int:
    """0 if what differs is noise, or cannot be told, 1 if it is the environment or the code, 2 on refusal, or if a run
    with which others would be compared did not finish.
    """
    from harness import store
    from harness.compare import NotComparable
    from harness.compare.triage import triage
    from harness.report import comparison_json, page

    addresses = (options.baseline, options.control, options.canary)
    readings = [store.load(address) for address in addresses]
    problems = tuple(problem for reading in readings for problem in reading.problems)
    for address, reading in zip(addresses, readings, strict=True):
        if not reading.records:
            raise _none([address], problems, "no records to compare")
    baseline, control, canary = (reading.records for reading in readings)
    try:
        found = triage(baseline, control, canary, options.margin)
    except NotComparable as error:
        if options.format == "json":
            put(comparison_json(error), options.output)
        raise HarnessError("\n".join([*problems, error.listed])) from None
    put(page(replace(found, notes=(*problems, *found.notes)), options.format), options.output)
    return found.status


def _accept(options: argparse.Namespace) -> int:
    """0 if every case has its baseline, 1 if one was refused, 2 if there is none to accept."""
    from harness import store
    from harness.compare import baseline
    from harness.compare.comparison import left_out

    if not options.reason.strip():
        raise HarnessError("--reason: found nothing, expected why these figures are right")
    reading = store.load(*options.addresses)
    if not reading.records:
        raise _none(options.addresses, reading.problems, "no records to accept")
    with baseline.alone(options.baseline):
        old = baseline.read(options.baseline) if options.baseline.exists() else baseline.Baselines()
        accepted = baseline.accept(old, reading.records, options.reason)
        if accepted.names:
            baseline.write(options.baseline, accepted.baselines)
    for line in [*reading.problems, *left_out(reading.records), *(f"refused: {why}" for why in accepted.refused)]:
        print(line, file=sys.stderr)
    print(f"{options.baseline}: {count(len(accepted.names), 'baseline')} accepted, {len(accepted.refused)} refused")
    return 1 if accepted.refused else 0 if accepted.names else 2


def _export(options: argparse.Namespace) -> int:
    """0 if there are figures, 2 if there are none."""
    from harness import store
    from harness.report.export import bencher, export, github_action_benchmark

    if options.better and options.format == "bencher":
        raise HarnessError("--better: found with --format bencher, whose files hold all figures")
    reading = store.load(*options.addresses)
    found = export(reading.records)
    wanted = ("bigger", "smaller") if options.format == "bencher" else (options.better or "bigger",)
    figures = [one for one in found.figures if one.better in wanted]
    if not figures:
        raise _none(options.addresses, (*reading.problems, *found.notes), "no figures to export")
    for line in (*reading.problems, *found.notes):
        print(line, file=sys.stderr)
    put(bencher(figures) if options.format == "bencher" else github_action_benchmark(figures), options.output)
    return 0


def _report(options: argparse.Namespace) -> int:
    """0 if there is a record, 2 if there is none."""
    from harness import store
    from harness.report import laws_markdown, markdown, summarise, terminal

    reading = store.load(*options.addresses)
    if not reading.records:
        raise _none(options.addresses, reading.problems, "no records to report")
    if options.laws:
        for problem in reading.problems:
            print(problem, file=sys.stderr)
        page = laws_markdown(reading.records)
    else:
        summary = summarise(reading.records, reading.problems)
        page = terminal(summary) if options.output is None else markdown(summary)
    put(page, options.output)
    return 0


def _none(addresses: Sequence[str], problems: Sequence[str], said: str) -> HarnessError:
    """There is nothing to work on: every reason, then where."""
    return HarnessError("\n".join([*problems, f"{', '.join(addresses)}: {said}"]))


def _laws() -> dict[str, type[BaseModel]]:
    from harness.laws import LAWS

    return {law.name: law.options for law in LAWS}


def _read(files: Sequence[Path]) -> list[Experiment | InvalidExperiment]:
    """Each experiment, or its mistakes. Only where one names a law that is none of ours does pytest load the
    `conftest.py` files around it, which takes a second.

    Raises:
        HarnessError: pytest cannot load them.
    """
    from harness.plugin.node import own_laws

    found = {file: _attempt(file, _laws()) for file in files}
    for file, laws in own_laws([file for file, one in found.items() if _names_laws(one)]).items():
        found[file] = _attempt(file, {**_laws(), **laws})
    return list(found.values())


def _names_laws(found: Experiment | InvalidExperiment) -> bool:
    """Whether a mistake is about a law."""
    keys = [mistake.key for mistake in found.mistakes] if isinstance(found, InvalidExperiment) else []
    return any(section in key for key in keys for section in ("invariants.", "expect_broken."))


def _attempt(file: Path, laws: Laws) -> Experiment | InvalidExperiment:
    from harness.experiment import read

    try:
        return read(file, laws)
    except InvalidExperiment as error:
        return error


def _experiments(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Experiment files below the paths.

    Raises:
        HarnessError: a path does not exist, or there is no experiment below any of them.
    """
    from harness import plan

    _require(paths)
    files = plan.find(paths)
    if not files:
        raise HarnessError(f"{', '.join(map(str, paths))}: found no experiment, expected *.yaml or *.yml files")
    return files


def _require(paths: Sequence[Path]) -> None:
    """Raise if a path does not exist."""
    for path in paths:
        if not path.exists():
            raise HarnessError(f"{path}: no such file or folder")


if __name__ == "__main__":
    sys.exit(main())
