"""The laws over the twin, the optimizer, the data and what is saved, on records written by hand."""

import math
from typing import Any

import pytest
import torch
from records import HEALTHY, PROBES, RATE, TWIN_STEP, batch, case, record, trained
from test_laws import Judged, check, each, rows, verdict

from harness.laws import judge
from harness.record import Group, Record, Row
from harness.training.order import by_length


def twin(number: int, **changes: Any) -> Record:
    """The healthy record, but for one step of the loop on the twin, counted from 1."""
    steps = [{**TWIN_STEP, **changes} if place == number else TWIN_STEP for place in (1, 2, 3)]
    return record(probes={"steps": {"steps": steps}})


def probe(name: str, **changes: Any) -> Record:
    """The healthy record, but for what a probe left."""
    return record(probes={name: {**PROBES[name], **changes}})


def again(device: str, *losses: list[float]) -> Record:
    """Two trainings of one seed on a device, with these losses, that end in other weights."""
    other = probe("determinism", second="c" * 64, losses=[*losses])
    return other.model_copy(update={"settings": {**other.settings, "device": device}})


def group(**changes: Any) -> Record:
    """The healthy record, but for the optimizer's one group."""
    assert HEALTHY.optimizer is not None
    return record(optimizer={"groups": (Group(**{**dict(HEALTHY.optimizer.groups[0]), **changes}),)})


def drawn(*batches: tuple[int, ...], **settings: Any) -> Record:
    """A training that drew these examples."""
    base = trained([0.7] * len(batches), settings={f"train.{name}": value for name, value in settings.items()})
    return record(base, steps={"examples": batches})


def sorted_by_length() -> Record:
    """Two epochs of 24 examples, in all but the same order: only examples of one length change places."""
    orders = [*range(24)], [1, 0, *range(2, 24)]
    batches = tuple(tuple(order[first : first + 2]) for order in orders for first in range(0, 24, 2))
    settings = {"train.shuffle": True}
    return record(trained([0.7] * len(batches), settings=settings), steps={"examples": batches}, data={"rows": 24})


def made_once(size: int = 4, *, mixed: bool = False) -> Record:
    """Two epochs of 24 examples in batches that keep together, in any order; in a mixed one two examples swap."""
    batches = [tuple(range(first, min(first + size, 24))) for first in range(0, 24, size)]
    orders = [batches, [*batches[1:-1][::-1], batches[0], batches[-1]]]
    if mixed:
        one, other, *rest = orders[1]
        orders[1] = [(*one[:-1], other[-1]), (*other[:-1], one[-1]), *rest]
    settings = {"train.shuffle": True, "train.batch_size": size}
    drawn = tuple(batch for order in orders for batch in order)
    return record(trained([0.7] * len(drawn), settings=settings), steps={"examples": drawn}, data={"rows": 24})


def streamed(*batches: tuple[int, ...], rows: int | None = None) -> Record:
    """A training that drew these examples of a stream, whose end it reached where the number of rows is known."""
    base = trained([0.7] * len(batches), settings={"data.streaming": True, "train.shuffle": True})
    return record(base, steps={"examples": batches}, data={"rows": rows})


def grouped() -> Record:
    """Two epochs of 24 examples in batches of 4 that keep together, the batches in another order."""
    orders = (0, 3, 1, 5, 2, 4), (4, 1, 5, 0, 3, 2)
    batches = tuple(tuple(range(4 * place, 4 * place + 4)) for order in orders for place in order)
    settings = {"train.shuffle": True, "train.batch_size": 4, "train.batching": "grouped"}
    return record(trained([0.7] * len(batches), settings=settings), steps={"examples": batches}, data={"rows": 24})


def grouped_with_a_rest() -> Record:
    """Many epochs of 31 examples in batches of 8 by length, whose rest, the shortest, comes last in each."""
    lengths, size = list(range(31)), 8
    orders = [by_length(lengths, size, torch.Generator().manual_seed(epoch)) for epoch in range(40)]
    batches = tuple(tuple(order[first : first + size]) for order in orders for first in range(0, 31, size))
    settings = {"train.shuffle": True, "train.batch_size": size, "train.batching": "grouped"}
    return record(trained([0.7] * len(batches), settings=settings), steps={"examples": batches}, data={"rows": 31})


def beginning(*second: int) -> Record:
    """The healthy record, whose tokenizer begins each text with a 2; what comes second, in the last texts 2 as well."""
    ids = (*second, *[2] * 4)[: len(HEALTHY.examples)]
    examples = tuple(
        one.model_copy(update={"input_ids": (2, token, *one.input_ids[2:])})
        for one, token in zip(HEALTHY.examples, ids, strict=True)
    )
    batches = tuple(batch(*(examples[index] for index in one.examples), step=one.step) for one in HEALTHY.batches)
    return record(examples=examples, batches=batches, tokenizer={"begin_token_id": 2})


