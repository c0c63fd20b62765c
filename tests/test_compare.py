"""`harness compare`: what is refused, what is said of times, memory and losses, and what it is printed as."""

import json
import math
import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from records import ADAPTED, HEALTHY, case, clocked, record

from harness.__main__ import main
from harness.compare import Comparison, NotComparable, Table, compare, side_by_side
from harness.compare.loss import losses
from harness.compare.measure import duration
from harness.record import Compilation, Counters, Efficiency, Environment, Flops, Memory, Record
from harness.report import comparison_json, comparison_markdown, comparison_text

STEPS = 43
HERE = Environment(
    versions={"python": "3.11.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"},
    processor="Abacus 9",
    device="Abacus 9",
    threads=2,
)
GOLDENS = Path(__file__).parent / "goldens"
FALLING = tuple(0.7 * math.exp(-step / 20) + 0.02 for step in range(STEPS))

Harness = Callable[..., tuple[int, str, str]]


def trained(
    name: str = "cpu-custom", *, times: float = 1.0, noise: float = 0.01, at: float = 0, **changes: Any
) -> Record:
    """A record of a long training.

    Args:
        name: of the case.
        times: how many times as long every step takes by both clocks.
        noise: deviation of the log of a step's time.
        at: when it ran, in seconds.
        changes: what else is different; `environment` and `steps` by their fields.
    """
    generator = random.Random(f"{name} {times} {at}")
    seconds = tuple(0.1 * times * math.exp(generator.gauss(0, noise)) for _ in range(STEPS))
    base = case(name, settings={"train.steps": STEPS, **changes.pop("settings", {})})
    columns = {
        **{name: (each * STEPS)[:STEPS] for name, each in base.steps if name not in clocked((), ())},
        "loss": FALLING,
        "seconds": seconds,
        "processor_seconds": tuple(0.9 * each for each in seconds),
        **changes.pop("steps", {}),
    }
    environment = HERE.model_copy(update=changes.pop("environment", {}))
    fields = {"environment": environment, "started": base.started + timedelta(seconds=at)}
    return record(
        base, steps=columns, **{**fields, "memory": Memory(peak_bytes=400 * 2**20, kind="allocated"), **changes}
    )


def in_turns(
    runs: int = 10, *, times: float = 1.0, noise: float = 0.01, **changes: Any
) -> tuple[list[Record], list[Record]]:
    """Base and new runs of one case that took turns; the new ones differ."""
    base = [trained(noise=noise, at=2 * run) for run in range(runs)]
    new = [trained(noise=noise, times=times, at=2 * run + 1, **dict(changes)) for run in range(runs)]
    return base, new


def only(comparison: Comparison) -> Any:
    """Its only case."""
    (pair,) = comparison.pairs
    return pair


def refused(base: Sequence[Record], new: Sequence[Record], **options: Any) -> list[tuple[str, str, str]]:
    """Field and both values of each difference that the refusal names."""
    with pytest.raises(NotComparable) as caught:
        compare(base, new, **options)
    return [(one.field, one.base, one.new) for one in caught.value.differences]


