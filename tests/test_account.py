"""The account of a step's figures: each mistake of measuring makes the figure invalid, with its reason."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import HEALTHY, record

from harness.account import CLOSES, OVERLOADED, WARM, bound, mistakes, phases
from harness.record import Counters, Efficiency, Flops, Record
from harness.throughput import NotMeasured, Throughput, throughput

STEPS = 8

timing = pytest.importorskip("harness.training.timing")


# A machine whose time is ours


@dataclass
class Machine:
    """A host and a device that works behind its back, on one time line."""

    now: float = 50.0
    done: float = 0.0
    """When the device has done all that it was given."""

    def work(self, seconds: float) -> None:
        """The host computes."""
        self.now += seconds

    def queue(self, seconds: float) -> None:
        """The device is given something to compute; the host goes on."""
        self.done = max(self.done, self.now) + seconds

    def wait(self) -> None:
        self.now = max(self.now, self.done)

    # Marks, as a device has them

    def make(self) -> float:
        return max(self.now, self.done)

    def between(self, first: float, last: float) -> float:
        return last - first


def nothing() -> None:
    """What a loop does outside of its steps."""


def measured(machine: Machine, *, early: bool = False, warm_up: float = 0.0, **clocked: Any) -> Record:
    """What the step clock says of steps: 2 s for the batch on the host, then 1 and 3 s on the device, 2 s of evidence.

    Args:
        machine: where they run.
        early: the batch is fetched before the step begins.
        warm_up: what the first step takes longer.
        clocked: what is wrong with the clock.
    """
    right = {"wait": machine.wait, "now": lambda: machine.now, "second": lambda: machine.now, "marks": machine}
    clock = timing.StepClock(**{**right, **clocked})
    laps, watching, starting = [], [], []
    for step in range(STEPS):
        machine.work(2.0 if early else 0.0)
        clock.start()
        starting.append(clock.starting_seconds)
        with clock.inside("data"):
            machine.work(0.0 if early else 2.0)
        clock.enter("forward")
        machine.queue(1.0 + (0.0 if step else warm_up))
        clock.enter("backward")
        machine.queue(3.0)
        clock.enter("optimizer")
        laps.append(clock.stop())
        machine.work(2.0)
        watching.append(clock.now() - laps[-1].stopped)
    return _record(laps, [sum(pair) for pair in zip(watching, [*starting[1:], 0.0], strict=True)])


def _record(laps: list[Any], between: list[float]) -> Record:
    columns = {name: tuple(getattr(lap, name) for lap in laps) for name in ("seconds", "began", "ended")}
    columns |= {f"{phase}_seconds": tuple(lap.phases[phase] for lap in laps) for phase in timing.PHASES}
    return record(
        steps={**columns, "watching_seconds": tuple(between), "processor_seconds": ()},
        settings={"benchmark.warmup_steps": 0, "device": "cuda", "train.packing": False},
    )


def healthy(**changes: Any) -> Record:
    """Steps that are measured right, but for this."""
    return measured(Machine(), **changes)


def reason(one: Record) -> str:
    """Why there is no figure."""
    speed = throughput(one)
    assert isinstance(speed, NotMeasured), speed
    return speed.reason


def test_an_account_that_closes() -> None:
    """Steps of 6 seconds with evidence between them: the rate is of the steps, and the phases are theirs."""
    speed = throughput(healthy())

    assert isinstance(speed, Throughput)
    assert speed.seconds == (6.0,) * STEPS
    assert speed.samples_per_second.median == 2 / 6
    assert speed.phases == {
        "data": 2 / 6, "transfer": 0.0, "forward": 1 / 6, "backward": 3 / 6, "optimizer": 0.0, "other": 0.0
    }  # fmt: skip


# Mistakes of measuring, each seeded


def test_a_wait_left_out_is_seen() -> None:
    """The clock reads how fast work is queued; the device says how long it took."""
    assert "the device was not waited for" in reason(healthy(wait=nothing))


def test_a_step_of_warm_up_is_seen() -> None:
    """A first step that takes more than twice as long as any other does not count among the timed."""
    assert "it is one of warm-up" in reason(healthy(warm_up=7.0))
    assert isinstance(throughput(healthy(warm_up=5.0)), Throughput)


def test_a_long_first_batch_is_no_warm_up() -> None:
    """A step that takes three times as long for three times the tokens is like others; for as many it is not."""
    long = healthy(warm_up=7.0)
    others = (12,) * (STEPS - 1)
    assert isinstance(throughput(record(long, steps={"padded_tokens": (26, *others)})), Throughput)
    assert "it is one of warm-up" in reason(record(long, steps={"padded_tokens": (12, *others)}))
    assert "it is one of warm-up" in reason(record(long, steps={"padded_tokens": (0,) * STEPS}))


def test_a_batch_that_is_counted_twice_is_seen() -> None:
    """Only what reached the model counts."""
    twice = record(healthy(), steps={"samples": (2, 2, 2, 4, *(2,) * (STEPS - 4))})

    assert reason(twice) == "step 3 counts 4 samples, and 2 reached the model"


def test_another_clock_is_seen() -> None:
    """One that stands while the device works, as that of the processor does, or counts other units."""
    machine = Machine()

    assert "two clocks disagree" in reason(measured(machine, now=lambda: machine.now * 1000))
    machine = Machine()
    assert "two clocks disagree" in reason(measured(machine, now=lambda: machine.now * 0.9))


def test_data_time_left_out_is_seen() -> None:
    """A batch that is fetched before the step begins is in no step, and the wall clock misses it."""
    found = reason(healthy(early=True))

    assert found == "0.5 samples/s are shown, and samples over wall time are 0.3333: time is in no step"


def test_a_machine_that_others_use_is_seen() -> None:
    """Where the loop waits most of the time for a processor, the figure is that of the others."""
    one = healthy()

    def queued(share: float) -> Record:
        return record(one, steps={"queued_seconds": tuple(share * seconds for seconds in one.steps.seconds)})

    assert "overloaded: in 80% of the time" in reason(queued(0.8))
    speed = throughput(queued(OVERLOADED))
    assert isinstance(speed, Throughput)
    assert speed.queued == OVERLOADED


def test_more_than_the_device_can_do_is_seen() -> None:
    """A share of the ceiling above 100 % is a mistake of counting; steps of shapes not counted are left out."""
    counted = Efficiency(flops=(Flops(shape=(2, 6), forward=20, backward=40),), ceiling=20.0, dtype="float32")
    columns = {"shapes": (((2, 6),),) * (STEPS - 1) + (((2, 9),),)}

    speed = throughput(record(healthy(), steps=columns, efficiency=counted))
    assert isinstance(speed, Throughput)
    assert speed.utilisation == 60 / 6 / 20  # operations, seconds, ceiling
    slow = counted.model_copy(update={"ceiling": 9.9})
    assert "101% of what the device was measured to be able to" in reason(
        record(healthy(), steps=columns, efficiency=slow)
    )


def test_packed_steps_do_what_their_real_tokens_need() -> None:
    """Padding is not computed: a step with twice the real tokens of the batch that was counted does twice as much."""
    counted = Efficiency(flops=(Flops(shape=(2, 6), forward=20, backward=40, real_tokens=5),), ceiling=20.0)
    columns = {"shapes": (((2, 6),),) * STEPS, "real_tokens": (10,) * STEPS}
    found = [
        throughput(record(healthy(), steps=columns, efficiency=counted, settings={"train.packing": packs}))
        for packs in (False, True)
    ]
    assert all(isinstance(speed, Throughput) for speed in found)
    assert [speed.utilisation for speed in found] == [60 / 6 / 20, 120 / 6 / 20]


def rooflined(**changes: Any) -> Record:
    """Steps of 6 s and 12 computed tokens, of which the counted one has 24: put to these they take 12 s."""
    tokens = (12, 24, *(12,) * (STEPS - 2))
    counted = Counters(step=1, flops=60, moved_bytes=24, operators=1)
    could = Efficiency(ceiling=10.0, bandwidth=4.0, dtype="float32")
    one = record(healthy(), steps={"padded_tokens": tokens}, counters=counted, efficiency=could)
    return record(one, **changes)


def roofs(one: Record) -> dict[str, float]:
    """What throughput says of them."""
    speed = throughput(one)
    assert isinstance(speed, Throughput)
    return speed.roofline


def test_what_a_step_would_need_alone() -> None:
    """6 s of arithmetic and 6 of memory in a step of 12: of its size, without the time that others had."""
    assert roofs(rooflined()) == {"arithmetic": 0.5, "memory": 0.5}
    queued = {"padded_tokens": rooflined().steps.padded_tokens, "queued_seconds": (3.0,) * STEPS}
    assert roofs(rooflined(steps=queued)) == {"arithmetic": 1.0, "memory": 1.0}


def test_packed_steps_need_alone_what_their_real_tokens_do() -> None:
    """Here as many as those of the counted step, whose padding is nobody's work."""
    packed = rooflined(steps={"real_tokens": (6,) * STEPS}, settings={"train.packing": True})
    assert roofs(packed) == {"arithmetic": 1.0, "memory": 1.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"counters": Counters()},
        {"counters": Counters(step=STEPS, flops=60, moved_bytes=24)},
        {"efficiency": Efficiency()},
        {"steps": {"padded_tokens": (0,) * STEPS}},
    ],
    ids=["not counted", "no such step", "no ceilings", "no tokens"],
)
def test_no_roofline_where_one_side_is_not_known(changes: dict[str, Any]) -> None:
    """And the figure stands all the same."""
    assert roofs(rooflined(**changes)) == {}


