"""The laws over labels of tokens, on records written by hand and on random ones."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import END, EXAMPLES, HEALTHY, PAD, START, batch, record
from test_laws import Judged, check, each, verdict

from harness.record import Batch, Example, Masking, Record

IGNORED = -100
MASK = 4


def learnt(one: Example, *labels: int) -> Example:
    """The example with a label for each token; by default its own ids but for the start token's."""
    return one.model_copy(update={"label": list(labels or (IGNORED, *one.input_ids[1:]))})


def labelled(*examples: Example, side: str = "right", **said: Any) -> Batch:
    """The examples and their labels as a right collator pads them."""
    made = batch(*examples, side=side, **said)
    width = len(made.tensors["input_ids"][0])
    padding = [[IGNORED] * (width - len(one.label)) for one in examples]
    pairs = zip(padding, examples, strict=True)
    labels = [rest + one.label if side == "left" else one.label + rest for rest, one in pairs]
    return made.model_copy(update={"tensors": {**made.tensors, "labels": tuple(labels)}})


def tokens(*examples: Example, side: str = "right", pad: int = PAD, **changes: Any) -> Record:
    """A record whose labels are those of tokens, in two batches."""
    batches = (
        labelled(*examples[:2], side=side, pad=pad),
        labelled(*examples[2:], side=side, pad=pad, step=1),
    )
    tokenizer = {"padding_side": side, "pad_token_id": pad}
    return record(examples=examples, batches=batches, tokenizer=tokenizer, **changes)


def spoiled(base: Record, name: str, row: int, place: int, value: int) -> Record:
    """The record, but for one number of its first batch."""
    first, *rest = base.batches
    rows = [list(one) for one in first.tensors[name]]
    rows[row][place] = value
    changed = first.model_copy(update={"tensors": {**first.tensors, name: tuple(rows)}})
    return base.model_copy(update={"batches": (changed, *rest)})


LEARNT = tuple(learnt(one) for one in EXAMPLES)
CAUSAL = tokens(*LEARNT)
"""Every token but the first is learnt, the end token too."""
LEFT = tokens(*LEARNT, side="left")
PAD_IS_END = tokens(*LEARNT, pad=END)


def targets(**changes: Any) -> Record:
    """A record with a decoder: START 20 21 END and START 30 END are its labels, shifted by one its inputs."""
    labels = ([20, 21, 22, END], [30, END, IGNORED, IGNORED])
    inputs = ([START, 20, 21, 22], [START, 30, END, PAD])
    examples = tuple(
        one.model_copy(update={"label": [token for token in row if token != IGNORED]})
        for one, row in zip(EXAMPLES[:2], labels, strict=True)
    )
    made = batch(*EXAMPLES[:2])
    tensors = {**made.tensors, "labels": labels, "decoder_input_ids": inputs, **changes}
    return record(examples=examples, batches=(made.model_copy(update={"tensors": tensors}),))


def masked(
    share: float = 0.15, hidden: float = 0.8, replaced: float = 0.1, *, again: bool = False, everywhere: bool = False
) -> Record:
    """A masked language model's record of 12 batches of 4 texts of 30 tokens, of which that share is drawn."""
    chance, texts = random.Random(3), []
    for index in range(4):
        ids = (START, *(chance.randrange(10, 50) for _ in range(30)), END)
        texts.append(Example(index=index, text="t", input_ids=ids, label=[IGNORED, *ids[1:-1], IGNORED]))
    batches = []
    for step in range(12):
        if again:
            chance = random.Random(7)
        made = batch(*texts, step=step)
        rows, labels = [], []
        for one in texts:
            ids, drawn = list(one.input_ids), [chance.random() < share for _ in one.input_ids]
            drawn[0] = drawn[-1] = False
            labels.append([token if mine or everywhere else IGNORED for token, mine in zip(ids, drawn, strict=True)])
            if everywhere:
                labels[-1][0] = labels[-1][-1] = IGNORED
            for place in (place for place, mine in enumerate(drawn) if mine):
                turn = chance.random()
                if turn < hidden + replaced:
                    ids[place] = MASK if turn < hidden else chance.randrange(10, 50)
            rows.append(ids)
        batches.append(
            made.model_copy(update={"tensors": {**made.tensors, "input_ids": tuple(rows), "labels": tuple(labels)}})
        )
    masking = Masking(probability=0.15, token=MASK)
    read = [Batch.model_validate(one.model_dump()) for one in batches]
    return record(examples=tuple(texts), batches=tuple(read), masking=masking)