def undrawn() -> Record:
    """A decoder without dropout goes on from a checkpoint that has all its weights, in the order of the data."""
    base = probe("determinism", other_seed=PROBES["determinism"]["first"])
    return record(base, checkpoint={"missing": ()}, modes={"stochastic": 0}, masking=None)


def found(**data: Any) -> Record:
    """The healthy record, but for this in its data."""
    return record(data=data)


def columns(**found: Any) -> Record:
    """The healthy record, whose tokenizer gives token_type_ids of 0 with each example, and what the model got of it."""
    examples = tuple(
        one.model_copy(update={"columns": {"token_type_ids": (0,) * len(one.input_ids)}}) for one in HEALTHY.examples
    )
    batches = tuple(one.model_copy(update={"tensors": {**one.tensors, **found}}) for one in HEALTHY.batches)
    return record(examples=examples, batches=batches)


def pairs(last: int | None, *, reads: bool = True) -> Record:
    """The healthy record, whose examples are pairs to a model that reads token types: the last token's is this one, all
    others are 0; or the tokenizer gives none.
    """

    def types(index: int, width: int) -> tuple[int, ...]:
        size = len(HEALTHY.examples[index].input_ids)
        return (*(0,) * (size - 1), last or 0, *(0,) * (width - size))

    examples, batches = list(HEALTHY.examples), list(HEALTHY.batches)
    for place, one in enumerate(examples):
        own = {} if last is None else {"token_type_ids": types(place, len(one.input_ids))}
        examples[place] = one.model_copy(update={"pair": True, "columns": own})
    for place, made in enumerate(batches):
        width = len(made.tensors["input_ids"][0])
        own = {} if last is None else {"token_type_ids": tuple(types(index, width) for index in made.examples)}
        batches[place] = made.model_copy(update={"tensors": {**made.tensors, **own}})
    return record(examples=tuple(examples), batches=tuple(batches), tokenizer={"token_types": reads})


def explored(*texts: str, error: str = "", trial: Record = HEALTHY) -> Record:
    """The healthy record, but for what exploring found: these texts, and the record or the error that they leave."""
    found = {"sequences": list(texts), "batch_size": 2, "law": "padding_mask_correct", "known": False, "error": error}
    left = None if error else trial.model_dump(mode="json", exclude_defaults=True)
    return probe("exploration", found={**found, "record": left})


def warming(*rates: float) -> Record:
    """A training with these learning rates, of which four steps are declared as warm-up."""
    return record(trained([0.7] * len(rates), settings={"train.warmup_steps": 4}), steps={"learning_rate": rates})


_BATCH = HEALTHY.batches[0]
_MASK = ((1, 1, 0, 1, 1, 1), (1, 1, 1, 0, 0, 0))
HOLE = record(batches=(_BATCH.model_copy(update={"tensors": {**_BATCH.tensors, "attention_mask": _MASK}}),))
"""Real tokens of its first row are masked."""

