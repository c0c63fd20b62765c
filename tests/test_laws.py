"""Each law on records written by hand: what it accepts, what it rejects and in which words, what it leaves alone."""

import itertools
import math
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from records import (
    BATCHES,
    EXAMPLES,
    HEALTHY,
    PARAMETERS,
    RATE,
    batch,
    case,
    example,
    parameter,
    record,
    steps,
    trained,
)

from harness.laws import LAWS, Law, Verdict, judge, judge_together
from harness.record import Batch, Record, Steps

NAN, INF = math.nan, math.inf
BY_NAME = {law.name: law for law in LAWS}


@dataclass(frozen=True)
class Judged:
    """A law, what it judges, and the words that its verdict has to contain."""

    law: str
    why: str
    evidence: Record | tuple[Record, ...]
    says: str | tuple[str, ...] = ""
    cause: str = ""


def verdict(law: str, evidence: Record | tuple[Record, ...]) -> Verdict:
    """What a law says of a record, or of several of one file."""
    laws: list[Law] = [BY_NAME[law]]
    (only,) = judge(evidence, laws) if isinstance(evidence, Record) else judge_together(evidence, laws)
    return only


def each(*judged: Judged) -> pytest.MarkDecorator:
    """A test for each of them."""
    return pytest.mark.parametrize("judged", [pytest.param(one, id=f"{one.law}: {one.why}") for one in judged])


def check(judged: Judged, outcome: str) -> None:
    """The verdict is of that kind, about the right thing, and says what it has to."""
    found = verdict(judged.law, judged.evidence)
    first = judged.evidence if isinstance(judged.evidence, Record) else judged.evidence[0]
    assert found.outcome == outcome, found
    assert found.law == judged.law
    assert found.about == (first.name if isinstance(judged.evidence, Record) else first.experiment)
    for words in (judged.says,) if isinstance(judged.says, str) else judged.says:
        assert words in found.message, found
    assert judged.cause in found.cause, found
    assert bool(found.cause) <= (outcome == "broken"), found


def rows(*changes: Any, step: int = 0) -> Record:
    """The healthy record with other tensors in its first batch: names and values, in turn."""
    first = BATCHES[0]
    tensors = {**first.tensors, **dict(zip(changes[::2], changes[1::2], strict=True))}
    changed = first.model_copy(update={"tensors": {k: v for k, v in tensors.items() if v is not None}, "step": step})
    return record(batches=(changed, BATCHES[1]))


def only(kept: Batch, *examples: Any, **changes: Any) -> Record:
    """A record whose one kept batch is this."""
    return record(batches=(kept,), examples=examples or EXAMPLES, **changes)


def replaced(*others: Any) -> tuple[Any, ...]:
    """The healthy parameters, with those of the same names replaced."""
    by_name = {one.name: one for one in others}
    return tuple(by_name.get(one.name, one) for one in PARAMETERS)


def heads(**changes: Any) -> Record:
    """The healthy record with another classifier.weight."""
    return record(parameters=replaced(parameter("classifier.weight", **changes)))


def backbone(**changes: Any) -> Record:
    """The healthy record with another query weight."""
    return record(parameters=replaced(parameter("bert.layer.query.weight", **changes)))


def sgd(**changes: Any) -> Record:
    """The same, trained by SGD without weight decay."""
    return record(backbone(**changes), settings={"train.optimizer": "sgd", "train.weight_decay": 0.0})


def pair(name: str = "cpu-trainer", **changes: Any) -> tuple[Record, Record]:
    """The healthy case, and another that differs from it as its name says and in this."""
    return case("cpu-custom"), case(name, **changes)


def adding_up(loss: float) -> tuple[Record, ...]:
    """The same, of steps of two micro-batches, with another loss at the fourth."""
    both = pair(steps={"loss": losses(3, loss)})
    return tuple(record(one, settings={"train.gradient_accumulation": 2}) for one in both)


def digests(step: int, **tensors: str) -> tuple[dict[str, str], ...]:
    """The digests of the healthy steps, with some of one step changed."""
    return tuple({**one, **tensors} if place == step else one for place, one in enumerate(HEALTHY.steps.digest))


def at(values: tuple[float, ...], step: int, value: float) -> tuple[float, ...]:
    """The values, with one of them changed."""
    return (*values[:step], value, *values[step + 1 :])


def losses(step: int, value: float) -> tuple[float, ...]:
    """The healthy losses, with one of them changed."""
    return at(HEALTHY.steps.loss, step, value)


LEFT = (batch(*EXAMPLES[:2], side="left"), batch(*EXAMPLES[2:], side="left", step=1))
WITH_PAD = example(0, 20, 0, 22, 0)
"""A text in which the pad token is a word, and the last of them."""
FLAT = (0.7,) * 8

