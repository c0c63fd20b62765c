"""Laws on any batch, any loss curve and any missing evidence."""

import json
import math
from itertools import pairwise
from typing import Any, NoReturn

from hypothesis import assume, given
from hypothesis import strategies as st
from records import ADAPTED, HEALTHY, RESUMED, batch, case, parameter, record, trained

from harness.laws import LAWS, Verdict, judge, judge_together
from harness.record import Batch, Example, Record, Steps

# Machines are shared: how long an example takes says nothing.
NOT_FINITE = (math.nan, math.inf, -math.inf)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)

Tensors = dict[str, list[list[int]]]


def outcome(law: str, *records: Record) -> str:
    """What a law says of a record, or of several."""
    laws = [one for one in LAWS if one.name == law]
    (verdict,) = (*judge(records[0], laws), *judge_together(records, laws))
    return verdict.outcome


def both(evidence: Record) -> tuple[str, str]:
    """What the two laws of a batch say."""
    return outcome("padding_mask_correct", evidence), outcome("tokens_match_tokenizer", evidence)


# Batches


@st.composite
def batches(draw: st.DrawFn) -> Record:
    """A record with one batch, made as it should be: the pad token may be a word, or the tokenizer may have none."""
    # Few different ids, so that texts are often alike in part and the pad id often occurs in them.
    texts = draw(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=8), min_size=1, max_size=6))
    examples = [
        Example(index=index, text="text", input_ids=tuple(ids), label=index % 2) for index, ids in enumerate(texts)
    ]
    drawn = draw(st.permutations(examples))
    side, pad = draw(st.sampled_from(["left", "right"])), draw(st.integers(0, 5))
    made = batch(*drawn, side=side, pad=pad, length=draw(st.integers(0, 12)), step=draw(st.integers(0, 100)))
    tokenizer = {"padding_side": side, "pad_token_id": pad}
    return record(batches=(made,), examples=tuple(examples), tokenizer=tokenizer)


def spoiled(evidence: Record, spoil: Any) -> Record:
    """The record with copies of its batch's tensors changed in place."""
    (made,) = evidence.batches
    tensors: Tensors = {name: [list(row) for row in made.tensors[name]] for name in ("input_ids", "attention_mask")}
    spoil(tensors)
    return record(evidence, batches=(made.model_copy(update={"tensors": {**made.tensors, **tensors}}),))


def texts(evidence: Record) -> list[tuple[int, ...]]:
    """What each row of the batch should hold."""
    by_index = {example.index: example.input_ids for example in evidence.examples}
    return [by_index[index] for index in evidence.batches[0].examples]


@given(batches())
def test_right_batch_is_accepted(evidence: Record) -> None:
    """A batch padded as the tokenizer pads keeps both laws, whatever the ids and lengths."""
    assert both(evidence) == ("held", "held")


@given(batches(), st.data())
def test_any_flipped_bit_of_the_mask_is_rejected(evidence: Record, data: st.DataObject) -> None:
    """One bit of the mask, anywhere, breaks the law of the mask, and that law alone."""
    mask = evidence.batches[0].tensors["attention_mask"]
    row = data.draw(st.integers(0, len(mask) - 1), label="row")
    place = data.draw(st.integers(0, len(mask[0]) - 1), label="place")

    def flip(tensors: Tensors) -> None:
        tensors["attention_mask"][row][place] = 1 - mask[row][place]

    assert both(spoiled(evidence, flip)) == ("broken", "held")


@given(batches(), st.data())
def test_any_changed_token_is_rejected(evidence: Record, data: st.DataObject) -> None:
    """One token of a text that is another one breaks the law of tokens, and that law alone."""
    made = evidence.batches[0]
    row = data.draw(st.integers(0, len(made.examples) - 1), label="row")
    place = data.draw(st.sampled_from([p for p, bit in enumerate(made.tensors["attention_mask"][row]) if bit]))

    def change(tensors: Tensors) -> None:
        tensors["input_ids"][row][place] += data.draw(st.integers(1, 9), label="by")

    mask, tokens = both(spoiled(evidence, change))
    assert tokens == "broken"
    assert mask != "broken"


@given(batches(), st.data())
def test_any_changed_padding_is_rejected(evidence: Record, data: st.DataObject) -> None:
    """One padded position with another id breaks the law of the mask, and that law alone."""
    mask = evidence.batches[0].tensors["attention_mask"]
    padded = [(row, place) for row, bits in enumerate(mask) for place, bit in enumerate(bits) if not bit]
    assume(padded)
    row, place = data.draw(st.sampled_from(padded), label="row, place")

    def change(tensors: Tensors) -> None:
        tensors["input_ids"][row][place] += data.draw(st.integers(1, 9), label="by")

    assert both(spoiled(evidence, change)) == ("broken", "held")