def foreseeing(*gradients: float) -> Record:
    """A record of a language model, whose first texts depend on their future by this much."""
    future = [*gradients, *[0.0] * (4 - len(gradients))]
    return record(probes={"dependence": {**HEALTHY.probes["dependence"], "future": future}})


MASKED = masked()
LOST = record(CAUSAL, lost=(2,))
SAYS = {"settings": {"task": "causal-lm"}, "tokenizer": {"pad_token_id": PAD, "end_token_ids": (END, 7)}}
"""A causal language model that stops at either of two tokens."""


def turns(*labels: int) -> Record:
    """A chat whose tokens are 2 20 21 3 22 23 24 3 and have these labels; generation stops at 3 and 7."""
    ids = (START, 20, 21, END, 22, 23, 24, END)
    one = Example(index=0, text="a chat", input_ids=ids, label=list(labels))
    return record(examples=(one,), batches=(labelled(one),), **SAYS)


ACCEPTED = (
    Judged("labels_masked_right", "all but the start", CAUSAL, "14 labels in 4 rows"),
    Judged("labels_masked_right", "padded on the left", LEFT, "14 labels in 4 rows"),
    Judged("labels_masked_right", "the end token is the pad token", PAD_IS_END, "14 labels in 4 rows"),
    Judged("labels_masked_right", "some are hidden", MASKED, "in 48 rows"),
    Judged("labels_masked_right", "each turn ends", turns(*[IGNORED] * 2, 21, END, IGNORED, 23, 24, END), "5 labels"),
    Judged(
        "labels_masked_right",
        "a turn is cut off",
        record(turns(*[IGNORED] * 5, 23, 24, 25), tokenizer={"max_length": 8}),
        "3 labels",
    ),
    Judged("labels_travel", "one for each token", CAUSAL, "4 rows"),
    Judged("labels_travel", "one for each token, padded on the left", LEFT, "4 rows"),
    Judged(
        "labels_travel",
        "two arguments",
        record(
            examples=tuple(one.model_copy(update={"label": {"start_positions": one.index}}) for one in EXAMPLES),
            batches=tuple(
                one.model_copy(update={"tensors": {**one.tensors, "start_positions": list(one.examples)}})
                for one in HEALTHY.batches
            ),
        ),
    ),
    Judged(
        "labels_travel",
        "a number in fp32",
        record(
            examples=tuple(one.model_copy(update={"label": 0.1 + one.index}) for one in EXAMPLES),
            batches=tuple(
                one.model_copy(update={"tensors": {**one.tensors, "labels": [0.10000000149 + i for i in one.examples]}})
                for one in HEALTHY.batches
            ),
        ),
    ),
    Judged("tokens_match_tokenizer", "hidden tokens are put back", MASKED, "48 rows"),
    Judged("labels_survive_truncation", "none is lost", CAUSAL, "4 of 4 examples are whole"),
    Judged(
        "labels_survive_truncation",
        "as many as are allowed",
        record(LOST, invariants={"labels_survive_truncation": {"most": 0.25}}),
        "3 of 4",
    ),
    Judged("decoder_inputs_shifted", "by one", targets(), "4 tokens"),
    Judged("decoder_inputs_shifted", "from its start", record(targets(), tokenizer={"decoder_start_token_id": START})),
    Judged(
        "decoder_inputs_shifted",
        "from the last label, as MBART",
        record(
            targets(decoder_input_ids=([END, 20, 21, 22], [END, 30, END, PAD])), tokenizer={"decoder_start_token_id": 9}
        ),
        "4 tokens",
    ),
    Judged("masking_is_random", "15 %, of them 80, 10 and 10", MASKED, "of 1440 tokens drawn"),
    Judged("future_unseen", "exactly 0", foreseeing(0.0, 0.0), "4 examples"),
    Judged(
        "head_is_new",
        "a language model's is the checkpoint's",
        record(checkpoint={"brings_head": True, "missing": ()}),
        "new: nothing",
    ),
    Judged("head_is_new", "a language model's, new as a whole", record(checkpoint={"brings_head": True}), "new: cl"),
    Judged(
        "head_is_new",
        "a language model's, tied",
        record(checkpoint={"brings_head": True, "missing": (), "head": ()}),
        "new: nothing",
    ),
)