@pytest.mark.parametrize(
    ("arithmetic", "memory", "said"),
    [
        (0.7, 0.6, "arithmetic"), (0.2, 0.3, "memory"), (0.9, 1.2, "memory or caches"), (0.19, 0.3, "overhead"),
    ],
)  # fmt: skip
def test_what_binds_a_step(arithmetic: float, memory: float, said: str) -> None:
    """The longer of the two, if both are half of the step; more than memory can comes from caches, in part."""
    assert bound({"arithmetic": arithmetic, "memory": memory}) == said
    assert bound({"memory": memory}) == ""


@pytest.mark.parametrize("column", ["began", "ended", "rows", "watching_seconds", "samples"])
def test_what_is_missing_does_not_close(column: str) -> None:
    """An account without one of its sides is none."""
    assert isinstance(throughput(record(healthy(), steps={column: ()})), NotMeasured)


@pytest.mark.parametrize("column", ["seconds", "began", "ended", "forward_seconds", "watching_seconds"])
def test_what_is_no_number_does_not_close(column: str) -> None:
    """NaN agrees with nothing."""
    one = healthy()

    wrong = one.model_copy(update={"steps": one.steps.model_copy(update={column: (float("nan"),) * STEPS})})

    assert isinstance(throughput(wrong), NotMeasured)