# Identity


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"settings": {"train.learning_rate": 1e-4}}, ("train.learning_rate", "0.001", "0.0001")),
        ({"settings": {"precision": "bf16"}}, ("precision", "fp32", "bf16")),
        ({"settings": {"train.loop": "trainer"}}, ("train.loop", "custom", "trainer")),
        ({"settings": {"data.digest": "b"}}, ("data.digest", "not there", "b")),
        ({"checkpoint": {"digest": "6" * 64}}, ("weights", "5" * 16, "6" * 16)),
        ({"checkpoint": {"dtype": "bfloat16"}}, ("dtype", "float32", "bfloat16")),
        ({"checkpoint": {"attention": "eager"}}, ("attention", "nothing", "eager")),
        ({"environment": {"threads": 1}}, ("threads", "2", "1")),
        ({"environment": {"driver": "550.54"}}, ("driver", "nothing", "550.54")),
        ({"environment": {"runtime": "CUDA 12.8"}}, ("runtime", "nothing", "CUDA 12.8")),
        ({"environment": {"device": "NVIDIA H100"}}, ("device model", "Abacus 9", "NVIDIA H100")),
        ({"environment": {"versions": {**HERE.versions, "torch": "2.14.0+cpu"}}}, ("torch", "2.13.0", "2.14.0")),
        ({"environment": {"versions": {**HERE.versions, "python": "3.13.1"}}}, ("python", "3.11.0", "3.13.1")),
        ({"steps": {"loss": FALLING[:20]}}, ("steps trained", "43", "20")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_unlike_runs_are_refused(changes: dict[str, Any], named: tuple[str, str, str]) -> None:
    """Each thing that makes runs alike is named with both values where it differs."""
    assert refused([trained()], [trained(**changes)]) == [named]


def test_other_batches_are_refused() -> None:
    """Whatever is declared: the tensors that reached the model have to be the same."""
    digests = ({"input_ids": "other"},) * STEPS
    ((field, one, two),) = refused([trained()], [trained(steps={"digest": digests})])
    assert field == "batches"
    assert one != two


def test_all_differences_are_named_at_once() -> None:
    """With the cases they concern, and the way out."""
    changes = {"settings": {"train.seed": 1}, "environment": {"threads": 1}}
    with pytest.raises(NotComparable) as caught:
        compare([trained(), trained("cpu-trainer")], [trained(**changes), trained("cpu-trainer", **changes)])
    assert str(caught.value).splitlines() == [
        "NOT COMPARABLE",
        "  threads: 2 and 1 (experiments/a.yaml::cpu-custom and 1 more)",
        "  train.seed: 42 and 1 (experiments/a.yaml::cpu-custom and 1 more)",
        "If one of them is what you ask about, name it: --across 'threads'",
    ]


@pytest.mark.parametrize(
    ("axis", "changes"),
    [
        ("torch", {"environment": {"versions": {**HERE.versions, "torch": "2.14.0+cu130"}, "runtime": "CUDA 13.0"}}),
        ("transformers", {"environment": {"versions": {**HERE.versions, "transformers": "6.0.0"}}}),
        ("threads", {"environment": {"threads": 1}}),
        ("precision", {"settings": {"precision": "bf16"}}),
        (
            "precision",
            {"settings": {"precision": "bf16-pure"}, "checkpoint": {"dtype": "bfloat16", "digest": "6" * 64}},
        ),
        ("train.packing", {"settings": {"train.packing": False}, "checkpoint": {"attention": "sdpa"}}),
        ("train.attention", {"settings": {"train.attention": "eager"}, "checkpoint": {"attention": "eager"}}),
        ("train.batch_size", {"settings": {"train.batch_size": 8}, "steps": {"digest": ({"ids": "c"},) * STEPS}}),
        ("weights", {"checkpoint": {"digest": "6" * 64}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_asked_about_may_differ(axis: str, changes: dict[str, Any]) -> None:
    """An axis waives its own fields, and no others."""
    assert len(compare([trained()], [trained(**changes)], across=[axis]).pairs) == 1
    changes = {**changes, "settings": {**changes.get("settings", {}), "train.eps": 1e-6}}
    assert ("train.eps", "1e-08", "1e-06") in refused([trained()], [trained(**changes)], across=[axis])


def test_other_weights_are_no_matter_of_precision() -> None:
    """Where the bits are of other numbers, the place of the checkpoint tells."""
    pure = {"precision": "bf16-pure", "checkpoint": "./other"}
    other = trained(settings=pure, checkpoint={"dtype": "bfloat16", "digest": "6" * 64})
    base = trained(settings={"checkpoint": "./one"})
    assert refused([base], [other], across=["precision"]) == [("checkpoint", "./one", "./other")]
    assert ("weights", "5" * 16, "6" * 16) in refused([base], [trained(checkpoint={"digest": "6" * 64})])


def test_the_version_of_peft_counts_where_there_are_adapters() -> None:
    """It computes their step, and nothing of others; as an axis it is a library, and waives no batches."""
    old, new = ({"versions": {**HERE.versions, "peft": version}} for version in ("0.21.0", "0.22.0"))
    assert compare([trained(environment=old)], [trained(environment=new)]).pairs
    base, other = (trained(environment=each, adapters=ADAPTED.adapters) for each in (old, new))
    assert refused([base], [other]) == [("peft", "0.21.0", "0.22.0")]
    assert compare([base], [other], across=["peft"]).pairs
    batches = record(other, steps={"digest": ({"input_ids": "other"},) * STEPS})
    assert [field for field, *_ in refused([base], [batches], across=["peft"])] == ["batches"]


def test_a_setting_that_older_records_lack_has_its_default() -> None:
    """A key that could not be set then was what it is today where nothing is said."""
    assert compare([trained()], [trained(settings={"train.pad_to_multiple_of": None, "train.seed": 42})]).pairs
    assert refused([trained()], [trained(settings={"train.pad_to_multiple_of": 8})]) == [
        ("train.pad_to_multiple_of", "null", "8")
    ]


def test_the_place_of_a_checkpoint_is_no_difference_where_its_weights_are_known() -> None:
    """Folders have other names on other machines; the weights and the batches decide."""
    one, two = ({"checkpoint": f"./{name}", "tokenizer": f"/{name}/tokenizer"} for name in ("here", "there"))
    assert compare([trained(settings=one)], [trained(settings=two)]).pairs
    unknown = {"checkpoint": {"digest": ""}}
    assert refused([trained(settings=one, **unknown)], [trained(settings=two, **unknown)]) == [
        ("checkpoint", "./here", "./there")
    ]


def test_runs_of_one_side_have_to_be_alike_too() -> None:
    """Two records of a case in one folder are two runs of it, and not two versions."""
    assert refused([trained(), trained(settings={"train.seed": 1}, at=1)], [trained(at=2)]) == [
        ("train.seed", "42", "1")
    ]


def test_cases_of_several_machines_find_their_own() -> None:
    """Of mixed hardware each case is compared on its own, and what is on one side only is named."""
    laptop = {"device": "Laptop", "processor": "Laptop"}
    comparison = compare([trained(), trained(environment=laptop)], [trained(environment=laptop)])
    assert only(comparison).base[0].environment.device == "Laptop"
    assert comparison.notes == ("only in base: experiments/a.yaml::cpu-custom on Abacus 9",)


def test_no_common_case_is_a_refusal() -> None:
    """There is nothing to compare, and which cases there are is said."""
    with pytest.raises(
        NotComparable, match=r"no case is on both sides: only in base: experiments/a\.yaml::cpu-custom on"
    ):
        compare([trained()], [record(trained(), experiment="experiments/b.yaml")])


# Times


def test_a_slower_run_is_slower() -> None:
    """5 % in 10 turns, by both clocks; the ratio is near the truth and its interval around it."""
    pair = only(compare(*in_turns(times=1.05)))
    for name in ("step time", "processor time"):
        measure = pair.measure(name)
        assert (measure.outcome, measure.shift.turns) == ("slower", 10)
        assert measure.shift.low < 1.05 < measure.shift.high
        assert measure.shift.ratio == pytest.approx(1.05, abs=0.005)
    assert (pair.verdict, pair.fails) == ("slower", True)


@pytest.mark.parametrize(("times", "verdict"), [(1.0, "equivalent"), (1.005, "equivalent"), (0.9, "faster")])
def test_other_verdicts_are_no_regressions(times: float, verdict: str) -> None:
    """What is as fast, or faster; a difference that is certain and small is none."""
    pair = only(compare(*in_turns(times=times)))
    assert (pair.verdict, pair.fails) == (verdict, False)


def test_what_cannot_be_told_says_what_could() -> None:
    """Runs one after the other are undecided where drift could have made the difference; turns are asked for."""
    pair = only(compare([trained(noise=0.1)], [trained(noise=0.1, times=1.05, at=9)]))
    assert pair.verdict == "undecided"
    assert "would not have shown; run base and new in turns, 10 times each or more" in pair.measure("step time").reason
    turns = only(compare(*in_turns(noise=0.5, times=1.02))).measure("step time")
    assert turns.outcome == "undecided"
    assert "in 10 turns; about" in turns.reason


def test_the_clock_of_the_processor_helps_where_others_take_it() -> None:
    """On a shared machine the wall clock tells nothing, the processor's says slower; on a GPU it is not asked."""
    generator = random.Random(1)
    base, new = in_turns(times=1.05)
    shared = [
        record(run, steps={"seconds": tuple(second * others for second in run.steps.seconds)})
        for run in (*base, *new)
        for others in [generator.uniform(1, 9)]
    ]
    pair = only(compare(shared[:10], shared[10:]))
    assert (pair.measure("step time").outcome, pair.measure("processor time").outcome) == ("undecided", "slower")
    assert pair.verdict == "slower"
    gpu = {"settings": {"device": "cuda"}}
    assert only(compare([record(base[0], **gpu)], [record(new[0], **gpu)])).measure("processor time") is None


def test_other_batches_are_compared_by_the_token() -> None:
    """Twice the tokens in twice the time is as fast."""
    base, new = in_turns(times=2.0, settings={"train.batch_size": 4})
    new = [record(run, steps={"real_tokens": (18,) * STEPS, "digest": ({"ids": "b"},) * STEPS}) for run in new]
    assert only(compare(base, new, across=["train.batch_size"])).verdict == "equivalent"


def test_a_single_step_is_no_sample() -> None:
    """Too few timed steps are undecided, and what to raise is said."""
    one, two = (record(HEALTHY, environment=HERE) for _ in range(2))
    measure = only(compare([one], [two])).measure("step time")
    assert (measure.outcome, measure.shift) == ("undecided", None)
    assert measure.reason == "5 timed steps, at least 8 are needed: raise train.steps"
    single = record(one, steps={"seconds": (0.1,), "loss": (0.7,)})
    said = only(compare([single], [single]))
    assert said.measure("step time").reason.startswith("0 timed steps after 3 of warm-up")
    assert said.verdict == "undecided"


def test_cases_are_judged_together() -> None:
    """What is just certain of one case alone is not among 20 that may each be wrong; the order does not matter."""
    base, new = in_turns(times=1.05)
    others = [in_turns() for _ in range(19)]
    assert only(compare(base, new)).speed == "slower"
    named = [(base, new), *others]
    sides = [[record(run, case=f"cpu-{n}") for n, pair in enumerate(named) for run in pair[side]] for side in (0, 1)]
    first = compare(*sides).pairs[0]
    assert first.speed == "undecided"
    assert first.measure("step time").reason.startswith("14 turns are needed to be certain of any of 40 figures")


def test_memory_has_a_ratio() -> None:
    """Bytes of an allocator are counted and not measured: one percent more is more; other kinds are not compared."""
    more = Memory(peak_bytes=440 * 2**20, kind="allocated")
    assert only(compare([trained()], [trained(memory=more)])).measure("peak memory").outcome == "more"
    assert only(compare([trained(memory=more)], [trained()])).measure("peak memory").outcome == "less"
    resident = more.model_copy(update={"kind": "resident in the process"})
    assert only(compare([trained()], [trained(memory=resident)])).measure("peak memory") is None
    assert only(compare([trained()], [trained(memory=Memory())])).measure("peak memory") is None


def test_reserved_memory_is_compared() -> None:
    """What was taken from the device, in blocks of many MiB: a tenth more is more; nothing is said where none was."""
    held = Memory(peak_bytes=400 * 2**20, reserved_bytes=500 * 2**20, kind="allocated on the device")
    more, alike = (held.model_copy(update={"reserved_bytes": size * 2**20}) for size in (560, 540))
    base = [trained(memory=held)]
    assert only(compare(base, [trained(memory=more)])).measure("reserved memory").outcome == "more"
    assert only(compare(base, [trained(memory=alike)])).measure("reserved memory").outcome == "equivalent"
    assert "reserved memory: 500 MiB to 560 MiB" in comparison_text(compare(base, [trained(memory=more)]))
    assert only(compare([trained()], [trained()])).measure("reserved memory") is None


# Losses


def other(change: Callable[[int, float], float]) -> Record:
    """The same training with another loss at each step."""
    return trained(steps={"loss": tuple(change(step, loss) for step, loss in enumerate(FALLING))})


NOISE = random.Random(3)


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (lambda step, loss: loss, "same"),
        (lambda step, loss: loss + 1e-6, "same"),
        (lambda step, loss: loss + NOISE.gauss(0, 0.01), "equivalent"),
        (lambda step, loss: 0.9 if step > 5 else loss, "worse"),
        (lambda step, loss: loss + 0.01 * step, "worse"),
        (lambda step, loss: loss + NOISE.gauss(0.2, 0.05), "worse"),
        (lambda step, loss: loss / 3 if step > 5 else loss, "better"),
        (lambda step, loss: loss + NOISE.gauss(0.05, 0.3), "undecided"),
        (lambda step, loss: math.nan if step == 30 else loss, "broken"),
        (lambda step, loss: math.inf if step == 30 else loss, "broken"),
    ],
    ids=["equal", "rounding", "dropout", "flat", "diverging", "higher", "lower", "wild", "NaN", "infinite"],
)
def test_trajectories(change: Callable[[int, float], float], outcome: str) -> None:
    """Equal, as good, worse, or not finite any more; the first step that differs is named."""
    said = losses(trained(), other(change))
    assert said.outcome == outcome
    if outcome not in ("same", "broken"):
        assert said.message.startswith("differs first at step ")


def test_the_first_nan_is_named() -> None:
    """Step and value, and that the base has none."""
    found = losses(trained(), other(lambda step, loss: math.nan if step == 30 else loss))
    assert found.message == "the new loss is nan at step 31, the base's is finite"
    back = losses(other(lambda step, loss: math.nan), trained())
    assert (back.outcome, back.message) == ("undecided", "the base's loss is nan at step 1")


def test_runs_without_a_timed_step_in_common_are_undecided() -> None:
    """One that is timed early, and one that is timed late."""
    early, late = (
        trained(settings={"benchmark.warmup_steps": warmup, "benchmark.timed_steps": 10}) for warmup in (0, 20)
    )
    found = duration([early], [late], "step time")
    assert (found and found.outcome, found and found.reason) == ("undecided", "no step is timed in every run")


def test_a_step_is_named_by_its_place_among_all() -> None:
    """Steps whose loss is over nothing are not compared, and count."""
    terms, drawable = ((0,), (0,), *((1,),) * (STEPS - 2)), ((3,),) * STEPS
    base = trained(steps={"loss": (math.nan, math.nan, *FALLING[2:]), "terms": terms, "drawable": drawable})
    new = record(base, steps={"loss": (*base.steps.loss[:3], 9.0, *base.steps.loss[4:])})
    assert losses(base, new).message.startswith(f"differs first at step 4: {FALLING[3]:.6g} and 9;")


def test_few_steps_do_not_tell_where_a_loss_goes() -> None:
    """A few losses that differ are undecided, and never a win."""
    one, two = (
        {"loss": losses, "seconds": (0.1,) * 5} for losses in ((0.7, 0.6, 0.5, 0.4, 0.3), (0.7, 0.6, 0.5, 0.4, 0.4))
    )
    assert losses(trained(steps=one), trained(steps=two)).outcome == "undecided"


@pytest.mark.parametrize(
    ("change", "verdict", "fails"),
    [
        (lambda step, loss: loss, "faster", False),
        (lambda step, loss: 0.9, "worse loss", True),
        (lambda step, loss: math.nan, "broken loss", True),
        (lambda step, loss: loss + NOISE.gauss(0.05, 0.3), "undecided", False),
    ],
    ids=["holds", "worse", "NaN", "unsure"],
)
def test_faster_is_a_win_only_where_the_loss_holds(
    change: Callable[[int, float], float], verdict: str, fails: bool
) -> None:
    """A run that is a tenth faster and learns less is not comparable in value."""
    loss = tuple(change(step, each) for step, each in enumerate(FALLING))
    pair = only(compare(*in_turns(times=0.9, steps={"loss": loss})))
    assert pair.speed == "faster"
    assert (pair.verdict, pair.fails) == (verdict, fails)


def test_a_run_that_crashes_now_is_broken() -> None:
    """Where the base finished; the other way round there is nothing to compare, and who was stopped is left out."""
    crashed = trained(outcome="crashed", reason="ValueError: no")
    pair = only(compare([trained()], [crashed]))
    assert (pair.verdict, pair.fails) == ("broken loss", True)
    assert pair.losses.message == "the new run did not finish: crashed: ValueError: no"
    for new in (trained(), crashed):
        found = compare([crashed], [new])
        assert (only(found).verdict, found.status) == ("not compared", 2)
        assert only(found).losses.message == "the base run did not finish: crashed: ValueError: no"
    base, new = in_turns()
    some = only(compare(base, [*new[:7], *(trained(outcome="crashed", reason="ValueError: no") for _ in range(3))]))
    assert (some.verdict, some.measures) == ("broken loss", ())
    assert some.losses.message == "3 of 10 new runs did not finish: crashed: ValueError: no"
    skipped = trained("cuda-custom", outcome="skipped", reason="no CUDA device")
    comparison = compare([trained(), skipped], [trained(), skipped])
    assert set(comparison.notes) == {"left out: experiments/a.yaml::cuda-custom: skipped: no CUDA device"}


# Across


def devices() -> list[Record]:
    """One case on three devices, each with its own driver; the slow one does not learn."""
    h100 = {"environment": {"device": "NVIDIA H100", "driver": "550.54", "runtime": "CUDA 12.8"}}
    h200 = {"environment": {"device": "NVIDIA H200", "driver": "570.86", "runtime": "CUDA 12.8"}}
    return [
        trained("cuda-custom", times=0.5, settings={"device": "cuda"}, **h100),
        trained("cuda-custom", times=0.25, settings={"device": "cuda"}, **h200),
        trained("cpu-custom", steps={"loss": (0.9,) * STEPS}),
    ]


def test_devices_stand_side_by_side() -> None:
    """A row a case, a column a device, ratios to the best, and whether losses agree."""
    table = side_by_side(devices(), ["device"])
    (row,) = table.rows
    assert table.columns == ("NVIDIA H100", "NVIDIA H200", "Abacus 9")
    assert row.case == "experiments/a.yaml::custom"
    h100, h200, cpu = row.cells
    assert h200 is not None
    assert h200.against_best is None
    for cell, ratio in ((h100, 2.0), (cpu, 4.0)):
        assert cell is not None
        assert cell.against_best is not None
        assert cell.against_best.shift is not None
        assert cell.against_best.shift.ratio == pytest.approx(ratio, rel=0.02)
        assert cell.against_best.outcome == "slower"
    assert h200.losses is not None
    assert h200.losses.outcome == "same"
    assert (row.agrees, table.fails) == ("worse", True)


def test_a_row_is_held_against_the_first_that_finished() -> None:
    """Where it crashed on the first device, the others are still alike, and compared."""
    h100, h200, cpu = devices()
    crashed = record(h100, outcome="crashed", reason="CUDA out of memory")
    (row,) = side_by_side([crashed, h200, record(cpu, steps={"loss": FALLING})], ["device"]).rows
    assert [cell and cell.losses and cell.losses.outcome for cell in row.cells] == ["broken", None, "same"]
    (row,) = side_by_side([h100, h200, record(h200, outcome="crashed", reason="no")], ["device"]).rows
    assert [cell and cell.losses and cell.losses.outcome for cell in row.cells] == [None, "broken"]
    assert row.cells[0] is not None
    assert row.cells[0].against_best is not None
    assert row.cells[0].against_best.outcome == "slower"
    newer = record(cpu, environment={"versions": {**HERE.versions, "transformers": "6.0.0"}})
    with pytest.raises(NotComparable, match=r"transformers: 5\.23\.0 and 6\.0\.0"):
        side_by_side([crashed, h200, newer], ["device"])


def test_the_rest_of_a_row_must_be_equal() -> None:
    """Devices may differ, the learning rate may not: it is named, and cases that are alone are left out."""
    h100, h200, _ = devices()
    moved = record(h200, settings={"train.learning_rate": 1e-4})
    with pytest.raises(NotComparable, match="no case is at two values of device"):
        side_by_side([h100, moved], ["device"])
    versions = record(h200, environment={"versions": {**HERE.versions, "transformers": "6.0.0"}})
    with pytest.raises(NotComparable, match=r"transformers: 5\.23\.0 and 6\.0\.0"):
        side_by_side([h100, versions], ["device"])


# Output


def comparison() -> Comparison:
    """One of each."""
    base, new = in_turns(13, times=1.05)
    worse = tuple(0.9 for _ in range(STEPS))
    fast, learns_less = (
        [record(run, case=f"cpu-{name}") for run in side]
        for name, side in zip(("fast", "fast"), in_turns(13, times=0.8, steps={"loss": worse}), strict=True)
    )
    unsure = [record(trained(noise=0.1, at=at, times=times), case="cpu-unsure") for at, times in ((0, 1.0), (1, 1.1))]
    gone = record(trained(), case="cpu-|<b>gone\x1b[31m")
    return compare([*base, *fast, unsure[0], gone], [*new, *learns_less, unsure[1]])


FOUND: dict[str, Callable[[], Comparison | Table]] = {
    "comparison": comparison,
    "across": lambda: side_by_side(devices(), ["device"]),
}
PRINTERS = {".txt": comparison_text, ".md": comparison_markdown, ".json": comparison_json}


@pytest.mark.parametrize("suffix", PRINTERS)
@pytest.mark.parametrize("name", FOUND)
def test_what_is_printed(name: str, suffix: str) -> None:
    """Text, Markdown and JSON are those of the golden files: run this file as a script to write them again."""
    printed = PRINTERS[suffix](FOUND[name]()).rstrip() + "\n"
    assert printed == (GOLDENS / f"{name}{suffix}").read_text(encoding="utf-8")


def test_a_refusal_for_programs() -> None:
    """Its JSON has each difference."""
    with pytest.raises(NotComparable) as caught:
        compare([trained()], [trained(environment={"threads": 1})])
    said = json.loads(comparison_json(caught.value))
    assert said["verdict"] == "not comparable"
    assert said["differences"] == [
        {"case": "experiments/a.yaml::cpu-custom", "field": "threads", "base": "2", "new": "1"}
    ]


# The command


@pytest.fixture
def harness(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Harness:
    """Runs `harness compare` in a folder of its own: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["compare", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def write(path: str, *records: Record, torn: str = "") -> str:
    """A record file, with a torn line at its end."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(f"{one.to_json()}\n" for one in records) + torn)
    return path


@pytest.mark.parametrize(
    ("new", "status", "said"),
    [
        (trained(at=9), 0, "1 case: 1 equivalent"),
        (trained(at=9, times=2.0), 1, "1 case: 1 slower"),
        (trained(at=9, steps={"loss": (math.nan,) * STEPS}), 1, "the new loss is nan at step 1"),
        (trained(at=9, times=0.5), 0, "1 case: 1 faster"),
    ],
    ids=["equivalent", "slower", "NaN", "faster"],
)
def test_the_exit_status(harness: Harness, new: Record, status: int, said: str) -> None:
    """1 for what is slower or learns worse, 0 for anything else; who is which side is said."""
    found, printed, error = harness(
        write("base.jsonl", trained(noise=0.001)), write("new.jsonl", new), "--margin", "0.2"
    )
    assert (found, error) == (status, "")
    assert said in printed
    assert "base is base.jsonl, new is new.jsonl" in printed


def test_refusals_have_status_2(harness: Harness) -> None:
    """Unlike runs, an unknown axis, and one side alone."""
    base, new = write("base.jsonl", trained()), write("new.jsonl", trained(environment={"threads": 1}))
    status, out, error = harness(base, new)
    assert (status, out) == (2, "")
    assert error.startswith("NOT COMPARABLE\n  threads: 2 and 1")
    assert harness(base, new, "--format", "json")[1].startswith("{")
    assert harness(base, new, "--across", "threads")[0] == 0
    status, _, error = harness(base, new, "--across", "thread")
    assert (status, error.count("did you mean 'threads'?")) == (2, 1)
    crashed, other = trained(outcome="crashed", reason="ValueError: no"), trained("cpu-trainer")
    partly = harness(write("partly.jsonl", crashed, other), write("both.jsonl", trained(), other))
    assert (partly[0], partly[2]) == (2, "")
    assert "2 cases: 1 not compared, 1 equivalent" in partly[1]
    assert "the base run did not finish: crashed: ValueError: no" in partly[1]
    assert harness(base)[0] == 2
    assert harness(base, base, base)[2].startswith("found 3 of BASE and NEW, expected both")


def test_torn_and_newer_lines_are_named_and_the_others_used(harness: Harness) -> None:
    """A file whose writer was killed still compares; what was not used is said with its line."""
    newer = json.dumps({"format": 99}) + "\n"
    base = write("base.jsonl", trained(), torn=newer + trained().to_json()[:500])
    status, out, _ = harness(base, write("new.jsonl", trained(at=5)))
    assert status == 0
    assert "base.jsonl:2: record of format 99, this harness reads up to 1; upgrade pytest-finetune\n" in out
    assert "base.jsonl:3: torn line, expected a record\n" in out


def test_what_is_not_there_is_said(harness: Harness) -> None:
    """Missing files, empty folders and files without a whole record: status 2, no traceback."""
    base = write("base.jsonl", trained())
    Path("empty").mkdir()
    for address, said in (
        ("none.jsonl", "none.jsonl: cannot be read: No such file or directory\nnone.jsonl: no records to compare"),
        ("empty", "empty: found no records, expected *.jsonl or records/*.jsonl"),
        (write("torn.jsonl", torn="{"), "torn.jsonl:1: torn line, expected a record"),
        ("nowhere://bucket/x", "nowhere://bucket/x: cannot be read: ValueError: Protocol not known: nowhere"),
    ):
        status, out, error = harness(base, address)
        assert (status, out) == (2, "")
        assert error.startswith(said)


def test_folders_and_urls(harness: Harness) -> None:
    """The newest run of a report folder; all files of a folder of them; either behind any URL that fsspec knows."""
    write("reports/records/20250101T000000Z-0000.jsonl", trained(times=9.0))
    write("reports/records/20260101T000000Z-0000.jsonl", trained(noise=0.001))
    base, new = in_turns(times=1.05)
    for place, (one, two) in enumerate(zip(base, new, strict=True)):
        write(f"base/{place}.jsonl", one)
        write(f"new/{place}.jsonl", two)
    assert harness("reports", write("new.jsonl", trained(noise=0.001, at=1)))[0] == 0
    assert harness("base", "new")[0] == 1
    memory = fsspec.filesystem("memory")
    memory.put("base", "/compared/base", recursive=True)
    memory.put("reports", "/compared/reports", recursive=True)
    assert harness("memory://compared/base", "new")[0] == 1
    assert harness("memory://compared/reports", "new.jsonl")[0] == 0
    assert harness("memory://compared/base/0.jsonl", "memory://compared/reports")[0] == 0
    status, _, error = harness("memory://compared/none", "new")
    assert (status, "memory://" in error) == (2, True)


def test_a_folder_with_a_case_twice_has_two_runs_of_it(harness: Harness) -> None:
    """Several records of a case are samples, not a mistake."""
    write("base.jsonl", trained(), trained(at=2))
    write("new.jsonl", trained(at=1), trained(at=3))
    out = harness("base.jsonl", "new.jsonl", "--format", "json")[1]
    assert json.loads(out)["cases"][0]["runs"] == [2, 2]


def test_one_folder_across_an_axis(harness: Harness) -> None:
    """A table of what one run left, in the file that is asked for."""
    write("run.jsonl", trained(), trained("cpu-trainer"))
    status, out, _ = harness("run.jsonl", "--across", "loop", "--format", "markdown", "--output", "out.md")
    assert (status, out) == (0, "")
    assert "| case                    | custom" in Path("out.md").read_text()


@pytest.mark.parametrize("margin", ["0", "1", "2", "-0.1", "nan", "much"])
def test_a_margin_is_a_share(harness: Harness, margin: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else is bad usage."""
    with pytest.raises(SystemExit) as caught:
        harness("a", "b", f"--margin={margin}")
    assert caught.value.code == 2
    assert f"found {margin}, expected a number between 0 and 1" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_said_at_once(harness: Harness, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is compared; and a refusal in JSON goes where the comparison would."""
    for place in ("nowhere/out.json", "."):
        with pytest.raises(SystemExit) as caught:
            harness("a", "b", "--output", place)
        assert caught.value.code == 2
        assert (
            f"found {place}, expected a file that can be written, in a folder that is there" in capsys.readouterr().err
        )
    base, new = write("base.jsonl", trained()), write("new.jsonl", trained(environment={"threads": 1}))
    assert harness(base, new, "--format", "json", "--output", "out.json")[:2] == (2, "")
    assert json.loads(Path("out.json").read_text())["verdict"] == "not comparable"


def test_what_cannot_be_written_in_the_end_is_printed(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of comparing is not lost to a full disk."""

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "out.txt")

    base = write("base.jsonl", trained())
    monkeypatch.setattr(Path, "write_text", full)
    status, out, error = harness(base, base, "--output", "out.txt")
    assert (status, error) == (2, "out.txt: No space left on device\n")
    assert "1 case: " in out


def test_cases_of_one_name_are_told_apart(harness: Harness) -> None:
    """By the hardware, where records are of several machines."""
    laptop = {"device": "Laptop", "processor": "Laptop"}
    base = write("base.jsonl", trained(), trained(environment=laptop))
    out = harness(base, write("new.jsonl", trained(at=1), trained(at=1, environment=laptop)))[1]
    assert "experiments/a.yaml::cpu-custom (Abacus 9) " in out
    assert "experiments/a.yaml::cpu-custom (Laptop) " in out


@pytest.mark.parametrize(
    "junk", [b"\x00\xff\n" * 1000, b"\xef\xbb\xbf\n", b"PK\x03\x04 not a record", b"null\n1e999\n", b""]
)
def test_a_file_of_something_else_is_named(harness: Harness, junk: bytes) -> None:
    """In a few lines, whatever it holds; a line cut in the middle of a character is one of them."""
    Path("junk.bin").write_bytes(junk)
    status, out, error = harness(write("base.jsonl", trained()), "junk.bin")
    assert (status, out) == (2, "")
    assert error.endswith("junk.bin: no records to compare\n")
    assert len(error.splitlines()) < 25


if __name__ == "__main__":
    for name, found in FOUND.items():
        for suffix, printer in PRINTERS.items():
            (GOLDENS / f"{name}{suffix}").write_text(printer(found()).rstrip() + "\n", encoding="utf-8")


# What is counted, and what is neither counted nor clocked step by step


COUNTERS = Counters(operators=812, moved_bytes=10**9, saved_bytes=2**20, host_waits=1)


def test_a_count_that_has_changed_is_told_exactly() -> None:
    """Both numbers, to the last one, whatever the times say; what is the same is not in the way."""
    more = COUNTERS.model_copy(update={"operators": 813, "host_waits": 3})
    base, new = in_turns(1, counters=more)
    base = [record(one, counters=COUNTERS) for one in base]
    found = compare(base, new)
    pair = only(found)

    assert [(one.name, one.base, one.new, one.outcome) for one in pair.measures if one.exact] == [
        ("operators", 812, 813, "more"),
        ("bytes moved", 10**9, 10**9, "equivalent"),
        ("bytes saved for backward", 2**20, 2**20, "equivalent"),
        ("host waits", 1, 3, "more"),
        ("graph breaks", 0, 0, "equivalent"),
    ]
    text = comparison_text(found)
    assert "  operators: 812 to 813, +0.1% more\n" in text
    assert "  host waits: 1 to 3, 3x more\n" in text
    assert "bytes moved" not in text
    assert json.loads(comparison_json(found))["cases"][0]["measures"][3]["name"] == "operators"


def test_counts_that_differ_between_runs_of_one_side_decide_nothing() -> None:
    """They are no counts of the same thing."""
    base, new = in_turns(2, counters=COUNTERS)
    counts = COUNTERS, COUNTERS.model_copy(update={"operators": 700})
    base = [record(one, counters=counted) for one, counted in zip(base, counts, strict=True)]
    measure = only(compare(base, new)).measure("operators")

    assert (measure.outcome, measure.reason) == ("undecided", "it is another number in each run, 700 to 812")


def test_a_count_that_one_side_lacks_is_not_compared() -> None:
    """As records of an earlier version lack all."""
    base, new = in_turns(1, counters=COUNTERS)
    assert only(compare([record(base[0], counters=Counters())], new)).measure("operators") is None


@pytest.mark.parametrize(
    ("one", "two", "outcome"),
    [
        ((10.0, 11.0), (13.0, 12.5), "more"),
        ((10.0, 11.0), (8.0, 9.0), "less"),
        ((10.0, 10.5), (10.2, 10.9), "equivalent"),
        ((10.0, 14.0), (11.0, 13.0), "undecided"),
        ((0.0,), (0.0,), None),
    ],
)
def test_compile_time_counts_where_no_runs_overlap(one: Sequence[float], two: Sequence[float], outcome: str) -> None:
    """Every run of one side beyond every run of the other by a tenth; nothing where nothing was compiled."""
    sides = [
        [trained(at=2 * run + side, steps={"compile_seconds": (each, *(0.0,) * (STEPS - 1))})]
        for side, times in enumerate((one, two))
        for run, each in enumerate(times)
    ]
    runs = [run for side in sides for run in side]
    measure = only(compare(runs[: len(one)], runs[len(one) :])).measure("compile time")

    assert (measure.outcome if measure else None) == outcome
    assert not any(pair.fails for pair in compare(runs[: len(one)], runs[len(one) :]).pairs)


def test_graph_breaks_are_compared() -> None:
    """As they were counted while the model was compiled."""
    whole = Compilation(backend="inductor", graphs=1)
    broken = Compilation(backend="inductor", graphs=3, breaks={"call to item()": 2})
    found = compare([trained(compilation=whole)], [trained(at=1, compilation=broken)])

    assert only(found).measure("graph breaks").new == 2
    assert "  graph breaks: 0 to 2, more\n" in comparison_text(found)


def test_mfu_is_compared() -> None:
    """Of the same operations in twice the time it is half."""
    shapes = {"shapes": (((2, 6),),) * STEPS}
    efficiency = Efficiency(flops=(Flops(shape=(2, 6), forward=10**9, backward=2 * 10**9),), ceiling=1e11)
    base, new = (trained(times=times, at=times, steps=shapes, efficiency=efficiency) for times in (1.0, 2.0))
    measure = only(compare([base], [new])).measure("MFU")

    assert measure.outcome == "less"
    assert measure.base == pytest.approx(0.3, rel=0.02)
    assert measure.new == pytest.approx(0.15, rel=0.02)