ACCEPTED = (
    Judged(
        "holds_for_any_text",
        "nothing found",
        HEALTHY,
        "20 data sets, 1 found before; padding_changes_nothing could have failed in 9",
    ),
    Judged("loss_is_the_declared_one", "equal", HEALTHY, "3 steps; gradients differ by at most 5e-08"),
    Judged("loss_is_the_declared_one", "a rounding apart", twin(2, loss=0.7 + 9e-6, logits_gradient=9e-5)),
    Judged("gradient_is_the_declared_one", "equal", HEALTHY, "3 steps; they differ by at most 1e-07"),
    Judged("update_is_the_declared_one", "equal", HEALTHY, "3 steps of AdamW"),
    Judged("update_is_the_declared_one", "nothing to move at a rate of 0", twin(1, update=0.0, update_expected=0.0)),
    Judged("update_is_the_declared_one", "no nearer than fp32", twin(1, update=4e-5, update_rounding=4e-5)),
    Judged("optimizer_covers_trainable", "all, once, as declared", HEALTHY, "5 parameters in 1 group"),
    Judged(
        "labels_in_range", "their names", found(**dict.fromkeys(("label_names", "config_label_names"), ("no", "yes")))
    ),
    Judged("schedule_followed", "constant", HEALTHY, "8 steps, last at 0.001"),
    Judged("schedule_followed", "warm-up", warming(0.0, RATE / 4, RATE / 2, 3 * RATE / 4, RATE, RATE)),
    Judged("labels_travel", "each with its own", HEALTHY, "4 rows"),
    Judged("every_example_once", "in the order of the data", HEALTHY, "4 whole epochs of 4 examples"),
    Judged("every_example_once", "shuffled", drawn((2, 0), (1, 3), (3, 0), (2, 1), shuffle=True), "2 whole epochs"),
    Judged("tokens_match_tokenizer", "its columns too", columns(token_type_ids=[[0] * 6] * 2), "4 rows"),
    Judged("tokens_match_tokenizer", "pairs told apart", pairs(1), "4 rows"),
    Judged("tokens_match_tokenizer", "pairs of a model without token types", pairs(None, reads=False), "4 rows"),
    Judged("every_example_once", "an epoch in part", drawn((2, 0), shuffle=True), "2 of 4 examples"),
    Judged("every_example_once", "a stream", streamed((3, 9), (4, 12)), "4 examples of a stream"),
    Judged("every_example_once", "a stream again", streamed((1, 0), (2,), (0, 2), (1,), rows=3), "2 whole epochs of 3"),
    Judged("every_example_once", "a rest left out", drawn((2, 0), (1, 3), batch_size=2, drop_last=True, shuffle=True)),
    Judged(
        "every_example_once",
        "a rest of one left out",
        drawn((2, 0, 1), (3, 0, 2), batch_size=3, drop_last=True, shuffle=True),
        "2 whole epochs of 3 examples, the 1 that fill no batch left out",
    ),
    Judged("every_example_once", "grouped", grouped(), "2 whole epochs of 24"),
    Judged("every_example_once", "batches alike but for two examples", made_once(mixed=True), "2 whole epochs of 24"),
    Judged(
        "every_example_once",
        "the same order by chance",  # 4 examples have 24 orders
        drawn((2, 0), (1, 3), (2, 0), (1, 3), shuffle=True),
        "2 whole epochs of 4",
    ),
    Judged(
        "every_example_once",
        "the same order of two groups by chance",
        drawn((2, 0), (1, 3), (2, 0), (1, 3), (2, 0), (1, 3), shuffle=True, batching="grouped"),
        "3 whole epochs of 4",
    ),
    Judged(
        "every_example_once",
        "the same batches by chance",  # 4 examples fall into two batches in 3 ways
        drawn((2, 0), (1, 3), (1, 3), (0, 2), shuffle=True),
        "2 whole epochs of 4",
    ),
    Judged("labels_in_range", "all classes", HEALTHY, "4 rows, 2 of 2 classes"),
    Judged("labels_in_range", "one class", found(labels={"1": 4}, classes_declared=False), "1 of 2 classes"),
    Judged("labels_in_range", "a class without a row", found(classes=3, labels={"1": 2, "2": 2}), "2 of 3 classes"),
    Judged("labels_in_range", "those drawn", found(rows=1000), "4 rows drawn of 1000, 2 of 2 classes"),
    Judged("labels_in_range", "few of one class", found(labels={"0": 11}, rows=11, seen=11), "1 of 2 classes"),
    Judged("labels_in_range", "drawn of one class", found(labels={"0": 699}, rows=9999, seen=699), "1 of 2 classes"),
    Judged(
        "labels_in_range",
        "there is one class",
        record(found(labels={"0": 12}, rows=12, seen=12, classes=1), batches=()),
        "1 of 1",
    ),
    Judged("tokens_match_tokenizer", "a text that begins twice", beginning(2, 2, 1), "4 rows"),
    Judged("every_example_once", "grouped, with a rest", grouped_with_a_rest(), "40 whole epochs of 31"),
    Judged("no_conflicting_duplicates", "none", HEALTHY, "0 of 4 rows"),
    Judged("no_conflicting_duplicates", "a few", found(seen=1000, rows=None, conflicting=10), "10 of 1000 rows"),
    Judged("tokens_are_known", "all", HEALTHY, "0 of 10 tokens unknown in 4 rows"),
    Judged("tokens_are_known", "nearly all", found(tokens=100, unknown_tokens=5), "5 of 100 tokens unknown"),
    Judged("texts_are_whole", "all", HEALTHY, "0 of 4 rows cut"),
    Judged("texts_are_whole", "nearly all", found(seen=10, rows=10, cut=1), "1 of 10 rows cut"),
    Judged("dropout_on_in_training", "on", HEALTHY, "3 modules"),
    Judged("no_graph_kept", "none", HEALTHY, "at most 0 alive"),
    Judged("no_graph_kept", "one lives until the next", record(steps={"graphs": (0, *(1,) * 7)}), "at most 1 alive"),
    Judged("save_reload_equal", "equal", HEALTHY, "weights, logits, tokenizer and label names"),
    Judged("pretraining_shows", "a language model", HEALTHY, "loss 2.90 over 146 tokens (28% of a guess among 30522)"),
    Judged("padding_changes_nothing", "rounding", HEALTHY, "4 examples of 3 to 6 tokens move by 3e-07"),
    Judged("examples_stay_apart", "exactly 0", HEALTHY, "4 examples"),
    Judged("every_token_counts", "all do", HEALTHY, "18 tokens of 4 examples"),
    Judged("overfits_one_batch", "learnt", HEALTHY, "from 0.7000 to 0.0300 in 4 steps"),
    Judged("deterministic", "bit for bit", HEALTHY, "8 steps"),
    Judged("deterministic", "rounding on CUDA", again("cuda", [0.7, 0.6], [0.7, 0.6001]), "differ by rounding"),
)