ACCEPTED = (
    Judged("trains", "every declared step", HEALTHY, "8 steps in 1.0 s"),
    Judged("loss_finite", "all finite", HEALTHY, "8 losses, all finite"),
    Judged("loss_finite", "large and negative are finite", trained([1e30, -1e30, 0.0])),
    Judged("loss_decreases", "windows fall", HEALTHY, ("first 2 steps 0.7100", "last 2 0.2500")),
    Judged("loss_decreases", "while it warms up", trained([1.0, 0.9, 0.5, 0.4], settings={"train.warmup_steps": 300})),
    Judged("loss_decreases", "by exactly the share", trained([1.0, 5.0, 0.0, 0.9])),
    Judged("loss_decreases", "last above first, windows fall", trained([0.5, 1.5, 1.0, 0.9, 0.9, 0.8, 0.1, 0.6])),
    Judged("loss_decreases", "a negative loss that falls", trained([-1.0, -1.0, -2.0, -3.0])),
    Judged("loss_decreases", "sums beyond the largest number", trained([1e308] * 8 + [1e307] * 8)),
    Judged("padding_mask_correct", "padded on the right", HEALTHY, ("4 rows of 2 batches", "2 padded on the right")),
    Judged(
        "padding_mask_correct",
        "padded on the left",
        record(batches=LEFT, tokenizer={"padding_side": "left"}),
        "2 padded on the left",
    ),
    Judged("padding_mask_correct", "more padding than needed", only(batch(*EXAMPLES, length=20)), "4 padded"),
    Judged("padding_mask_correct", "pad token in a text", only(batch(WITH_PAD, EXAMPLES[1]), WITH_PAD, EXAMPLES[1])),
    Judged("padding_mask_correct", "no padding", only(batch(EXAMPLES[0])), "no padding was seen"),
    Judged(
        "padding_mask_correct", "mask of true and false", rows("attention_mask", [[True] * 6, [True] * 3 + [False] * 3])
    ),
    Judged(
        "padding_mask_correct",
        "rows with other tokens are not its own",
        rows("input_ids", [[2, 20, 99, 22, 23, 3], [2, 30, 3, 0, 0, 0]]),
        "1 do not hold their text: see tokens_match_tokenizer",
    ),
    Judged("tokens_match_tokenizer", "the tokenizer's own", HEALTHY, "4 rows of 2 batches"),
    Judged("tokens_match_tokenizer", "padded on the left", record(batches=LEFT, tokenizer={"padding_side": "left"})),
    Judged("tokens_match_tokenizer", "pad token in a text", only(batch(WITH_PAD, EXAMPLES[1]), WITH_PAD, EXAMPLES[1])),
    Judged("tokens_match_tokenizer", "the side is the mask's matter", record(batches=LEFT)),
    Judged("tokens_match_tokenizer", "the pad id is the mask's matter", record(batches=(batch(*EXAMPLES[:2], pad=9),))),
    Judged("head_is_new", "exactly the head", HEALTHY, "new: classifier.bias, classifier.weight"),
    Judged(
        "head_is_new",
        "unused weights are named",
        record(checkpoint={"unused": ("cls.predictions.bias", "cls.seq_relationship.weight")}),
        "unused: cls.predictions.bias, cls.seq_relationship.weight",
    ),
    Judged(
        "head_is_new",
        "a head of another shape is new",
        record(checkpoint={"missing": ("classifier.bias",), "mismatched": ("classifier.weight",)}),
    ),
    Judged(
        "head_is_new",
        "declared by pattern",
        record(
            checkpoint={"missing": ("bert.layer.query.weight", "classifier.bias", "classifier.weight")},
            invariants={"head_is_new": {"parameters": ["classifier.*", "bert.layer.query.*"]}},
        ),
    ),
    Judged(
        "head_is_new",
        "nothing declared new, nothing new",
        record(checkpoint={"missing": ()}, invariants={"head_is_new": {"parameters": []}}),
        "new: nothing",
    ),
    Judged("head_changes", "both moved", HEALTHY, "2 new parameters moved; least: classifier.weight by 0.006"),
    Judged("head_changes", "a tenth of a step is enough", heads(furthest=0.1 * RATE)),
    Judged("head_changes", "back at its start in the end", heads(change=0.0)),
    Judged(
        "head_changes",
        "a new key bias of the backbone gets rounding noise",
        record(parameters=replaced(parameter("bert.layer.key.bias", furthest=1e-9, gradient=1e-9))),
    ),
    Judged("backbone_changes", "all with a gradient moved", HEALTHY, "2 of 3 backbone parameters moved"),
    Judged("backbone_changes", "one is frozen", backbone(trainable=False, change=0.0, gradient=None)),
    Judged(
        "backbone_changes",
        "a gradient too small for SGD",
        sgd(change=0.0, start=1.0, gradient=1e-5),
        "of 1 the update is lost by rounding",
    ),
    Judged("backbone_changes", "one takes no part in the loss", backbone(change=0.0, gradient=None)),
    Judged(
        "backbone_changes", "an update is lost", backbone(change=0.0, start=1e5), "of 1 the update is lost by rounding"
    ),
    Judged("loops_agree", "alike", pair(), "1 pair agrees"),
    Judged("loops_agree", "apart by less than allowed", pair(steps={"loss": losses(3, 0.6 + 9e-6)})),
    Judged("loops_agree", "the same of sums of micro-batches", adding_up(0.6 + 9e-5)),
    Judged(
        "loops_agree",
        "neither optimizer steps",
        (
            case("cpu-custom", steps={"learning_rate": (NAN,) * 8}),
            case("cpu-trainer", steps={"learning_rate": (NAN,) * 8}),
        ),
    ),
    Judged(
        "loops_agree",
        "a tolerance of its own",
        tuple(
            record(one, invariants={"loops_agree": {"tolerance": 0.2}}) for one in pair(steps={"loss": losses(3, 0.75)})
        ),
    ),
    Judged(
        "loops_agree",
        "bf16 has more room than fp32",
        (case("cpu-custom-bf16"), case("cpu-trainer-bf16", steps={"loss": losses(3, 0.61)})),
    ),
    Judged(
        "loops_agree",
        "each device by itself",
        (*pair(), case("cuda-custom", steps={"loss": FLAT}), case("cuda-trainer", steps={"loss": FLAT})),
        "2 pairs agree",
    ),
    Judged(
        "loops_agree",
        "a case that crashed is left out",
        (*pair(), case("cuda-custom"), case("cuda-trainer", outcome="crashed", reason="ValueError: no")),
        ("1 pair agrees", "left out: cuda-trainer: ValueError: no"),
    ),
    Judged("devices_agree", "alike", pair("cuda-custom"), "1 pair agrees"),
    Judged("devices_agree", "other dropout", pair("cuda-custom", steps={"loss": losses(3, 0.9)})),
    Judged(
        "devices_agree",
        "apart by less than allowed",
        pair("cuda-custom", probes={"replay": {"loss": [0.7, 0.65, 0.6, 0.5509]}}),
    ),
)