REJECTED = (
    Judged(
        "labels_masked_right",
        "the end is not learnt",
        spoiled(PAD_IS_END, "labels", 1, 2, IGNORED),
        ("step 1, row 1 (example 1", "label -100 at position 2, expected 3"),
        "the end-of-sequence token is also the pad token",
    ),
    Judged(
        "labels_masked_right",
        "padding is learnt",
        spoiled(CAUSAL, "labels", 1, 4, PAD),
        "label 0 at position 4, expected -100",
        "padding is learnt",
    ),
    Judged(
        "labels_masked_right",
        "a turn has no end",
        turns(*[IGNORED] * 2, 21, END, IGNORED, 23, 24, IGNORED),
        "example 0 ('a chat'), positions 5 to 6: no token is learnt at which generation stops (3, 7)",
        "the chat template ends turns with another token or with none",
    ),
    Judged("labels_masked_right", "padding on the left is learnt", spoiled(LEFT, "labels", 1, 0, PAD), "position 0"),
    Judged(
        "labels_masked_right",
        "a prompt is learnt",
        spoiled(CAUSAL, "labels", 0, 0, START),
        "label 2 at position 0, expected -100",
        "a prompt, a special token or the rest of a word is learnt",
    ),
    Judged("labels_masked_right", "a special token is drawn", spoiled(MASKED, "labels", 0, 0, START), "position 0"),
    Judged(
        "labels_travel",
        "shifted by one",
        spoiled(CAUSAL, "labels", 0, 1, 21),
        "step 1, row 0 (example 0): label 21 at position 1, declared 20",
        "ordered apart",
    ),
    Judged("labels_survive_truncation", "one is lost", LOST, "1 example of 4 lost a label: 2; cut to 512 tokens"),
    Judged(
        "decoder_inputs_shifted",
        "not at all",
        targets(decoder_input_ids=([20, 21, 22, END], [30, END, PAD, PAD])),
        "step 1, row 0 (example 0): decoder_input_ids[1] is 21, expected 20",
        "sees what it has to predict",
    ),
    Judged(
        "decoder_inputs_shifted",
        "twice",
        targets(decoder_input_ids=([START, START, 20, 21], [START, START, 30, END])),
        "decoder_input_ids[1] is 2, expected 20",
        "shifted otherwise",
    ),
    Judged(
        "decoder_inputs_shifted",
        "from another start",
        record(targets(), tokenizer={"decoder_start_token_id": 9}),
        "decoder_input_ids[0] is 2, and generation begins with 9",
        "go on from another token",
    ),
    Judged("masking_is_random", "twice as many", masked(share=0.3), "tokens are drawn, expected 15%"),
    Judged("masking_is_random", "all are learnt", masked(everywhere=True), "1440 of 1440 tokens are drawn"),
    Judged("masking_is_random", "all are hidden", masked(hidden=1.0), "drawn tokens are hidden, expected 80%"),
    Judged("masking_is_random", "none is left", masked(replaced=0.2), "left as they are, expected 10%"),
    Judged(
        "masking_is_random",
        "once for all epochs",
        masked(again=True),
        "each of 4 examples is hidden in the same places whenever it comes",
        "hidden once, before the training",
    ),
    Judged(
        "future_unseen",
        "an encoder",
        foreseeing(0.0, 0.25),
        "example 2 (4 tokens): the first half's logits depend on the second: gradient 0.25",
        "attention has no causal mask",
    ),
    Judged(
        "head_is_new",
        "a part of a language model's",
        record(checkpoint={"brings_head": True, "missing": ("classifier.bias",)}),
        "classifier.weight should be new",
        "a part of the language model's head",
    ),
    Judged(
        "head_is_new",
        "the backbone of a language model",
        record(checkpoint={"brings_head": True, "missing": ("bert.layer.query.weight",)}),
        "1 parameters that the checkpoint should hold",
    ),
)