REJECTED = (
    Judged(
        "holds_for_any_text",
        "a hole in the mask",
        explored("[PAD]", "\u202e", trial=HOLE),
        "'[PAD]', '\\u202e' in batches of 2: padding_mask_correct: step 1, row 0",
        "real tokens are masked",
    ),
    Judged(
        "holds_for_any_text",
        "a crash on a long text",
        explored("so " * 40, error="IndexError: no position"),
        "... (120 characters, 40 words) in batches of 2: it crashes: IndexError: no position",
        "longer than the model has positions for",
    ),
    Judged(
        "loss_is_the_declared_one",
        "scaled",
        twin(1, loss=1.4, logits_gradient=1.0, logits_gradient_scale=2.0),
        ("step 1 on the twin", "loss 1.4, cross-entropy of the same logits 0.7", "differ by 1, allowed 0.0001"),
        "scaled by 2",
    ),
    Judged("loss_is_the_declared_one", "value agrees, gradient not", twin(2, logits_gradient=0.66), "step 2"),
    Judged("loss_is_the_declared_one", "maximised", twin(1, loss=-0.7, logits_gradient_scale=-1.0), "", "the sign"),
    Judged("loss_is_the_declared_one", "softmax twice", twin(1, logits_are_probabilities=True), "", "a softmax before"),
    Judged("loss_is_the_declared_one", "no gradient", twin(1, logits_gradient="NaN"), "differ by nan"),
    Judged(
        "gradient_is_the_declared_one",
        "not cleared",
        twin(2, gradient=0.9, gradient_norm=1.9),
        ("step 2 on the twin", "differ by 0.9", "most in bert.layer.query.weight", "norm 1.9, expected 1.2"),
        "not cleared",
    ),
    Judged("gradient_is_the_declared_one", "scaled", twin(1, gradient=3.0, gradient_norm=4.8), "", "scaled by 4"),
    Judged(
        "gradient_is_the_declared_one",
        "none",
        twin(1, gradient=0.2, gradient_missing=["classifier.bias"]),
        "none at all: classifier.bias",
        "frozen, or detached",
    ),
    Judged(
        "gradient_is_the_declared_one",
        "frozen",
        twin(1, unreached=["bert.embeddings.weight"]),
        "1 parameter without a gradient, on which the logits depend: bert.embeddings.weight",
        "frozen, or detached",
    ),
    Judged(
        "loss_is_the_declared_one", "never stepped", twin(2, stepped=False), "step 2 on the twin: the optimizer did"
    ),
    Judged(
        "optimizer_covers_trainable",
        "frozen in the midst",
        record(optimizer={"toggled": ("bert.embeddings.weight",)}),
        "1 parameter trained in a part of the training only: bert.embeddings.weight",
        "requires_grad in the midst",
    ),
    Judged(
        "optimizer_covers_trainable",
        "weights set back",
        record(optimizer={"written": ("bert.embeddings.weight",)}),
        "1 parameter written into between two steps: bert.embeddings.weight",
        "a checkpoint is loaded",
    ),
    Judged("update_is_the_declared_one", "a new optimizer", twin(3, state_of_step=0), "is that after 0 steps", "anew"),
    Judged(
        "gradient_is_the_declared_one",
        "clipped",
        twin(3, gradient=0.999, gradient_norm=1.0, reference_norm=4915.0, amplified=4096.0),
        "step 3 on the twin (all made 4096 times larger): gradients differ",
        "clipped to a norm of 1, which is not declared",
    ),
    Judged("gradient_is_the_declared_one", "NaN", twin(3, gradient=math.nan), "differ by nan"),
    Judged("update_is_the_declared_one", "another decay", twin(1, update=1e-3), "differs by 0.0025", "weight decay"),
    Judged("update_is_the_declared_one", "skipped", twin(2, update=0.4), "step 2 on the twin", "did not move"),
    Judged(
        "update_is_the_declared_one",
        "another rate",
        twin(1, update=0.2, rate=RATE / 2),
        "learning rate used 0.0005, declared 0.001",
        "learning rate is not the declared one",
    ),
    Judged("update_is_the_declared_one", "NaN", twin(1, update=math.nan)),
    Judged(
        "optimizer_covers_trainable",
        "left out",
        record(optimizer={"outside": ("classifier.bias",)}),
        "1 trainable parameters are not in the optimizer: classifier.bias",
        "left out of its parameter groups",
    ),
    Judged(
        "optimizer_covers_trainable",
        "copies",
        record(optimizer={"outside": ("classifier.bias",), "strangers": 1}),
        "It holds 1 tensors that are not the model's",
        "made from other tensors",
    ),
    Judged("optimizer_covers_trainable", "twice", record(optimizer={"twice": ("classifier.bias",)}), "more than once"),
    Judged("optimizer_covers_trainable", "decay", group(weight_decay=0.0), "is 0.0, declared 0.01"),
    Judged(
        "optimizer_covers_trainable", "betas", group(betas=(0.9, 0.99)), "betas is [0.9, 0.99], declared [0.9, 0.999]"
    ),
    Judged("optimizer_covers_trainable", "a variant", group(variants=("amsgrad",)), "amsgrad is on, which is not"),
    Judged("optimizer_covers_trainable", "eps", group(eps=1e-3), "eps is 0.001, declared 1e-08"),
    Judged(
        "schedule_followed",
        "decays",
        record(steps={"learning_rate": (*(RATE,) * 7, RATE / 2)}),
        "step 8 of 8 used a learning rate of 0.0005, declared 0.001",
        "stepped another number of times",
    ),
    Judged("schedule_followed", "no warm-up", warming(RATE, RATE, RATE, RATE, RATE), "step 1 of 5"),
    Judged("schedule_followed", "never stepped", record(steps={"learning_rate": (math.nan,) * 8}), "", "did not step"),
    Judged(
        "labels_travel",
        "mixed up",
        rows("labels", [0, 1]),
        "step 1, row 0 (example 0): label 0, declared 1",
        "ordered apart",
    ),
    Judged("labels_travel", "none", rows("labels", None), "no labels among the model's arguments"),
    Judged("labels_travel", "too few", rows("labels", [1]), "1 labels for 2 examples"),
    Judged(
        "every_example_once",
        "with replacement",
        drawn((0, 1), (1, 3), shuffle=True),
        "epoch 1: example 1 was drawn 2 times, example 2 never",
        "with replacement",
    ),
    Judged(
        "every_example_once",
        "same order each epoch",
        drawn(*((2, 0), (1, 3)) * 6, shuffle=True),
        "all 6 epochs have the same order",
        "set_epoch",
    ),
    Judged(
        "every_example_once",
        "a batch too small",
        drawn((2, 0), (1,), (3,), shuffle=True),
        "step 2: 1 example in the batch, expected 2 (batch_size 2)",
        "multiply or divide it",
    ),
    Judged(
        "every_example_once",
        "a stream that begins again",
        streamed((3, 9), (4, 3)),
        "epoch 1: example 3 was drawn 2 times",
    ),
    Judged(
        "every_example_once",
        "a rest that is left out unasked",
        drawn((2, 0, 1), (3, 0, 2), batch_size=3, shuffle=True),
        "step 2: 3 examples in the batch, expected 1 (batch_size 3)",
    ),
    Judged(
        "every_example_once",
        "a rest that is not left out",
        drawn((2, 0, 1), (3,), batch_size=3, drop_last=True, shuffle=True),
        "step 2: 1 example in the batch, expected 3 (batch_size 3)",
    ),
    Judged(
        "labels_in_range",
        "counted from 1",
        found(outside=(Row(row=7, text="soup", note="label 2"),), labels={"1": 2, "2": 2}),
        "row 7 ('soup'): label 2: expected a label from 0 to 1",
        "counted from 1",
    ),
    Judged(
        "labels_in_range",
        "other names",
        found(label_names=("bad", "good"), config_label_names=("good", "bad")),
        "the classes are bad, good, and the model's config has good, bad",
        "names of other classes",
    ),
    Judged(
        "labels_in_range",
        "counted from 1, and nobody says how many there are",
        found(classes=3, classes_declared=False, labels={"1": 2, "2": 2}),
        "none of 4 rows has the label 0, and each from 1 to 2 occurs",
        "counted from 1",
    ),
    Judged(
        "labels_in_range",
        "the first rows of sorted ones",
        found(labels={"0": 12}, rows=12, seen=12),
        "12 rows: all have the label 0, of 2 classes",
        "sorted by label",
    ),
    Judged("labels_in_range", "of a stream", found(labels={"1": 700}, rows=None, seen=700), "all have the label 1"),
    Judged(
        "labels_in_range",
        "changed on the way",
        rows("labels", (-100, 0)),
        "step 1, row 0 (example 0): label -100, expected one from 0 to 1",
        "the collator",
    ),
    Judged(
        "no_conflicting_duplicates",
        "many",
        found(
            seen=100,
            rows=100,
            conflicting=2,
            conflicts=(Row(row=3, text="Soup", note="label 0"), Row(row=9, text="soup", note="label 1")),
        ),
        ("2 of 100 rows", "(allowed 1.0%)", "row 3 ('Soup'): label 0; row 9 ('soup'): label 1"),
        "joined to the wrong texts",
    ),
    Judged(
        "tokens_are_known",
        "many are not",
        found(unknown_tokens=1, most_unknown=(Row(row=2, text="S\u00fcp", note="1 of 4 tokens"),)),
        ("1 of 10 tokens are unknown (allowed 5.0%)", "row 2 ('S\u00fcp'): 1 of 4 tokens"),
        "another language or checkpoint",
    ),
    Judged(
        "texts_are_whole",
        "many are not",
        found(cut=1, most_cut=(Row(row=2, text="on and on", note="9 of 521 tokens cut off"),)),
        ("1 of 4 rows are cut to 512 tokens (allowed 10.0%)", "row 2 ('on and on'): 9 of 521 tokens cut off"),
        "train.max_length is too small",
    ),
    Judged(
        "tokens_match_tokenizer",
        "another checkpoint's tokenizer",
        record(tokenizer={"foreign": ("id 7 is 'soup', and 'bread' in the tokenizer that came with the checkpoint",)}),
        "id 7 is 'soup', and 'bread' in the tokenizer that came with the checkpoint (1 such id in the first texts)",
        "the model reads other words than were written",
    ),
    Judged(
        "tokens_match_tokenizer",
        "a chat template's begin token and one more",
        beginning(2, 2, 2),
        "all 4 texts begin with the begin token twice",
        "chat template",
    ),
    Judged("every_example_once", "batches made once", made_once(), "batches of all 2 epochs", "put together once"),
    Judged("every_example_once", "and one that is smaller", made_once(5), "batches of all 2 epochs"),
    Judged("every_example_once", "sorted by length", sorted_by_length(), "2 epochs are too much alike", "sorted"),
    Judged("every_example_once", "shuffled against the declaration", drawn((2, 0), (1, 3)), "train.shuffle is false"),
    Judged(
        "dropout_on_in_training",
        "off",
        record(modes={"step": 4, "off": ("bert.dropout", "dropout")}),
        "step 5: 2 of 3 such modules were in eval mode: bert.dropout, dropout",
        "model.train() is missing",
    ),
    Judged(
        "dropout_on_in_training",
        "another rate",
        record(modes={"changed": ("bert.dropout",)}),
        "1 module with another dropout than the checkpoint has: bert.dropout",
        "after loading",
    ),
    Judged(
        "dropout_on_in_training",
        "drawn again",
        record(modes={"redrawn": 3}),
        "step 4 draws the same random numbers",
        "sets the seed",
    ),
    Judged(
        "head_is_new",
        "changed after loading",
        record(checkpoint={"altered": ("bert.embeddings.weight",)}),
        "1 tensor changed between loading and the first step: bert.embeddings.weight",
        "drawn anew",
    ),
    Judged(
        "head_is_new",
        "drawn anew while loading",
        record(checkpoint={"compared": 3, "differing": ("bert.layer.query.weight",)}),
        "1 of 3 tensors are other than in the checkpoint's files: bert.layer.query.weight",
        "initialised again",
    ),
    Judged(
        "tokens_match_tokenizer",
        "a column is dropped",
        columns(),
        "step 1, row 0 (example 0: 'text 0'): no token_type_ids among the model's arguments",
        "the collator drops it",
    ),
    Judged(
        "tokens_match_tokenizer",
        "a column is made up",
        columns(token_type_ids=[[1] * 6] * 2),
        "token_type_ids is ",
        "makes another one",
    ),
    Judged(
        "tokens_match_tokenizer",
        "an argument is added",
        rows("position_ids", ((1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6))),
        "step 1: position_ids reached the model, which the tokenizer does not give",
        "the collator makes it itself",
    ),
    Judged(
        "tokens_match_tokenizer",
        "pairs without token types",
        pairs(None),
        "example 0 ('text 0') is a pair and has no token_type_ids",
        "model_input_names",
    ),
    Judged("tokens_match_tokenizer", "pairs of one type", pairs(0), "is a pair and has token_type_ids of 0 only"),
    Judged(
        "no_graph_kept",
        "all",
        record(steps={"graphs": tuple(range(8))}),
        "7 graphs of earlier steps are alive after step 8",
        "loss.detach()",
    ),
    Judged("save_reload_equal", "head lost", probe("saved", weights=["classifier.weight"]), "1 weights differ"),
    Judged("save_reload_equal", "does not load", probe("saved", failed="RuntimeError: no"), "does not load: Runtime"),
    Judged("save_reload_equal", "logits", probe("saved", logits=0.1), "logits differ by 0.1", "a buffer"),
    Judged("save_reload_equal", "tokenizer", probe("saved", tokens=["plain words"]), "reads 'plain words' differently"),
    Judged("save_reload_equal", "label names", probe("saved", settings=["id2label"]), "not saved: id2label"),
    Judged(
        "padding_changes_nothing",
        "more padding",
        probe("padding", more_padding=[1e-7, 0.05, 1e-7, 1e-7]),
        ("example 2 (4 tokens): its logits move by 0.05", "with more padding than needed, allowed 0.0001"),
        "the mask does not reach",
    ),
    Judged("padding_changes_nothing", "NaN", probe("padding", batch=[0.0, 0.0, "NaN", 0.0]), "example 3"),
    Judged(
        "examples_stay_apart", "rows mix", probe("dependence", others=0.01), "tokens of another", "batch statistics"
    ),
    Judged("examples_stay_apart", "padding", probe("dependence", padding=1e-9), "gradient 1e-09", "attention mask"),
    Judged(
        "every_token_counts",
        "last one masked",
        probe("dependence", dead=[[], [], [4], []]),
        "example 3: 1 of 5 tokens have no influence at all, at positions 4",
        "masked, or lie behind",
    ),
    Judged("every_token_counts", "ignored", probe("dependence", dead=[[0, 1, 2], [], [], []]), "", "input is ignored"),
    Judged("pretraining_shows", "random", probe("prior", loss=10.4), "(101% of a guess", "the tokenizer is not the"),
    Judged("pretraining_shows", "words do not matter", probe("prior", loss=4.0, permuted=3.9), "3.90 with every word"),
    Judged("pretraining_shows", "NaN", probe("prior", loss="NaN"), "loss nan"),
    Judged("pretraining_shows", "its ruler is NaN", probe("prior", permuted="NaN"), "nan with every word"),
    Judged("overfits_one_batch", "a floor", probe("overfit", loss=[0.7, 0.35, 0.32]), "at most 0.0700", "has a floor"),
    Judged("deterministic", "not", probe("determinism", second="c" * 64), "weights differ after 8 steps", "seed"),
    Judged("deterministic", "CUDA", again("cuda", [0.7, 0.6], [0.7, 0.61]), "loss differs first at step 2", "seed"),
    Judged("deterministic", "rounding on a CPU", again("cpu", [0.7, 0.6], [0.7, 0.6001]), "weights differ"),
    Judged("deterministic", "NaN on CUDA", again("cuda", [0.7, 0.6], [0.7, math.nan]), "loss differs first at step 2"),
    Judged("deterministic", "CUDA, no losses", again("cuda", [], []), "no losses were kept"),
    Judged("deterministic", "seed unused", probe("determinism", other_seed="a" * 64), "another seed gives the same"),
)