@given(batches(), st.data())
def test_swapped_rows_are_rejected(evidence: Record, data: st.DataObject) -> None:
    """Two rows of different texts in each other's place break the law of tokens.

    Or that of the mask, where the texts differ by nothing but a word that is the pad token.
    """
    expected = texts(evidence)
    one = data.draw(st.integers(0, len(expected) - 1), label="one")
    other = data.draw(st.integers(0, len(expected) - 1), label="other")
    assume(expected[one] != expected[other])

    def swap(tensors: Tensors) -> None:
        for rows in tensors.values():
            rows[one], rows[other] = rows[other], rows[one]

    mask, tokens = both(spoiled(evidence, swap))
    assert evidence.tokenizer is not None
    if evidence.tokenizer.pad_token_id in (*expected[one], *expected[other]):
        assert "broken" in (mask, tokens)
    else:
        assert tokens == "broken"
        assert mask != "broken"


@given(batches(), st.data())
def test_lost_column_is_rejected(evidence: Record, data: st.DataObject) -> None:
    """A batch cut shorter than its longest text breaks the law of tokens, and that law alone."""
    made = evidence.batches[0]
    width, longest = len(made.tensors["input_ids"][0]), max(map(len, texts(evidence)))
    keep = data.draw(st.integers(0, longest - 1), label="columns kept")
    assert evidence.tokenizer is not None
    cut = slice(width - keep, width) if evidence.tokenizer.padding_side == "left" else slice(0, keep)

    def truncate(tensors: Tensors) -> None:
        for name, rows in tensors.items():
            tensors[name] = [row[cut] for row in rows]

    mask, tokens = both(spoiled(evidence, truncate))
    assert tokens == "broken"
    assert mask != "broken"


# Losses


