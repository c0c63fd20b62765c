"""Reports: from records to a summary, and from a summary to text.

After a change that is meant, `python tests/test_report.py` writes the goldens anew; look at their diff.
"""

from pathlib import Path

import pytest
from fake_engine import ENVIRONMENT
from records import EVALUATION, HEALTHY, TWIN_STEP, case, record

from harness.laws import Verdict
from harness.record import Counters, Environment, Interval, Memory, Operator, Profile
from harness.report import Row, Summary, laws_markdown, markdown, summarise, terminal
from harness.report.markdown import environment_line, escape
from harness.report.summary import Cost
from harness.throughput import NotMeasured, Rate, Throughput

GOLDENS = Path(__file__).parent / "goldens"
PRINTERS = {".txt": terminal, ".md": markdown}

SPEED = Throughput(
    seconds=(0.5, 0.25, 1.0),
    samples_per_second=Rate(4.0, 2.0, 8.0),
    tokens_per_second=Rate(1234.5, 99.96, 20000.0),
    padding=0.255,
    warmup_steps=3,
    data_wait=0.0123,
    padded_tokens_per_second=Rate(1657.0, 133.0, 26846.0),
    phases={"data": 0.0123, "transfer": 0.001, "forward": 0.3, "backward": 0.5, "optimizer": 0.15, "other": 0.0367},
    utilisation=0.412,
    roofline={"arithmetic": 0.43, "memory": 1.31},
    queued=0.052,
)
COUNTED = Counters(
    step=1, operators=1413, flops=2_054_366_208, moved_bytes=649_000_000, saved_bytes=12_345_678, host_waits=2
)
PROFILED = Profile(
    trace="traces/20260131T120000Z-3f9a/course-1234abcd.json.gz",
    steps=3,
    seconds=1.5,
    busy_seconds=1.23,
    operators=(
        Operator(name="aten::addmm", calls=108, seconds=0.75),
        Operator(name="aten::_fused_adamw_", calls=3, seconds=0.3),
        Operator(name="aten::gelu", calls=18, seconds=0.0015),
    ),
)


def row(name: str, *outcomes: str, **changes: object) -> Row:
    """A finished case, with a verdict for each outcome."""
    fields = {
        "name": name,
        "outcome": "finished",
        "reason": "",
        "verdicts": tuple(Verdict(outcome, "its message", "", "some_law", name) for outcome in outcomes),
        "first_loss": 0.70312,
        "last_loss": 0.09876,
        "speed": SPEED,
        "memory": Memory(peak_bytes=1536 * 2**20, reserved_bytes=1792 * 2**20, kind="allocated on the device"),
    }
    return Row(**{**fields, **changes})  # type: ignore[arg-type]


def unfinished(name: str, outcome: str, reason: str, *verdicts: Verdict) -> Row:
    """A case that did not come to its end."""
    speed = NotMeasured(reason)
    return row(
        name, outcome=outcome, reason=reason, verdicts=verdicts, first_loss=None, last_loss=None, speed=speed,
        memory=Memory(),
    )  # fmt: skip