REJECTED = (
    Judged(
        "trains",
        "stopped early",
        trained([0.7, 0.6], settings={"train.steps": 8}),
        "2 training steps were taken, train.steps declares 8",
        "stops early",
    ),
    Judged("trains", "went on", trained([0.7] * 9, settings={"train.steps": 8}), "9 training steps were taken"),
    Judged("trains", "no step at all", record(steps=Steps()), "0 training steps"),
    Judged("trains", "crashed", record(outcome="crashed", reason="ValueError: no"), "crashed: ValueError: no"),
    Judged("trains", "out of memory", record(outcome="out of memory", reason="8 GiB"), "out of memory: 8 GiB"),
    Judged("trains", "interrupted", record(outcome="interrupted", reason="Ctrl-C"), "interrupted: Ctrl-C"),
    Judged(
        "loss_finite",
        "NaN after an update",
        record(steps={"loss": losses(6, NAN)}),
        ("loss is nan at step 7 of 8, after 0.6, 0.5, 0.45", "examples of that batch: 0, 1"),
        "the update of step 6 (learning rate 0.001)",
    ),
    Judged("loss_finite", "infinite", record(steps={"loss": losses(7, INF)}), "loss is inf at step 8 of 8"),
    Judged(
        "loss_finite",
        "NaN at once",
        record(steps={"loss": losses(0, NAN)}),
        "loss is nan at step 1 of 8; examples",
        "the weights or this batch",
    ),
    Judged(
        "loss_finite",
        "seen up to the step before",
        record(steps=Steps(loss=(0.5, NAN), learning_rate=(RATE,), examples=((0, 1),))),
        "examples of that batch: unknown",
        "the update of step 1 (learning rate 0.001)",
    ),
    Judged("loss_finite", "examples unknown", record(steps=Steps(loss=(0.5, -INF))), "examples of that batch: unknown"),
    Judged(
        "loss_decreases",
        "flat",
        record(steps={"loss": FLAT}),
        ("first 2 steps 0.7000", "last 2 0.7000", "expected at most 0.6300"),
        "too few steps or too small a learning rate",
    ),
    Judged("loss_decreases", "by too little", trained([1.0] * 8 + [0.98] * 8), "at most 0.9000"),
    Judged("loss_decreases", "only the last is low", trained([0.7] * 47 + [0.6]), "last 12 0.6917"),
    Judged("loss_decreases", "warmed up", trained([0.7] * 8, settings={"train.warmup_steps": 7}), "at most 0.6300"),
    Judged("loss_decreases", "rises", trained([0.5, 0.6, 0.7, 0.8] * 3 + [0.9] * 4), "at most 0.5850", "it rises"),
    Judged(
        "loss_decreases", "explodes", trained([0.7] * 7 + [3.0, 90.0, 4.0, 6.0, 700.0, 8.0, 2000.0]), "", "it rises"
    ),
    Judged("loss_decreases", "a negative loss that rises", trained([-1.0] * 8 + [-0.9] * 4), "at most -1.1000"),
    Judged("loss_decreases", "exactly 0 from the start", trained([0.0] * 8), "", "exactly 0 at every step"),
    Judged("loss_decreases", "0 at first only", trained([0.0] * 3 + [0.5] * 9), "at most 0.0000", "it rises"),
    Judged(
        "loss_decreases",
        "no learning rate",
        record(steps={"loss": FLAT, "learning_rate": (0.0,) * 8}),
        "",
        "the learning rate is 0 at every step",
    ),
    Judged(
        "loss_decreases",
        "nothing moved",
        record(steps={"loss": FLAT}, parameters=(parameter("bert.embeddings.weight", change=0.0),)),
        "",
        "no parameter moved",
    ),
    Judged(
        "loss_decreases",
        "a window of its own",
        trained([0.8] * 6 + [0.7] * 6 + [0.5] * 6, invariants={"loss_decreases": {"window": 6, "by": 0.5}}),
        "first 6 steps 0.8000, of the last 6 0.5000: expected at most 0.4000",
    ),
    Judged(
        "padding_mask_correct",
        "dropped",
        rows("attention_mask", None),
        "step 1: no attention_mask among the model's arguments (input_ids, labels)",
        "drops it",
    ),
    Judged(
        "padding_mask_correct",
        "dropped from a later batch",
        record(batches=(BATCHES[0], Batch(step=1, examples=(2,), tensors={"input_ids": [[2, 40, 41, 3]]}))),
        "step 2: no attention_mask",
    ),
    Judged(
        "padding_mask_correct",
        "inverted",
        rows("attention_mask", [[0] * 6, [0, 0, 0, 1, 1, 1]]),
        ("step 1, row 0 (example 0: 'text 0')", "attention_mask is 0x6, expected 1x6"),
        "polarity is inverted",
    ),
    Judged(
        "padding_mask_correct",
        "all ones",
        rows("attention_mask", [[1] * 6, [1] * 6]),
        ("step 1, row 1 (example 1: 'text 1')", "attention_mask is 1x6, expected 1x3 0x3"),
        "all ones",
    ),
    Judged("padding_mask_correct", "all zeros", rows("attention_mask", [[1] * 6, [0] * 6]), "is 0x6", "all zeros"),
    Judged(
        "padding_mask_correct",
        "last token hidden",
        rows("attention_mask", [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]]),
        "is 1x5 0x1, expected 1x6",
        "real tokens are masked",
    ),
    Judged(
        "padding_mask_correct",
        "one pad seen",
        rows("attention_mask", [[1] * 6, [1, 1, 1, 1, 0, 0]]),
        "is 1x4 0x2, expected 1x3 0x3",
        "padding is attended to",
    ),
    Judged(
        "padding_mask_correct",
        "padded on the other side",
        record(batches=LEFT),
        "is 0x3 1x3, expected 1x3 0x3",
        "other side",
    ),
    Judged(
        "padding_mask_correct",
        "pad token of a text taken for padding",
        only(
            Batch(
                step=0,
                examples=(0,),
                tensors={"input_ids": [[2, 20, 0, 22, 0, 3]], "attention_mask": [[1, 1, 0, 1, 0, 1]]},
            ),
            WITH_PAD,
        ),
        "is 1x2 0x1 1x1 0x1 1x1, expected 1x6",
        "real tokens are masked",
    ),
    Judged(
        "padding_mask_correct",
        "another pad id",
        only(batch(*EXAMPLES[:2], pad=9)),
        "row 1 (example 1: 'text 1'): input_ids[3] is 9 under a mask of 0, expected the pad token 0",
        "another id than the tokenizer's pad token",
    ),
    Judged(
        "padding_mask_correct",
        "fewer columns than tokens",
        rows("attention_mask", [[1] * 5, [1] * 5]),
        "attention_mask is 2 x 5, input_ids 2 x 6",
        "padded apart",
    ),
    Judged(
        "padding_mask_correct",
        "fewer rows than tokens",
        rows("attention_mask", [[1] * 6]),
        "attention_mask is 1 x 6, input_ids 2 x 6",
    ),
    Judged(
        "tokens_match_tokenizer",
        "another token",
        rows("input_ids", [[2, 20, 99, 22, 23, 3], [2, 30, 3, 0, 0, 0]]),
        "step 1, row 0 (example 0: 'text 0'): input_ids[2] is 99, the tokenizer gives 21",
        "another tokenizer",
    ),
    Judged(
        "tokens_match_tokenizer",
        "another token on the left",
        record(
            batches=(
                Batch(step=3, examples=(1,), tensors={"input_ids": [[0, 2, 31, 3]], "attention_mask": [[0, 1, 1, 1]]}),
            ),
            tokenizer={"padding_side": "left"},
        ),
        "step 4, row 0 (example 1: 'text 1'): input_ids[2] is 31, the tokenizer gives 30",
    ),
    Judged(
        "tokens_match_tokenizer",
        "truncated",
        rows("input_ids", [[2, 20, 21, 3], [2, 30, 3, 0]]),
        "row 0 (example 0: 'text 0'): 4 tokens reached the model, the tokenizer gives 6",
        "truncated; see train.max_length",
    ),
    Judged(
        "tokens_match_tokenizer",
        "rows swapped",
        rows("input_ids", [[2, 30, 3, 0, 0, 0], [2, 20, 21, 22, 23, 3]]),
        "row 0 (example 0: 'text 0'): input_ids[1] is 30, the tokenizer gives 20",
        "do not belong together",
    ),
    Judged(
        "tokens_match_tokenizer",
        "a token too many",
        rows(
            "input_ids", [[2, 20, 21, 22, 23, 3], [2, 30, 3, 3, 0, 0]], "attention_mask", [[1] * 6, [1, 1, 1, 1, 0, 0]]
        ),
        "input_ids[3] is 3 and not masked, beyond the 3 tokens",
        "a token is added",
    ),
    Judged(
        "tokens_match_tokenizer",
        "a row lost",
        rows("input_ids", [[2, 20, 21, 22, 23, 3]]),
        "step 1: 1 rows reached the model, the loader drew 2 examples",
        "drops or repeats rows",
    ),
    Judged(
        "tokens_match_tokenizer",
        "wrong without a mask",
        rows("attention_mask", None, "input_ids", [[2, 20, 21, 22, 24, 3], [2, 30, 3, 0, 0, 0]]),
        "input_ids[4] is 24",
    ),
    Judged(
        "head_is_new",
        "the backbone is not in the checkpoint",
        record(
            checkpoint={
                "missing": tuple(one.name for one in PARAMETERS),
                "unused": ("model.embeddings.weight", "model.layer.query.weight"),
            }
        ),
        "3 parameters that the checkpoint should hold are newly initialised: bert.embeddings.weight, bert.layer",
        "names differ from the model's: it also holds model.embeddings.weight, model.layer.query.weight",
    ),
    Judged(
        "head_is_new",
        "a backbone weight of another shape",
        record(checkpoint={"mismatched": ("bert.embeddings.weight",)}),
        "1 parameters that the checkpoint should hold are newly initialised: bert.embeddings.weight",
        "the checkpoint holds bert.embeddings.weight in another shape",
    ),
    Judged(
        "head_is_new",
        "a backbone weight was not saved",
        record(checkpoint={"missing": ("bert.embeddings.weight", "classifier.bias", "classifier.weight")}),
        "bert.embeddings.weight",
        "saved without them",
    ),
    Judged(
        "head_is_new",
        "already fine-tuned",
        record(checkpoint={"missing": ()}),
        "classifier.bias, classifier.weight should be new, but came from the checkpoint",
        "already fine-tuned",
    ),
    Judged(
        "head_is_new",
        "half of the head came along",
        record(checkpoint={"missing": ("classifier.bias",)}),
        "classifier.weight should be new",
    ),
    Judged(
        "head_is_new",
        "a pattern without a parameter",
        record(invariants={"head_is_new": {"parameters": ["classifier.*", "scorer.*"]}}),
        "no parameter of the model matches scorer.*",
    ),
    Judged(
        "head_is_new",
        "declared, but held by the checkpoint",
        record(invariants={"head_is_new": {"parameters": ["classifier.*", "*.query.*"]}}),
        "bert.layer.query.weight should be new",
    ),
    Judged(
        "head_changes",
        "frozen",
        heads(trainable=False, furthest=0.0, gradient=None),
        "classifier.weight moved by 0 (its own scale: 0.02), expected at least 0.0001",
        "classifier.weight is frozen",
    ),
    Judged(
        "head_changes",
        "by weight decay alone",
        heads(furthest=8 * RATE * 0.01 * 0.02),
        "classifier.weight moved by 1.6e-06",
        "has a gradient (0.1): the optimizer does not hold it",
    ),
    Judged(
        "head_changes",
        "takes no part in the loss",
        heads(furthest=0.0, gradient=None),
        "moved by 0",
        "gets no gradient",
    ),
    Judged("head_changes", "no gradient", heads(furthest=0.0, gradient=0.0), "moved by 0", "is exactly 0"),
    Judged(
        "head_changes",
        "the optimizer never steps",
        record(heads(furthest=0.0, gradient=None), steps={"learning_rate": (NAN,) * 8}),
        "moved by 0",
        "the optimizer never steps",
    ),
    Judged(
        "head_changes",
        "the optimizer leaves out one step",
        record(heads(furthest=0.0), steps={"learning_rate": at(HEALTHY.steps.learning_rate, 3, NAN)}),
        "moved by 0",
        "has a gradient",
    ),
    Judged("head_changes", "NaN", heads(furthest=NAN), "classifier.weight is nan away from its start"),
    Judged("head_changes", "infinite", heads(furthest=INF), "classifier.weight is inf away from its start"),
    Judged(
        "head_changes",
        "the bias alone stays",
        record(parameters=replaced(parameter("classifier.bias", start=0.0, furthest=0.0))),
        "classifier.bias moved by 0",
    ),
    Judged(
        "head_changes",
        "a new pooler stays",
        record(parameters=(*PARAMETERS, parameter("bert.pooler.weight", furthest=0.0))),
        "bert.pooler.weight moved by 0",
    ),
    Judged(
        "backbone_changes",
        "one stays",
        backbone(change=0.0),
        "1 of 3 backbone parameters did not move: bert.layer.query.weight",
        "the optimizer does not hold it",
    ),
    Judged("backbone_changes", "one stays under SGD", sgd(change=0.0, start=1.0), "1 of 3 backbone parameters"),
    Judged(
        "backbone_changes",
        "all stay",
        record(parameters=tuple(one.model_copy(update={"change": 0.0}) for one in PARAMETERS)),
        "none of 3 backbone parameters moved",
        "bert.embeddings.weight has a gradient (0.1)",
    ),
    Judged(
        "backbone_changes",
        "detached from the head",
        record(parameters=tuple(one.model_copy(update={"change": 0.0, "gradient": None}) for one in PARAMETERS)),
        "none of 3",
        "takes no part in the loss",
    ),
    Judged(
        "backbone_changes",
        "the optimizer never steps",
        record(
            parameters=tuple(one.model_copy(update={"change": 0.0, "gradient": None}) for one in PARAMETERS),
            steps={"learning_rate": (NAN,) * 8},
        ),
        "none of 3",
        "the optimizer never steps",
    ),
    Judged(
        "backbone_changes",
        "frozen",
        record(parameters=tuple(one.model_copy(update={"trainable": one.head}) for one in PARAMETERS)),
        "all 3 backbone parameters are frozen",
        "requires_grad is False",
    ),
    Judged("backbone_changes", "NaN", backbone(change=NAN), "bert.layer.query.weight is not finite"),
    Judged(
        "backbone_changes",
        "the rate is too low for most",
        record(
            parameters=tuple(
                one if one.head or "query" in one.name else one.model_copy(update={"start": 1e5, "change": 0.0})
                for one in PARAMETERS
            )
        ),
        "backbone parameters the update is lost by rounding: most weights",
        "the declared learning rate is too low",
    ),
    Judged(
        "loops_agree",
        "other weights",
        pair(checkpoint={"digest": "7" * 64}),
        "cpu-custom and cpu-trainer: initial weights differ: digest 555555555555 and 777777777777",
        "before the seed is set",
    ),
    Judged(
        "loops_agree",
        "sums of micro-batches that are other sums",
        adding_up(0.6 + 2e-4),
        "loss differs first at step 4: 0.6 and 0.6002, allowed 0.0001",
    ),
    Judged(
        "loops_agree",
        "other labels",
        pair(steps={"digest": digests(4, labels="other")}),
        "batches differ first at step 5, in labels",
        "labels that do not travel with their example",
    ),
    Judged(
        "loops_agree",
        "another order",
        pair(
            steps={
                "digest": digests(2, labels="other", input_ids="other"),
                "examples": (*HEALTHY.steps.examples[:2], (3, 2), *HEALTHY.steps.examples[3:]),
            }
        ),
        "batches differ first at step 3, in input_ids, labels (examples 0 1 and 3 2)",
        "another order",
    ),
    Judged(
        "loops_agree",
        "a tensor that the other lacks",
        pair(steps={"digest": digests(0, attention_mask="more")}),
        "at step 1, in attention_mask",
    ),
    Judged(
        "loops_agree",
        "another rate",
        pair(steps={"learning_rate": at(HEALTHY.steps.learning_rate, 1, RATE / 2)}),
        "learning rate differs first at step 2: 0.001 and 0.0005",
        "schedule",
    ),
    Judged(
        "loops_agree",
        "one optimizer never steps",
        pair(steps={"learning_rate": (NAN,) * 8}),
        "learning rate differs first at step 1: 0.001 and 0",
        "does not step",
    ),
    Judged(
        "loops_agree",
        "another loss",
        pair(steps={"loss": losses(3, 0.6 + 2e-5)}),
        "loss differs first at step 4: 0.6 and 0.60002, allowed 1e-05",
        "the same batch from the same weights",
    ),
    Judged(
        "loops_agree",
        "fewer steps",
        (case("cpu-custom"), case("cpu-trainer", steps=steps(*HEALTHY.steps.loss[:5]))),
        "steps differ: 8 and 5",
        "stops early",
    ),
    Judged(
        "loops_agree",
        "on one device only",
        (*pair(), case("cuda-custom"), case("cuda-trainer", steps={"loss": losses(3, 0.9)})),
        "cuda-custom and cuda-trainer: loss differs first at step 4",
    ),
    Judged(
        "loops_agree",
        "a tolerance of its own",
        tuple(
            record(one, invariants={"loops_agree": {"tolerance": 1e-7}})
            for one in pair(steps={"loss": losses(3, 0.6 + 2e-7)})
        ),
        "allowed 1e-07",
    ),
    Judged(
        "devices_agree",
        "another loss",
        pair("cuda-custom", probes={"replay": {"loss": [0.7, 0.65, 0.61, 0.55]}}),
        "cpu-custom and cuda-custom: loss without dropout differs first at step 3: 0.6 and 0.61, allowed 0.001",
        "precision",
    ),
    Judged(
        "devices_agree",
        "NaN on one",
        pair("cuda-custom", probes={"replay": {"loss": [0.7, NAN, NAN, NAN]}}),
        "step 2: 0.65 and nan",
    ),
    Judged(
        "devices_agree",
        "NaN on both",
        (
            case("cpu-custom", probes={"replay": {"loss": [NAN]}}),
            case("cuda-custom", probes={"replay": {"loss": [NAN]}}),
        ),
        "step 1: nan and nan",
    ),
    Judged(
        "devices_agree", "other weights", pair("cuda-custom", checkpoint={"digest": "7" * 64}), "initial weights differ"
    ),
    Judged(
        "devices_agree",
        "other batches",
        pair("cuda-custom", steps={"digest": digests(4, labels="other")}),
        "batches differ first at step 5, in labels",
    ),
    Judged(
        "devices_agree",
        "fewer steps replayed",
        pair("cuda-custom", probes={"replay": {"loss": [0.7]}}),
        "loss without dropout: 4 and 1 steps",
    ),
)