NOT_APPLICABLE = (
    Judged("labels_masked_right", "labels of whole texts", HEALTHY, "labels are of whole texts"),
    Judged("labels_survive_truncation", "labels of whole texts", HEALTHY, "cutting loses none"),
    Judged("decoder_inputs_shifted", "no decoder", HEALTHY, "gets no decoder_input_ids"),
    Judged("masking_is_random", "nothing hidden", HEALTHY, "no token is hidden"),
    Judged("future_unseen", "whole texts", HEALTHY, "does not predict tokens one by one"),
)


@each(*ACCEPTED)
def test_accepts(judged: Judged) -> None:
    """A right training keeps the law."""
    check(judged, "held")


@each(*REJECTED)
def test_rejects(judged: Judged) -> None:
    """A wrong training breaks the law, and the verdict names what, where, and the likely cause."""
    check(judged, "broken")


@each(*NOT_APPLICABLE)
def test_says_nothing(judged: Judged) -> None:
    """The law has nothing to say."""
    check(judged, "not applicable")


@pytest.mark.parametrize(
    ("law", "base"),
    [("labels_masked_right", CAUSAL), ("decoder_inputs_shifted", targets()), ("masking_is_random", MASKED)],
)
def test_without_batches_no_law_of_labels_holds(law: str, base: Record) -> None:
    """Finding nothing where nothing was kept is not called held."""
    assert verdict(law, base.model_copy(update={"batches": ()})).outcome != "held"


@given(st.sampled_from([CAUSAL, LEFT, PAD_IS_END]), st.data())
def test_any_wrong_label_is_rejected(base: Record, data: st.DataObject) -> None:
    """A label more, a label less, or another one: one of the two laws sees it, wherever it is."""
    labels = base.batches[0].tensors["labels"]
    row = data.draw(st.integers(0, len(labels) - 1), label="row")
    place = data.draw(st.integers(0, len(labels[0]) - 1), label="place")
    value = data.draw(st.sampled_from([IGNORED, 1, PAD, END, 99]).filter(lambda n: n != labels[row][place]))
    wrong = spoiled(base, "labels", row, place, value)
    found = {law: verdict(law, wrong).outcome for law in ("labels_masked_right", "labels_travel")}
    moved = IGNORED in (value, labels[row][place])
    assert found == {
        "labels_masked_right": "broken" if moved else "held",
        "labels_travel": "held" if moved else "broken",
    }


@given(st.integers(0, 10_000))
def test_right_masking_is_accepted(seed: int) -> None:
    """Whatever is drawn, as long as the chances are right."""
    state = random.Random(seed)
    texts = tuple(
        Example(index=i, text="t", input_ids=(START, *range(10, 40), END), label=[IGNORED, *range(10, 40), IGNORED])
        for i in range(8)
    )
    rows, labels = [], []
    for one in texts:
        ids, mine = list(one.input_ids), [IGNORED] * len(one.input_ids)
        for place in range(1, len(ids) - 1):
            if state.random() < 0.15:
                mine[place], turn = ids[place], state.random()
                ids[place] = MASK if turn < 0.8 else state.randrange(60) if turn < 0.9 else ids[place]
        rows.append(ids)
        labels.append(mine)
    made = batch(*texts)
    made = made.model_copy(update={"tensors": {**made.tensors, "input_ids": tuple(rows), "labels": tuple(labels)}})
    right = record(examples=texts, batches=(made,), masking=Masking(probability=0.15, token=MASK))
    assert verdict("masking_is_random", right).outcome == "held"