COURSE = "experiments/course.yaml"
MEASURED = EVALUATION.model_copy(
    update={
        "metrics": ("accuracy", "pearson"),
        "improvements": {"accuracy": Interval(value=0.5, low=-0.25, high=0.75)},
    }
)
"""The second metric is not defined."""
ORDINARY = Summary(
    rows=(
        row(
            f"{COURSE}::cpu-custom",
            "held",
            "held",
            "not applicable",
            "vacuous",
            evaluation=MEASURED,
            counters=COUNTED,
            profile=PROFILED,
        ),
        row(
            f"{COURSE}::cpu-trainer",
            verdicts=(
                Verdict("held", "20 losses, all finite", "", "loss_finite", f"{COURSE}::cpu-trainer"),
                Verdict(
                    "broken",
                    "classifier.bias moved by 0 (its own scale: 0), expected at least 5e-06",
                    "the optimizer does not hold it",
                    "head_changes",
                    f"{COURSE}::cpu-trainer",
                ),
                Verdict(
                    "broken",
                    "classifier.bias is in no group",
                    "it was left out",
                    "optimizer_covers_trainable",
                    f"{COURSE}::cpu-trainer",
                ),
                Verdict("invalid", "4 steps are too few", "", "loss_decreases", f"{COURSE}::cpu-trainer"),
            ),
            speed=NotMeasured("1 timed steps after 3 of warm-up: at least 3 are needed"),
            memory=Memory(kind="not measured"),
            uncounted=("not counted where steps are compiled",),
            graph_breaks=2,
            profile=Profile(reason="RuntimeError: no profiler"),
        ),
        unfinished(f"{COURSE}::cuda-custom", "skipped", "no CUDA device: torch 2.11.0 is built without CUDA"),
        unfinished(
            f"{COURSE}::cuda-trainer",
            "crashed",
            "ValueError: a broken thing",
            Verdict("broken", "crashed: ValueError: a broken thing", "", "trains", f"{COURSE}::cuda-trainer"),
        ),
        unfinished("experiments/long name of a file.yaml::cpu", "interrupted", "stopped by Ctrl-C"),
    ),
    agreements=(
        Verdict("held", "1 pair agree", "", "loops_agree", "experiments/tiny.yaml"),
        Verdict(
            "broken",
            "cpu-custom and cpu-trainer: loss differs first at step 2: 0.7 and 0.6, allowed 1e-05",
            "the optimizer's settings",
            "loops_agree",
            COURSE,
            (f"{COURSE}::cpu-custom", f"{COURSE}::cpu-trainer"),
        ),
    ),
    environments=(ENVIRONMENT, ENVIRONMENT.model_copy(update={"device": "NVIDIA H200", "dirty": True})),
    problems=("reports/records/20260131T120000Z-3f9a.jsonl:7: torn line, expected a record",),
    costs=(Cost("steps", ("gradient_is_the_declared_one",), 1.25), Cost("watching", ("loss_finite",), 0.05)),
    seconds=10.0,
)

EVIL = "a|b`c*d_e[f](g)<script>&lt;#1~~h~~\\\n# i\r\n- j\x1b[31m\u2028k\x07"
EVIL_PROFILE = Profile(trace=EVIL, steps=1, seconds=1.0, operators=(Operator(name=EVIL, calls=1, seconds=1.0),))
HOSTILE = Summary(
    rows=(
        row(
            EVIL,
            verdicts=(Verdict("invalid", EVIL, "", EVIL, EVIL), Verdict("vacuous", EVIL, "", EVIL, EVIL)),
            profile=EVIL_PROFILE,
        ),
        unfinished("``quoted`` `name`", "skipped", EVIL),
    ),
    agreements=(Verdict("broken", EVIL, EVIL, EVIL, EVIL),),
    environments=(Environment(device=EVIL, platform=EVIL, versions={EVIL: EVIL}, commit=EVIL),),
    problems=(EVIL,),
)


def text(summary: Summary, suffix: str) -> str:
    """A report, with one line end at its end."""
    return PRINTERS[suffix](summary).rstrip("\n") + "\n"


SUMMARIES = {"ordinary": ORDINARY, "hostile": HOSTILE, "empty": Summary((), (), (), ("a.jsonl:1: torn line",))}


@pytest.mark.parametrize("suffix", PRINTERS)
@pytest.mark.parametrize("name", SUMMARIES)
def test_reports_are_as_the_goldens_have_them(name: str, suffix: str) -> None:
    """A summary is printed to the letter as somebody has looked at it and found it right."""
    assert text(SUMMARIES[name], suffix) == (GOLDENS / f"{name}{suffix}").read_text(encoding="utf-8")


def test_text_does_not_become_markup() -> None:
    """What Markdown could read as markup or as a line of its own is escaped, or stands as code."""
    lines = markdown(HOSTILE).splitlines()

    assert not [line for line in lines if line.startswith(("# i", "- j", "k"))]
    assert {line.count("|") - line.count("\\|") for line in lines if line.startswith("|")} == {5, 7, 9, 10}
    outside_code = [line for line in lines if "`" not in line.replace("\\`", "")]
    for line in outside_code:
        assert "<script>" not in line
        assert "[f](g)" not in line