NOT_APPLICABLE = (
    Judged("trains", "skipped", record(outcome="skipped", reason="no CUDA device"), "no CUDA device"),
    Judged(
        "loss_decreases",
        "NaN is another law's",
        record(steps={"loss": losses(6, NAN)}),
        "the loss is nan at step 7: see loss_finite",
    ),
    Judged(
        "padding_mask_correct",
        "no row holds its text",
        record(
            batches=(Batch(step=0, examples=(1,), tensors={"input_ids": [[2, 31, 3]], "attention_mask": [[1, 1, 1]]}),)
        ),
        "see tokens_match_tokenizer",
    ),
    Judged(
        "padding_mask_correct",
        "a row lost",
        rows("input_ids", [[2, 20, 21, 22, 23, 3]]),
        "1 rows reached the model, the loader drew 2 examples: see tokens_match_tokenizer",
    ),
    Judged("head_is_new", "random weights", record(checkpoint={"pretrained": False}), "every weight is random"),
    Judged(
        "head_changes",
        "nothing is new",
        record(parameters=tuple(one.model_copy(update={"furthest": None}) for one in PARAMETERS)),
        "nothing is newly initialised",
    ),
    Judged("head_changes", "NaN is another law's", record(steps={"loss": losses(6, NAN)}), "see loss_finite"),
    Judged("head_changes", "the only rate is 0", trained([0.7], settings={"train.warmup_steps": 5}), "warm-up"),
    Judged(
        "backbone_changes",
        "there is none",
        record(parameters=tuple(one for one in PARAMETERS if one.head)),
        "no backbone",
    ),
    Judged("backbone_changes", "NaN is another law's", record(steps={"loss": losses(6, INF)}), "see loss_finite"),
    Judged("loops_agree", "one case", (case("cpu-custom"),), "no two cases differ in train.loop alone"),
    Judged(
        "loops_agree",
        "more than the loop differs",
        (case("cpu-custom"), case("cpu-trainer", settings={"train.steps": 9})),
        "no two cases differ",
    ),
    Judged(
        "loops_agree",
        "one crashed",
        pair(outcome="crashed", reason="ValueError: no"),
        "fewer than two such cases finished: cpu-trainer: ValueError: no",
    ),
    Judged(
        "loops_agree",
        "one is NaN",
        pair(steps={"loss": losses(6, NAN)}),
        "cpu-trainer: loss is nan at step 7, see loss_finite",
    ),
    Judged("devices_agree", "one case", (case("cpu-custom"),), "no two cases differ in device alone"),
    Judged(
        "devices_agree",
        "no such device",
        pair("cuda-custom", outcome="skipped", reason="no CUDA device"),
        "cuda-custom: no CUDA device",
    ),
)

