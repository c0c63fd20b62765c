"""Records written by hand: what a training would have left, without one. No torch here."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any

from pydantic import BaseModel

from harness.record import (
    Adapters,
    Answers,
    Batch,
    Checkpoint,
    Compilation,
    Data,
    Evaluation,
    Example,
    Group,
    Interval,
    Modes,
    Optimizer,
    Parameter,
    Record,
    Score,
    Steps,
    Tokenizer,
)

PAD, START, END = 0, 2, 3
RATE = 1e-3


def example(index: int, *words: int, label: int = 0) -> Example:
    """An example whose encoding is these words between a start and an end token."""
    return Example(index=index, text=f"text {index}", input_ids=(START, *words, END), label=label)


EXAMPLES = (
    example(0, 20, 21, 22, 23, label=1),
    example(1, 30),
    example(2, 40, 41, label=1),
    example(3, 50, 51, 52),
)


def batch(*examples: Example, step: int = 0, side: str = "right", pad: int | None = PAD, length: int = 0) -> Batch:
    """The examples as a right collator pads them: to the longest, or to a length beyond it."""
    width = max(length, *(len(one.input_ids) for one in examples))
    ids, mask = [], []
    for one in examples:
        real, padding = len(one.input_ids), width - len(one.input_ids)
        rows = (list(one.input_ids), [pad] * padding), ([1] * real, [0] * padding)
        for column, (tokens, rest) in zip((ids, mask), rows, strict=True):
            column.append(rest + tokens if side == "left" else tokens + rest)
    tensors = {"input_ids": ids, "attention_mask": mask, "labels": [one.label for one in examples]}
    return Batch(step=step, examples=tuple(one.index for one in examples), tensors=tensors)


BATCHES = (batch(*EXAMPLES[:2]), batch(*EXAMPLES[2:], step=1))


def parameter(name: str, **changes: Any) -> Parameter:
    """A parameter that moved as AdamW moves one in eight steps; its way is followed if it is of the head."""
    head = name.startswith("classifier.")
    fields = {
        "shape": (4, 2),
        "head": head,
        "trainable": True,
        "start": 0.02,
        "change": 5 * RATE,
        "furthest": 6 * RATE if head else None,
        "gradient": 0.1,
    }
    return Parameter(name=name, **{**fields, **changes})


PARAMETERS = (
    parameter("bert.embeddings.weight", shape=(30522, 384)),
    parameter("bert.layer.query.weight"),
    parameter("bert.layer.key.bias", start=0.0, change=0.0, gradient=1e-9),  # cancels in the softmax: rounding noise
    parameter("classifier.weight"),
    parameter("classifier.bias", start=0.0),
)


def steps(*losses: float, **columns: Any) -> Steps:
    """The columns of as many steps as there are losses, which take the batches in turn."""
    count = len(losses)
    turns = [BATCHES[step % len(BATCHES)] for step in range(count)]
    fields = {
        "loss": losses,
        "learning_rate": (RATE,) * count,
        "seconds": (0.1,) * count,
        "processor_seconds": (0.09,) * count,
        "compile_seconds": (0.0,) * count,
        "watching_seconds": (0.0,) * count,
        "samples": (2,) * count,
        "real_tokens": (9,) * count,
        "padded_tokens": (12,) * count,
        "digest": tuple({"input_ids": f"ids of {turn.step}", "labels": f"labels of {turn.step}"} for turn in turns),
        "examples": tuple(turn.examples for turn in turns),
        "group_rates": ((RATE,),) * count,
        "gradient_norm": (1.2,) * count,
        "gradient_norm_before": (None,) * count,
        "loss_scale": (None,) * count,
        "loss_weights": ((1.0,),) * count,
        "update": (RATE,) * count,
        "unmoved": (0.0,) * count,
        "random": tuple(map(str, range(count))),
        "graphs": (0,) * count,
    }
    fields |= columns
    return Steps(**{**clocked(fields["seconds"], fields["samples"], fields["watching_seconds"]), **fields})


def clocked(seconds: Sequence[float], samples: Sequence[int], between: Sequence[float] = ()) -> dict[str, Any]:
    """What a second clock and the model say of steps that took so many seconds, one right after the other."""
    began, now = [], 100.0
    for one, rest in zip_longest(seconds, between[: len(seconds)], fillvalue=0.0):
        began.append(now)
        now += one + rest
    ended = tuple(start + one for start, one in zip(began, seconds, strict=True))
    phases = {f"{phase}_seconds": (0.0,) * len(began) for phase in ("transfer", "backward", "optimizer", "other")}
    phases |= {"forward_seconds": tuple(one - 0.002 for one in seconds), "data_seconds": (0.002,) * len(began)}
    return {**phases, "began": tuple(began), "ended": ended, "rows": tuple(samples)}


LOSSES = (0.7, 0.72, 0.65, 0.6, 0.5, 0.45, 0.3, 0.2)

TWIN_STEP = {
    "loss": 0.7,
    "reference_loss": 0.7,
    "logits_gradient": 5e-8,
    "logits_gradient_scale": 1.0,
    "logits_are_probabilities": False,
    "gradient": 1e-7,
    "gradient_worst": "bert.layer.query.weight",
    "gradient_missing": [],
    "gradient_norm": 1.2,
    "reference_norm": 1.2,
    "rate": RATE,
    "declared_rate": RATE,
    "update": 1e-6,
    "update_expected": 0.4,
    "update_rounding": 3e-6,
    "update_worst": "bert.layer.query.weight",
    "stepped": True,
    "unreached": [],
}

AT = 5
RESUMED: dict[str, Any] = {
    "at": AT,
    "weights": [],
    "moments": [],
    "scaler": [],
    "ended": [],
    "steps": {
        name: list(getattr(steps(*LOSSES), name)[AT:])
        for name in ("loss", "learning_rate", "loss_scale", "digest", "random")
    },
}
"""A right going on from the checkpoint of step 5."""

PROBES: dict[str, dict[str, Any]] = {
    "replay": {"loss": [0.7, 0.65, 0.6, 0.55]},
    "padding": {
        "examples": [1, 2, 3, 0],
        "lengths": [3, 4, 5, 6],
        "batch": [3e-7, 2e-7, 1e-7, 0.0],
        "more_padding": [3e-7, 2e-7, 1e-7, 2e-7],
        "other_company": [2e-7, 1e-7],
        "nothing_masked": [0.4, 0.2, 0.1, 0.0],
    },
    "dependence": {
        "examples": [1, 2, 3, 0],
        "lengths": [3, 4, 5, 6],
        "own": [0.3, 0.2, 0.4, 0.3],
        "others": 0.0,
        "padding": 0.0,
        "dead": [[], [], [], []],
    },
    "steps": {"steps": [TWIN_STEP, TWIN_STEP, TWIN_STEP]},
    "accumulation": {"terms": [3, 2], "loss": [0.7, 0.7], "gradient": 2e-7, "scale": 1.0},
    "saved": {"failed": "", "weights": [], "logits": 0.0, "tokens": [], "settings": []},
    "prior": {"causal": False, "vocabulary": 30522, "predictions": 146, "loss": 2.9, "permuted": 11.4},
    "resumed": {"reason": "no checkpoint is declared: see train.resume_at"},
    "evaluation": {
        "examples": [1, 2, 3, 0],
        "sizes": [2, 3],
        "after": {
            "figures": [{"loss": 0.5, "accuracy": 0.75}] * 2,
            "answered": [4, 4],
            "said": [0, 1, 0, 0],
            "meant": [0, 1, 0, 1],
            "loss": [0.2, 0.3, 0.4, 1.1],
            "nll": [0.2, 0.3, 0.4, 1.1],
            "terms": [1, 1, 1, 1],
            "margin": 0.1,
        },
        "before": {
            "figures": [{"loss": 0.7, "accuracy": 0.5}] * 2,
            "answered": [4, 4],
            "said": [1, 1, 1, 1],
            "meant": [0, 1, 0, 1],
            "loss": [0.7, 0.7, 0.7, 0.7],
            "nll": [0.7, 0.7, 0.7, 0.7],
            "terms": [1, 1, 1, 1],
            "margin": 0.1,
        },
    },
    "overfit": {"examples": [0, 1, 2, 3], "labels": [1, 0, 1, 0], "loss": [0.7, 0.4, 0.2, 0.03]},
    "determinism": {
        "steps": 8,
        "first": "a" * 64,
        "second": "a" * 64,
        "other_seed": "b" * 64,
        "losses": [[0.7, 0.6]] * 2,
    },
    "checkpointing": {"loss": 0.0, "gradient": 0.0, "recomputed": 22},
    "attention": {
        "used": "sdpa",
        "batches": [{"batch": "more padding", "own": {"loss": 0.0, "logits": 2e-7, "gradient": 3e-7}}],
        "finite": {"padding on the other side": True, "a row that is nothing but padding": True},
    },
    "compilation": {
        "graphs": 1,
        "batches": [{"batch": "a batch", "own": {"loss": 0.0, "logits": 3e-7, "gradient": 4e-7}}],
    },
    "packing": {
        "used": "sdpa_packed",
        "packed": 2,
        "batches": [{"batch": "a batch", "own": {"loss": 0.0, "logits": 1e-7, "gradient": 3e-7}}],
    },
    "exploration": {
        "trials": 20,
        "known": 1,
        "held": {"padding_mask_correct": 21, "padding_changes_nothing": 9},
        "found": None,
    },
}
"""What every probe leaves of a right training."""


def score(step: int, accuracy: float, **changes: Any) -> Score:
    """One evaluation of four rows, of which so many are answered rightly."""
    right = round(4 * accuracy)
    fields = {
        "step": step,
        "seconds": 0.1,
        "figures": {"loss": 1 - accuracy, "accuracy": accuracy},
        "intervals": {"accuracy": Interval(value=accuracy, low=accuracy - 0.2, high=accuracy + 0.2)},
        "answers": Answers(said=(1,) * right + (0,) * (4 - right), meant=(1,) * 4),
        "answered": 4,
        "stochastic": 3,
    }
    return Score(**{**fields, **changes})


EVALUATION = Evaluation(
    source="evaluation.sequences",
    rows=4,
    metrics=("accuracy",),
    resamples=1000,
    confidence=0.95,
    scores=(score(0, 0.25), score(len(LOSSES), 0.75)),
    improvements={"accuracy": Interval(value=0.5, low=0.25, high=0.75)},
    config_label_names=("LABEL_0", "LABEL_1"),
    examples=EXAMPLES,
    batches=BATCHES,
    drawn=(0, 1, 2, 3),
)

HEALTHY = Record(
    experiment="experiments/a.yaml",
    case="cpu-custom",
    outcome="finished",
    started=datetime(2026, 1, 31, 12, tzinfo=UTC),
    seconds=1.0,
    settings={
        "train.loop": "custom",
        "train.steps": len(LOSSES),
        "train.learning_rate": RATE,
        "train.batch_size": 2,
        "train.warmup_steps": 0,
        "train.weight_decay": 0.01,
        "train.betas": [0.9, 0.999],
        "train.eps": 1e-8,
        "train.shuffle": False,
        "train.gradient_checkpointing": True,
        "train.compile": True,
        "train.packing": True,
        "data.examples": len(EXAMPLES),
        "device": "cpu",
        "precision": "fp32",
        "benchmark.warmup_steps": 3,
        "benchmark.timed_steps": None,
    },
    checkpoint=Checkpoint(
        source="./checkpoint",
        architecture="BertForSequenceClassification",
        parameters=40,
        dtype="float32",
        digest="5" * 64,
        pretrained=True,
        missing=("classifier.bias", "classifier.weight"),
        head=("classifier.weight", "classifier.bias"),
    ),
    tokenizer=Tokenizer(name="BertTokenizer", vocabulary=60, pad_token_id=PAD, padding_side="right", max_length=512),
    data=Data(source="data.sequences", rows=4, seen=4, labels={"0": 2, "1": 2}, classes=2, tokens=10, unknown_tokens=0),
    examples=EXAMPLES,
    lost_among=len(EXAMPLES),
    batches=BATCHES,
    steps=steps(*LOSSES),
    parameters=PARAMETERS,
    optimizer=Optimizer(
        name="AdamW",
        groups=(Group(parameters=5, learning_rate=RATE, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8),),
    ),
    modes=Modes(stochastic=3, checkpointing=True),
    compilation=Compilation(backend="inductor", mode="default", graphs=2),
    evaluation=EVALUATION,
    probes=PROBES,
)
"""Every law accepts it, but for those that compare cases: there is only one."""


def pair(module: str, **changes: Any) -> tuple[Parameter, Parameter]:
    """The two matrices of the adapter of a module, trained as AdamW trains them; changes are of B."""
    name = f"base_model.model.bert.layer.{module}"
    fields = {"adapter": True, "start": 0.0, "change": 5 * RATE, "furthest": 6 * RATE, **changes}
    return (
        parameter(f"{name}.lora_A.default.weight", adapter=True, start=0.3, furthest=2 * RATE, gradient=0.0),
        parameter(f"{name}.lora_B.default.weight", **fields),
    )


FROZEN = {"trainable": False, "change": 0.0, "gradient": None}

ADAPTED = HEALTHY.model_copy(
    update={
        "settings": {**HEALTHY.settings, "peft.rank": 4, "peft.modules_to_save": []},
        "adapters": Adapters(
            task_type="SEQ_CLS",
            rank=4,
            alpha=16,
            dropout=0.1,
            targets={"query": 1, "value": 1},
            modules=2,
            modules_to_save=("classifier",),
            trainable=20,
            total=60,
        ),
        "parameters": (
            parameter("base_model.model.bert.embeddings.weight", **FROZEN),
            parameter("base_model.model.bert.layer.query.base_layer.weight", **FROZEN),
            *pair("query"),
            *pair("value"),
            parameter("base_model.model.classifier.original_module.weight", head=False, **FROZEN),
            parameter("base_model.model.classifier.modules_to_save.default.weight", head=True, furthest=6 * RATE),
        ),
        "probes": {
            **PROBES,
            "saved": {**PROBES["saved"], "merged": 3e-7},
            "adapted": {
                "layers": [{"rank": 4, "scale": 4.0, "dropout": 0.1, "modules": 2}],
                "formula": {"bert.layer.query": 2e-7, "bert.layer.value": 3e-7},
            },
        },
    }
)
"""The same under adapters: every law accepts it too."""


def record(base: Record = HEALTHY, **changes: Any) -> Record:
    """The healthy record, but for this. A mapping changes fields of a part; anything else replaces what was there.

    Steps of other seconds are clocked anew.
    """
    if isinstance(changes.get("steps"), dict) and "seconds" in changes["steps"]:
        columns = changes["steps"]
        samples = columns.get("samples", (2,) * len(columns["seconds"]))
        changes["steps"] = {**clocked(columns["seconds"], samples, columns.get("watching_seconds", ())), **columns}
    return base.model_copy(update={name: _changed(getattr(base, name), value) for name, value in changes.items()})


def trained(losses: Sequence[float], **changes: Any) -> Record:
    """A record of as many steps as there are losses."""
    settings = {"train.steps": len(losses), **changes.pop("settings", {})}
    return record(steps=steps(*losses), settings=settings, **changes)


def case(name: str, base: Record = HEALTHY, **changes: Any) -> Record:
    """A case of the same experiment, ``DEVICE-LOOP`` or ``DEVICE-LOOP-PRECISION``, with the settings its name says."""
    device, loop, precision = (*name.split("-"), "fp32")[:3]
    settings = {"device": device, "train.loop": loop, "precision": precision, **changes.pop("settings", {})}
    return record(base, case=name, settings=settings, **changes)


def _changed(value: Any, change: Any) -> Any:
    if not isinstance(change, dict):
        return change
    if isinstance(value, BaseModel):
        return type(value)(**{**dict(value), **change})
    return {**value, **change}