VACUOUS = (
    Judged(
        "labels_travel",
        "one label",
        record(
            examples=tuple(one.model_copy(update={"label": 1}) for one in HEALTHY.examples),
            batches=tuple(
                one.model_copy(update={"tensors": {**one.tensors, "labels": (1, 1)}}) for one in HEALTHY.batches
            ),
        ),
        "all examples have the label 1",
    ),
    Judged("dropout_on_in_training", "no dropout", record(modes={"stochastic": 0}), "neither dropout nor"),
    Judged("padding_changes_nothing", "one length", probe("padding", lengths=[3, 3, 3, 3]), "have 3 tokens"),
    Judged("padding_changes_nothing", "no power", probe("padding", nothing_masked=[1e-7] * 4), "does not read padding"),
    Judged("examples_stay_apart", "one example", probe("dependence", lengths=[3]), "one example only"),
    Judged("holds_for_any_text", "no text", probe("exploration", held={}), "no text could be judged"),
    Judged("overfits_one_batch", "one label", probe("overfit", labels=[1, 1]), "one label only"),
    Judged("deterministic", "nothing is drawn", undrawn(), "another seed changes nothing"),
)

PROBED = {
    "loss_is_the_declared_one": "steps",
    "gradient_is_the_declared_one": "steps",
    "update_is_the_declared_one": "steps",
    "save_reload_equal": "saved",
    "padding_changes_nothing": "padding",
    "examples_stay_apart": "dependence",
    "every_token_counts": "dependence",
    "pretraining_shows": "prior",
    "overfits_one_batch": "overfit",
    "deterministic": "determinism",
    "checkpointing_equals_plain": "checkpointing",
    "attention_implementations_agree": "attention",
    "compiled_equals_eager": "compilation",
    "packing_changes_nothing": "packing",
    "holds_for_any_text": "exploration",
}