def test_a_name_with_backticks_stays_code() -> None:
    """Code is fenced by more backticks than it holds in a row."""
    assert "- ``` ``quoted`` `name` ```: skipped: " in markdown(HOSTILE)


def test_text_does_not_command_the_terminal() -> None:
    """Control characters are spelled out, in the terminal and for who prints the Markdown there."""
    for printer in PRINTERS.values():
        assert all(character.isprintable() or character == "\n" for character in printer(HOSTILE))


def test_of_several_records_of_a_case_the_last_counts() -> None:
    """A case that ran again, in the same run or a later one, is one row, where it first stood."""
    first, other, again = case("cpu-one"), case("cpu-two"), record(case("cpu-one"), outcome="crashed")

    rows = summarise([first, other, again]).rows

    assert [(row.name.split("::")[1], row.outcome) for row in rows] == [("cpu-one", "crashed"), ("cpu-two", "finished")]


def test_a_healthy_record_has_nothing_broken() -> None:
    """Verdicts, losses, throughput and memory of a record reach its row."""
    (only,) = summarise([record(HEALTHY, memory=Memory(peak_bytes=5))]).rows

    assert only.count("broken") == 0
    assert only.count("held") > 0
    assert (only.first_loss, only.last_loss) == (0.7, 0.2)
    assert isinstance(only.speed, Throughput)
    assert only.memory.peak_bytes == 5


def test_broken_agreements_stand_under_the_case_that_explains_them() -> None:
    """Laws of the cases first, in their order; an agreement with what breaks it."""
    flat = {"loss": (0.5,) * 8}
    trainer = case("cpu-trainer", steps=flat)

    summary = summarise([case("cpu-custom"), trainer])

    (found,) = summary.findings
    assert [(one.about.rpartition("/")[2], one.law) for one in (found.verdict, *found.consequences)] == [
        ("a.yaml::cpu-trainer", "loss_decreases"),
        ("a.yaml", "loops_agree"),
    ]


def test_agreements_that_do_not_apply_are_left_out() -> None:
    """One case has nothing to agree with, and no line about it."""
    assert summarise([HEALTHY]).agreements == ()


def test_environments_are_shown_once() -> None:
    """Where several cases ran in one place it is named once; a case that did not finish says nothing of it."""
    here, there = (Environment(device=name) for name in ("here", "there"))
    records = [
        record(case("cpu-one"), environment=here),
        record(case("cpu-two"), environment=here),
        record(case("cpu-three"), environment=there, outcome="crashed"),
    ]

    assert summarise(records).environments == (here,)


@pytest.mark.parametrize(
    ("threads", "processors", "says"),
    [
        (2, 2.0, "here, 2 threads, Linux"),
        (2, 1.5, "here, 2 threads, Linux"),
        (64, 1.5, "here, 64 threads, more than the 1.5 processors that it may use (OMP_NUM_THREADS=2), Linux"),
        (2, 0.25, "here, 2 threads, more than the 0.25 processors that it may use (OMP_NUM_THREADS=1), Linux"),
        (2, None, "here, 2 threads, Linux"),
        (None, 2.0, "here, None threads, Linux"),
    ],
)
def test_more_threads_than_processors_are_named(threads: int | None, processors: float | None, says: str) -> None:
    """With what to set: they would wait for each other."""
    found = Environment(device="here", platform="Linux", threads=threads, processors=processors)
    assert environment_line(found) == "- " + escape(says)


def test_the_tally_counts_cases_and_laws() -> None:
    """The one line that sums up names each outcome that occurs, and no other."""
    assert ORDINARY.tally == (
        "5 cases: 2 finished, 1 skipped, 1 crashed, 1 interrupted; laws: 4 held, 4 broken, 1 vacuous, 1 invalid"
    )
    assert summarise([]).tally == "0 cases: none finished; laws: none judged"