INVALID = (
    Judged("loss_finite", "no loss", record(steps=Steps()), "no loss was seen"),
    Judged("loss_decreases", "too few steps", trained([0.7, 0.2, 0.1]), "3 steps cannot fill two windows of 2"),
    Judged("loss_decreases", "one step", trained([0.7]), "1 step cannot fill two windows"),
    Judged("no_graph_kept", "one step", record(steps={"graphs": (0,)}), "1 step cannot show graphs"),
    Judged(
        "loss_decreases",
        "rises within its scatter",
        trained([0.7, 9.0, 2.0] * 2 + [1.0, 30.0, 4.0] * 2),
        ("the first 3 steps 3.9000, of the last 3 11.6667", "leaves", "windows of", "steps would tell"),
    ),
    Judged(
        "loss_decreases", "too few to say that it stays", trained([0.69, 0.7, 0.68, 0.7]), "4 steps are too few to say"
    ),
    Judged(
        "loss_decreases",
        "it scatters",
        trained([0.7, 0.78] * 6 + [0.66, 0.74] * 2),
        ("the last 4 0.7000", "at most 0.6660", "leaves 0.12"),
    ),
    Judged(
        "loss_decreases",
        "still warming up",
        trained([0.7] * 8, settings={"train.warmup_steps": 300}),
        "the warm-up of 300 steps is not over after 8",
    ),
    Judged(
        "loss_decreases",
        "windows overlap",
        record(invariants={"loss_decreases": {"window": 5}}),
        "8 steps cannot fill two windows of 5",
    ),
    Judged("padding_mask_correct", "no batch", record(batches=()), "no batch was kept"),
    Judged("padding_mask_correct", "no tokenizer", record(tokenizer=None), "no batch was kept"),
    Judged(
        "padding_mask_correct",
        "no examples",
        record(examples=EXAMPLES[1:]),
        "step 1: example 0 is missing from the evidence",
    ),
    Judged(
        "padding_mask_correct",
        "no ids",
        rows("input_ids", None),
        "step 1: no input_ids among the model's arguments (attention_mask, labels)",
    ),
    Judged(
        "padding_mask_correct",
        "a mask of pairs",
        rows("attention_mask", [[[1] * 6] * 6, [[1] * 6] * 6]),
        "attention_mask has 3 dimensions",
    ),
    Judged("padding_mask_correct", "one flat row", rows("input_ids", [2, 20, 3]), "input_ids has 1 dimensions"),
    Judged(
        "tokens_match_tokenizer",
        "no batch",
        record(batches=(Batch(step=0, examples=(), tensors={"input_ids": []}),)),
        "no batch was kept",
    ),
    Judged("tokens_match_tokenizer", "no examples", record(examples=()), "example 0 is missing from the evidence"),
    Judged(
        "tokens_match_tokenizer",
        "nothing seen",
        record(batches=(Batch(step=0, examples=(0,), tensors={}),)),
        "no input_ids among the model's arguments (none)",
    ),
    Judged("head_is_new", "no checkpoint", record(checkpoint=None), "no checkpoint was recorded"),
    Judged("head_is_new", "no head", record(checkpoint={"head": ()}), "no parameter outside its backbone"),
    Judged("head_changes", "no loss", record(steps=Steps()), "no loss was seen"),
    Judged("backbone_changes", "no loss", record(steps=Steps()), "no loss was seen"),
    Judged(
        "loops_agree",
        "no digest",
        pair(checkpoint={"digest": ""}),
        "cpu-trainer: the digest of the initial weights is missing",
    ),
    Judged(
        "loops_agree",
        "no checkpoint",
        pair(checkpoint=None),
        "cpu-trainer: the digest of the initial weights is missing",
    ),
    Judged(
        "loops_agree", "no steps", tuple(record(one, steps=Steps()) for one in pair()), "cpu-custom: no loss was seen"
    ),
    Judged(
        "loops_agree",
        "no batches",
        pair(steps={"digest": ({},) * 8}),
        "cpu-trainer: the batch of 8 steps is known for 0",
    ),
    Judged(
        "loops_agree",
        "no rates",
        pair(steps={"learning_rate": ()}),
        "cpu-trainer: the learning rate of 8 steps is known for 0",
    ),
    Judged(
        "devices_agree",
        "no replay",
        pair("cuda-custom", probes={"replay": {}}),
        "cuda-custom: a replay of the first steps is missing",
    ),
    Judged(
        "devices_agree",
        "the replay failed",
        pair("cuda-custom", probes={"replay": {"error": "ValueError: no"}}),
        "cuda-custom: the replay of the first steps failed: ValueError: no",
    ),
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
    """Where a law has nothing to say, it says why."""
    check(judged, "not applicable")


@each(*INVALID)
def test_cannot_judge(judged: Judged) -> None:
    """Where evidence is missing, a law says which: it is neither kept nor broken."""
    check(judged, "invalid")


@pytest.mark.parametrize("law", BY_NAME)
def test_law_has_a_record_that_keeps_it_and_one_that_breaks_it(law: str) -> None:
    """No law is left without an example of either kind."""
    import test_laws_adapter
    import test_laws_equivalence
    import test_laws_evaluation
    import test_laws_label
    import test_laws_logic
    import test_laws_step
    import test_resume

    others = (
        test_laws_logic,
        test_laws_label,
        test_laws_adapter,
        test_laws_equivalence,
        test_laws_evaluation,
        test_laws_step,
        test_resume,
    )
    assert law in {judged.law for judged in (*ACCEPTED, *(one for module in others for one in module.ACCEPTED))}
    assert law in {judged.law for judged in (*REJECTED, *(one for module in others for one in module.REJECTED))}


@pytest.mark.parametrize("law", LAWS, ids=list(BY_NAME))
def test_law_can_be_turned_off(law: Law) -> None:
    """An experiment that turns a law off is not judged by it, however wrong its training is."""
    import test_laws_adapter
    import test_laws_equivalence
    import test_laws_evaluation
    import test_laws_label
    import test_laws_logic
    import test_laws_step
    import test_resume

    others = (
        test_laws_logic,
        test_laws_label,
        test_laws_adapter,
        test_laws_equivalence,
        test_laws_evaluation,
        test_laws_step,
        test_resume,
    )
    wrong = next(
        judged.evidence
        for judged in (*REJECTED, *(one for module in others for one in module.REJECTED))
        if judged.law == law.name
    )
    off = {"invariants": {law.name: False}}
    records = record(wrong, **off) if isinstance(wrong, Record) else tuple(record(one, **off) for one in wrong)
    found = verdict(law.name, records)
    assert (found.outcome, found.message) == ("not applicable", "turned off by the experiment")


def test_case_that_turns_an_agreement_off_is_left_out() -> None:
    """A case that is meant to differ does not keep the others from being compared."""
    odd = case("cpu-accelerate", steps={"loss": FLAT}, invariants={"loops_agree": False})
    assert verdict("loops_agree", (odd, *pair())).outcome == "held"
    assert verdict("loops_agree", (odd, *pair(steps={"loss": losses(3, 0.9)}))).outcome == "broken"


@pytest.mark.parametrize(
    "law", [law for law in LAWS if law.axis is None and not law.on_failure], ids=lambda law: law.name
)
@pytest.mark.parametrize("outcome", ["crashed", "out of memory", "interrupted"])
def test_unfinished_case_is_judged_by_trains_alone(law: Law, outcome: str) -> None:
    """The other laws of a case that came to no end point at `trains`."""
    found = verdict(law.name, record(outcome=outcome, reason="why"))
    assert found.outcome == "not applicable"
    assert found.message == f"the case did not finish ({outcome}): see cpu-custom::trains"


@pytest.mark.parametrize("law", [law for law in LAWS if law.axis is None], ids=lambda law: law.name)
def test_skipped_case_is_judged_by_no_law(law: Law) -> None:
    """Every law of a case on a device that is not there gives the reason of the skip."""
    found = verdict(law.name, record(outcome="skipped", reason="no CUDA device"))
    assert (found.outcome, found.message) == ("not applicable", "no CUDA device")


@pytest.mark.parametrize("change", [{}, {"steps": {"loss": losses(3, 0.9)}}, {"outcome": "crashed", "reason": "no"}])
def test_order_of_records_does_not_matter(change: dict[str, Any]) -> None:
    """Laws that compare cases say the same whichever record comes first, in every file."""
    other = {"experiment": "experiments/b.yaml"}
    records = (*pair(**change), case("cuda-custom"), case("cpu-custom", **other), case("cpu-trainer", **other))
    expected = judge_together(records)
    assert {found.about for found in expected} == {"experiments/a.yaml", "experiments/b.yaml"}
    for order in itertools.permutations(records):
        assert judge_together(order) == expected


def test_files_are_judged_apart() -> None:
    """Cases of different experiment files are not compared with each other."""
    records = case("cpu-custom"), case("cpu-trainer", experiment="experiments/b.yaml", steps={"loss": FLAT})
    assert {found.outcome for found in judge_together(records)} == {"not applicable"}


def test_judging_needs_no_torch() -> None:
    """Laws, reports and the store work where torch and transformers are not even installed."""
    code = (
        "import harness.laws, harness.report, harness.store, sys; print({'torch', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