@each(*ACCEPTED)
def test_accepts(judged: Judged) -> None:
    """A right training keeps the law."""
    check(judged, "held")


@each(*REJECTED)
def test_rejects(judged: Judged) -> None:
    """A wrong training breaks the law, and the verdict names what, where, and the likely cause."""
    check(judged, "broken")


@each(*VACUOUS)
def test_says_when_it_could_not_have_failed(judged: Judged) -> None:
    """Where nothing could have been found, finding nothing is not called held."""
    check(judged, "vacuous")


@pytest.mark.parametrize(("law", "name"), PROBED.items())
def test_without_its_probe_a_law_says_nothing(law: str, name: str) -> None:
    """A record of a run that did not ask for the evidence is not judged by it."""
    rest = {other: evidence for other, evidence in PROBES.items() if other != name}
    check(
        Judged(law, "", HEALTHY.model_copy(update={"probes": rest}), f"the probe {name} did not run"), "not applicable"
    )


@pytest.mark.parametrize(("law", "name"), PROBED.items())
def test_with_a_failed_probe_a_law_is_invalid(law: str, name: str) -> None:
    """A probe that failed is neither a held nor a broken law."""
    failed = record(probes={name: {"error": "ValueError: no"}})
    check(Judged(law, "", failed, f"the probe {name} failed: ValueError: no"), "invalid")