@given(st.lists(st.floats(1e-3, 10), min_size=STEPS, max_size=STEPS), st.data())
def test_noise_is_no_mistake(seconds: list[float], data: st.DataObject) -> None:
    """However long steps take, and whatever happens between two readings in some of them, the account closes."""
    first = min(seconds[0], WARM * max(seconds[1:]))
    one = record(steps={"seconds": (first, *seconds[1:]), "processor_seconds": ()}, settings=TIMED)
    late = list(one.steps.ended)
    for place in data.draw(st.lists(st.integers(0, STEPS - 1), max_size=STEPS // 2 - 1, unique=True)):
        late[place] += 0.5
    noisy = one.model_copy(update={"steps": one.steps.model_copy(update={"ended": tuple(late)})})

    assert list(mistakes(one, range(STEPS))) == []
    assert not [each for each in mistakes(noisy, range(STEPS)) if "clocks" in each]


TIMED = {"benchmark.warmup_steps": 0}


@given(st.floats(CLOSES * 1.5, 0.9), st.sampled_from([-1, 1]))
def test_what_is_wrong_in_every_step_is_seen(share: float, sign: int) -> None:
    """A clock that runs faster or slower than the other by more than the share that is allowed."""
    ended = tuple(start + seconds * (1 + sign * share) for start, seconds in zip(BEGAN, SECONDS, strict=True))

    found = list(mistakes(record(steps={"seconds": SECONDS, "ended": ended}), range(STEPS)))

    assert any("two clocks disagree" in each for each in found)


SECONDS = (1.0,) * STEPS
BEGAN = record(steps={"seconds": SECONDS}).steps.began


# Phases


def test_what_follows_a_backward_pass_belongs_to_the_optimizer_if_it_steps() -> None:
    """Between two micro-batches of a step it is nobody's; before the optimizer's step it is clipping."""
    machine = Machine()
    clock = timing.StepClock(nothing, lambda: machine.now, marks=machine)
    clock.enter("forward")  # outside of a step: nothing
    clock.start()
    for _ in range(2):
        with clock.inside("transfer"):
            machine.work(1)
        clock.enter("forward")
        machine.work(2)
        clock.enter("backward")
        machine.work(4)
        clock.enter("optimizer")
        machine.work(8)
    machine.work(16)  # the optimizer's step
    clock.enter("other")
    machine.work(32)

    assert clock.stop().phases == {
        "data": 0, "transfer": 2, "forward": 4, "backward": 8, "optimizer": 24, "other": 40
    }  # fmt: skip


def test_a_phase_that_interrupts_another_gives_back_to_it() -> None:
    """Accelerate moves a batch to the device while the loop waits for it."""
    machine = Machine()
    clock = timing.StepClock(nothing, lambda: machine.now, marks=machine)
    clock.start()
    with clock.inside("data"):
        machine.work(1)
        with clock.inside("transfer"):
            machine.work(2)
        machine.work(4)
    machine.work(8)

    found = clock.stop().phases

    assert (found["data"], found["transfer"], found["other"]) == (5, 2, 8)


def test_phases_of_an_old_record() -> None:
    """Where no phase was measured there is none."""
    assert phases(HEALTHY.steps.model_copy(update={f"{name}_seconds": () for name in timing.PHASES}), 0) == {}