def test_a_profile_of_a_case_whose_throughput_is_invalid_says_so() -> None:
    """Beside its table: the machine was the same."""
    reason = "the machine was overloaded: in 80% of the time the loop waited for a processor that others had"
    warning = (
        "**The throughput of this case is invalid**, and these times may be, too: the machine was overloaded: in 80%"
    )
    fine, doubtful = (row("a.yaml::cpu", speed=speed, profile=PROFILED) for speed in (SPEED, NotMeasured(reason)))
    pages = [markdown(Summary((each,), (), ())) for each in (fine, doubtful)]
    assert [page.count(warning) for page in pages] == [0, 1]
    assert pages[1].index("## Profile of") < pages[1].index(warning) < pages[1].index("aten::addmm")


def test_reasons_that_differ_in_a_share_alone_are_one() -> None:
    """With the lowest and the highest; what differs otherwise is another one."""
    shares = {"one": "9%", "two": "80%", "three": "76.5%"}
    rows = [row(name, speed=NotMeasured(f"overloaded: in {share} of 100% of it")) for name, share in shares.items()]
    rows += [row("four", speed=NotMeasured("overloaded: in 2 of 100% of it"))]
    assert (
        "step_throughput is invalid: overloaded: in 9% to 80% of 100% of it\n  one\n  two\n  three\n"
        "step_throughput is invalid: overloaded: in 2 of 100% of it\n  four\n"
    ) in terminal(Summary(tuple(rows), (), ()))


def test_what_was_chosen_is_shown_with_its_reason() -> None:
    """A pad token or a padding side that the tokenizer did not come with."""
    shown = markdown(summarise([record(tokenizer={"reasons": {"pad_token": "no pad token in the tokenizer"}})]))
    assert f"## Chosen\n\n- `{HEALTHY.name}`: no pad token in the tokenizer\n" in shown
    assert "Chosen" not in markdown(summarise([HEALTHY]))


def test_the_table_of_laws() -> None:
    """Loops share a row; a law that all hold has no column; expected breaks stand with reason and size; what did not
    finish is left out with its reason."""
    known = {"gradient_is_the_declared_one": "no gradient | by design"}
    steps = {"steps": {"steps": [{**TWIN_STEP, "gradient": 3.0}, TWIN_STEP, TWIN_STEP]}}
    page = laws_markdown(
        [
            case("cpu-custom", expect_broken=known, probes=steps),
            case("cpu-trainer", expect_broken=known, probes=steps),
            case("cuda-custom"),
            case("cuda-trainer", outcome="crashed", reason="ValueError: no", expect_broken={"trains": "known"}),
        ]
    )
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert [row[0] for row in table[2:]] == ["cpu", "cuda"]
    column = table[0].index("gradient_is_the_declared_one")
    assert [row[column] for row in table[2:]] == ["expected", "+"]
    assert "loss_decreases" not in table[0]
    held = page.partition("Held by all: ")[2].partition("\n")[0]
    assert "`loss_decreases`" in held
    assert "gradient" not in held
    assert "1 checkpoint in 3 finished cases, 1 left out" in page
    (line,) = [line for line in page.splitlines() if line.startswith("- `cpu`, `gradient_is_the_declared_one`")]
    assert "no gradient \\| by design. Found: step 1 on the twin: gradients differ by 3" in line
    assert "cuda-trainer`: crashed: ValueError: no (known)" in page


def test_the_table_of_laws_tells_loops_apart() -> None:
    """Where they do not agree, the cell says what each says."""
    page = laws_markdown([case("cpu-custom"), case("cpu-trainer", steps={"loss": (0.7,) * 8})])
    assert "custom held, trainer broken" in page
    assert "## Broken" in page


if __name__ == "__main__":
    for name, summary in SUMMARIES.items():
        for suffix in PRINTERS:
            (GOLDENS / f"{name}{suffix}").write_text(text(summary, suffix), encoding="utf-8")