def test_evidence_of_another_shape_is_invalid_for_those_who_read_it() -> None:
    """As in a line that somebody has changed: what the law stumbled over is named and kept, and other laws judge."""
    before, after = judge(HEALTHY), judge(record(probes={"saved": {"weights": 3}}))

    (found,) = [two for one, two in zip(before, after, strict=True) if one != two]
    assert (found.law, found.outcome) == ("save_reload_equal", "invalid")
    assert found.message == "it cannot read the evidence: KeyError: 'failed'"
    assert isinstance(found.error, KeyError)


def test_few_predictions_say_nothing() -> None:
    """The mean of their losses is anything; and where there is no language model, there is nothing to ask."""
    check(Judged("pretraining_shows", "", probe("prior", predictions=99), "99 predictions, fewer than 100"), "invalid")
    random = record(probes={"prior": {"reason": "every weight is random"}})
    check(Judged("pretraining_shows", "", random, "every weight is random"), "not applicable")


def test_a_loss_that_still_falls_has_no_floor_yet() -> None:
    """A model that learns slowly is not one that cannot learn."""
    falling = probe("overfit", loss=[0.7, 0.5, 0.3])
    check(Judged("overfits_one_batch", "", falling, "it still falls, and nobody knows how far"), "invalid")


def test_what_a_part_can_learn_by_heart_nobody_knows() -> None:
    """Of a frozen backbone the head alone has to tell the examples apart."""
    floor = record(probe("overfit", loss=[0.7, 0.5, 0.49]), settings={"train.freeze": ["backbone"]})
    check(Judged("overfits_one_batch", "", floor, "a part is frozen"), "invalid")