@given(st.lists(st.floats(0.001, 1000), min_size=4, max_size=60), st.floats(0.01, 0.99), st.data())
def test_loss_decreases_by_its_windows(losses: list[float], by: float, data: st.DataObject) -> None:
    """The law holds where the mean of the last window is below that of the first by the share, and only there; where
    what the losses scatter cannot hide such a fall, or they never stop rising, it is broken."""
    window = data.draw(st.integers(1, len(losses) // 2), label="window")
    first, last = sum(losses[:window]) / window, sum(losses[-window:]) / window
    assume(not math.isclose(last, (1 - by) * first, rel_tol=1e-9))  # the last bit of a mean is nobody's law
    said = {"settings": {"train.learning_rate": 10.0}}  # which can lower it by any amount
    options = {"window": window, "by": by}
    found = outcome("loss_decreases", trained(losses, invariants={"loss_decreases": options}, **said))
    assert (found == "held") is (last < (1 - by) * first)
    squares = [(after - before) ** 2 for before, after in pairwise(losses)]
    error = math.sqrt(sum(squares) / len(squares) / window)
    clear = last - (1 - by) * first > 3.001 * error or all(before < after for before, after in pairwise(losses))
    assert found == "broken" or not clear or last < (1 - by) * first or len(losses) < 12


@given(st.lists(NUMBERS, max_size=30))
def test_loss_that_does_not_fall_never_decreases(losses: list[float]) -> None:
    """A curve and its mirror image in time are not both falling."""
    assert [outcome("loss_decreases", trained(one)) for one in (losses, losses[::-1])].count("held") <= 1


@given(st.lists(NUMBERS, min_size=1, max_size=30), st.sampled_from(NOT_FINITE), st.data())
def test_number_that_is_not_finite_is_never_accepted(losses: list[float], bad: float, data: st.DataObject) -> None:
    """NaN or an infinity anywhere breaks loss_finite, which names the first; no other law takes the curve for good."""
    places = data.draw(st.sets(st.integers(0, len(losses) - 1), min_size=1), label="places")
    for place in places:
        losses[place] = bad
    evidence = trained(losses)
    (found,) = judge(evidence, [one for one in LAWS if one.name == "loss_finite"])
    assert found.outcome == "broken"
    assert f"loss is {bad} at step {min(places) + 1} of {len(losses)}" in found.message
    for law in ("loss_decreases", "head_changes", "backbone_changes"):
        assert outcome(law, evidence) != "held"
    bad_case, good_case = case("cpu-custom", evidence), case("cpu-trainer", trained([0.5] * len(losses)))
    for others in ((bad_case, good_case), (bad_case, case("cpu-trainer", evidence))):
        assert outcome("loops_agree", *others) != "held"


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.data())
def test_loops_with_one_loss_apart_do_not_agree(losses: list[float], data: st.DataObject) -> None:
    """Equal curves agree; a difference beyond what is allowed, at any step, is found at that step."""
    step = data.draw(st.integers(0, len(losses) - 1), label="step")
    size = data.draw(st.floats(1e-4, 1e4), label="size") * max(1.0, abs(losses[step]))
    other = [*losses]
    other[step] += size
    assume(math.isfinite(other[step]))
    custom = case("cpu-custom", trained(losses))
    assert outcome("loops_agree", custom, case("cpu-trainer", trained(losses))) == "held"
    (found,) = (
        one for one in judge_together([custom, case("cpu-trainer", trained(other))]) if one.law == "loops_agree"
    )
    assert found.outcome == "broken"
    assert f"loss differs first at step {step + 1}:" in found.message


# Missing evidence

PARTS = {
    "checkpoint": None,
    "tokenizer": None,
    "data": None,
    "examples": (),
    "batches": (),
    "steps": Steps(),
    "parameters": (),
    "optimizer": None,
    "modes": None,
    "evaluation": None,
    "probes": {},
}
OF_TOKENS = (
    "labels_masked_right",
    "labels_survive_truncation",
    "decoder_inputs_shifted",
    "masking_is_random",
    "future_unseen",
)
"""Laws that have nothing to say of labels of whole texts."""
OF_CHOICES = (
    "accumulation_equivalent",
    "clipping_bounds",
    "scaler_used_right",
    "updates_not_lost",
    "frozen_stay",
)
"""Laws that have nothing to say of a plain training; tests/test_laws_step.py asks them without their evidence."""
OF_ADAPTERS = ("adapters_as_declared", "adapters_start_at_zero", "adapters_change")
"""Laws that have nothing to say of a training of all weights."""
NEEDS = {
    "loss_finite": {"steps"},
    "loss_decreases": {"steps"},
    "padding_mask_correct": {"tokenizer", "examples", "batches"},
    "tokens_match_tokenizer": {"tokenizer", "examples", "batches"},
    "labels_in_range": {"data"},
    "no_conflicting_duplicates": {"data"},
    "tokens_are_known": {"data"},
    "texts_are_whole": {"data"},
    "head_is_new": {"checkpoint"},
    "head_changes": {"steps", "parameters"},
    "backbone_changes": {"steps", "parameters"},
    "loops_agree": {"checkpoint", "steps"},
    "devices_agree": {"checkpoint", "steps", "probes"},
    "trains": {"steps"},
    "labels_travel": {"examples", "batches"},
    **{law: {"examples", "batches"} for law in OF_TOKENS},
    "resume_equivalent": {"probes", "steps"},
    "adapters_as_declared": {"probes"},
    "adapters_start_at_zero": {"parameters"},
    "adapters_change": {"steps", "parameters"},
    "every_example_once": {"steps"},
    "optimizer_covers_trainable": {"optimizer", "parameters"},
    **{law: {"steps", "probes"} for law in OF_CHOICES},
    "schedule_followed": {"steps"},
    "dropout_on_in_training": {"modes"},
    "no_graph_kept": {"steps"},
    "metric_improves": {"evaluation"},
    "model_in_eval_mode": {"evaluation"},
    "evaluation_changes_nothing": {"evaluation"},
    "evaluation_reads_the_split": {"evaluation", "tokenizer"},
    "evaluation_is_right": {"evaluation", "probes"},
    "evaluation_loss_is_right": {"evaluation", "probes"},
    "no_leakage": {"evaluation", "data"},
    **{
        law: {"probes"}
        for law in (
            "save_reload_equal",
            "loss_is_the_declared_one",
            "gradient_is_the_declared_one",
            "update_is_the_declared_one",
            "padding_changes_nothing",
            "examples_stay_apart",
            "every_token_counts",
            "pretraining_shows",
            "overfits_one_batch",
            "deterministic",
            "checkpointing_equals_plain",
            "attention_implementations_agree",
            "compiled_equals_eager",
            "packing_changes_nothing",
            "holds_for_any_text",
        )
    },
}
"""The parts of a record without which a law must not say that it held."""


@given(st.sets(st.sampled_from(sorted(PARTS))))
def test_missing_evidence_is_never_accepted(missing: set[str]) -> None:
    """Whatever is missing from a record, no law raises, and none that needs it says that it held."""
    fields = {name: PARTS[name] for name in missing}
    resumed = {"probes": {**HEALTHY.probes, "resumed": RESUMED}}
    bare = HEALTHY.model_copy(update=resumed | fields)
    others = [case(name, bare) for name in ("cpu-custom", "cpu-trainer", "cuda-custom")]
    for found in (*judge(bare), *judge_together(others)):
        holds = found.law not in (*OF_TOKENS, *OF_ADAPTERS, *OF_CHOICES) and not missing & NEEDS[found.law]
        assert (found.outcome == "held") == holds, found


@given(st.sets(st.sampled_from(sorted(PARTS))))
def test_missing_evidence_of_adapters_is_never_accepted(missing: set[str]) -> None:
    """The laws of adapters hold where there are such, and where nothing that they need is missing."""
    bare = ADAPTED.model_copy(update={name: PARTS[name] for name in missing})
    for found in judge(bare):
        if found.law in OF_ADAPTERS:
            assert (found.outcome == "held") == (not missing & NEEDS[found.law]), found


@given(st.integers(0, 3), st.sampled_from(["start", "gradient", "furthest"]), st.sampled_from(NOT_FINITE))
def test_adapter_that_is_no_number_is_rejected(place: int, figure: str, value: float) -> None:
    """A figure of an adapter that is not finite breaks a law of adapters, or cannot be judged."""
    matrices = [parameter.name for parameter in ADAPTED.parameters if parameter.adapter]
    parameters = tuple(
        one.model_copy(update={figure: value}) if one.name == matrices[place] else one for one in ADAPTED.parameters
    )
    found = {outcome(law, record(ADAPTED, parameters=parameters)) for law in OF_ADAPTERS}
    assert found & {"broken", "invalid"}


def test_every_law_says_what_it_needs() -> None:
    """The table above is complete."""
    assert NEEDS.keys() == {law.name for law in LAWS}


@given(st.integers(2, 300_000), st.floats(0, 2), st.floats(0, 2), st.sampled_from(NOT_FINITE))
def test_pretraining_shows_below_its_share_of_chance(size: int, share: float, other: float, never: float) -> None:
    """Held exactly below 0.6 of a guess's loss and below that of other words, for any vocabulary; never by NaN."""
    assume(abs(share - 0.6) > 1e-6 and share != other)
    chance = math.log(size)
    evidence = {"vocabulary": size, "predictions": 146, "loss": share * chance, "permuted": other * chance}
    right = share < 0.6 and share < other
    assert outcome("pretraining_shows", record(probes={"prior": evidence})) == ("held" if right else "broken")
    assert outcome("pretraining_shows", record(probes={"prior": {**evidence, "loss": abs(never)}})) == "broken"


# Records

FLOATS = st.floats() | st.sampled_from(NOT_FINITE)
LISTS = st.recursive(FLOATS | st.integers() | st.booleans(), lambda inner: st.lists(inner, max_size=4), max_leaves=8)
PROBES = st.dictionaries(st.text(max_size=8), st.dictionaries(st.text(max_size=8), LISTS, max_size=3), max_size=3)


def same(one: Any, other: Any) -> bool:
    """Equal in value and type; NaN is the same as NaN."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return one == other and (type(one) is type(other) or not isinstance(one, int | float | str))


def refuse(name: str) -> NoReturn:
    """JSON has no such number."""
    raise AssertionError(f"{name} is not JSON")


@given(st.lists(FLOATS, max_size=8), LISTS, PROBES, FLOATS, st.text(), st.sampled_from(["NaN", "Infinity", "x"]))
def test_record_survives_json(
    losses: list[float], tensor: Any, probes: dict[str, Any], seconds: float, text: str, word: str
) -> None:
    """A record comes back from its line as it was, numbers that are not finite included; the line is strict JSON."""
    kept = Batch(step=0, examples=(0,), tensors={"input_ids": [tensor], text: [tensor, tensor]})
    written = trained(
        losses,
        batches=(kept,),
        probes=probes,
        seconds=seconds,
        reason=text,
        case=word,
        settings={"checkpoint": word},
        invariants={"head_is_new": {"parameters": [text, word]}, "loops_agree": False},
        parameters=(parameter(text, start=seconds, furthest=None), parameter(word, gradient=seconds)),
    )
    # `model_copy` keeps what was there already; the other arguments are read as any record's are.
    written = Record(**dict(written))
    line = written.to_json()
    assert "\n" not in line
    json.loads(line, parse_constant=refuse)
    read = Record.from_json(line)
    assert same(read.model_dump(), written.model_dump())
    assert read.to_json() == line


@given(st.lists(FLOATS, min_size=4, max_size=8))
def test_record_is_judged_alike_after_json(losses: list[float]) -> None:
    """Verdicts on a record that was read are those on the record that was written."""

    def verdicts(one: Record) -> tuple[Verdict, ...]:
        return (*judge(one), *judge_together([one, case("cpu-trainer", one)]))

    written = trained(losses, probes={"replay": {"loss": losses}})
    assert verdicts(Record.from_json(written.to_json())) == verdicts(written)