def test_what_was_found_is_judged_again() -> None:
    """A stored find says what the laws say now: of a law that is turned off since, or whose tolerance grew, nothing."""
    check(
        Judged("holds_for_any_text", "", explored("a"), "padding_mask_correct was broken, and is not as it is judged"),
        "invalid",
    )
    off = record(explored("a", trial=HOLE), invariants={"padding_mask_correct": False})
    assert verdict("holds_for_any_text", off).outcome == "invalid"


def test_an_expected_break_is_expected() -> None:
    """A law that the experiment expects to be broken is no alarm, and its reason is the cause."""
    known = record(twin(1, gradient=3.0), expect_broken={"gradient_is_the_declared_one": "transformers#47688"})
    found = verdict("gradient_is_the_declared_one", known)
    assert (found.outcome, found.cause) == ("expected", "transformers#47688")


def test_an_expected_break_that_is_mended_is_broken() -> None:
    """The day the law holds again, the experiment says so."""
    check(
        Judged(
            "gradient_is_the_declared_one",
            "",
            record(expect_broken={"gradient_is_the_declared_one": "transformers#47688"}),
            "expected to be broken (transformers#47688), and it is held",
            "take it out of expect_broken",
        ),
        "broken",
    )


def test_a_pair_that_is_expected_to_differ_is_judged_by_itself() -> None:
    """The others must agree all the same, and the day that pair agrees is reported."""
    known = {"loops_agree": "draws at random"}
    same = (case("cpu-custom"), case("cpu-trainer"))
    apart = (
        case("cuda-custom", expect_broken=known),
        case("cuda-trainer", expect_broken=known, steps={"loss": (0.7,) * 8}),
    )
    alike = tuple(record(one, steps=apart[0].steps) for one in apart)
    found = verdict("loops_agree", (*same, *apart))
    assert (found.outcome, found.cause) == ("held", "")
    assert found.message.startswith("1 pair agrees; broken as expected (draws at random): cuda-custom and cuda-trainer")
    assert verdict("loops_agree", apart).outcome == "expected"
    mended = verdict("loops_agree", (*same, *alike))
    assert (mended.outcome, "take it out of expect_broken" in mended.cause) == ("broken", True)
    wrong = record(same[1], steps={"loss": (0.7,) * 8})
    assert verdict("loops_agree", (same[0], wrong, *apart)).message.startswith("cpu-custom and cpu-trainer")
    one_sided = (same[0], record(wrong, expect_broken=known))
    assert verdict("loops_agree", one_sided).outcome == "broken"
