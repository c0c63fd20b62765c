"""How the checkpoint is trained: the section `train`."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from harness.errors import count, meant, shown
from harness.experiment.model import Declared, problem, problems
from harness.experiment.source import Location

CompileMode: TypeAlias = Literal["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", "aot_eager"]
"""What `train.compile` may be beside true, false and auto."""

OPTIMIZERS_OF: dict[str, tuple[str, ...]] = {
    "betas": ("adamw", "adam", "adamw_8bit"),
    "eps": ("adamw", "adam", "adamw_8bit"),
    "momentum": ("sgd",),
    "fused": ("adamw", "adam", "sgd"),
}
"""Keys that not every optimizer has, and the optimizers that have them."""

CHOSEN = ("packing", "compile", "keep_memory")
"""Keys that may be `auto`: a measurement chooses then, and the record holds what."""

LOOPS_OF: dict[str, tuple[str, ...]] = {"compute_loss_func": ("trainer",)}
"""Keys that not every loop can honour, and the loops that can."""


def _pair(value: Any) -> Any:
    """YAML has no tuples: two items become one."""
    if not isinstance(value, list):
        return value
    if len(value) != 2:
        raise problem(count(len(value), "item"), "2 numbers")
    return tuple(value)


def _mode(value: Any) -> Any:
    modes = get_args(CompileMode)
    if isinstance(value, bool) or value in ("auto", *modes):
        return value
    raise problem(shown(value), f"true, false, auto, {', '.join(modes)}", meant(str(value), ["auto", *modes]))


def _or_auto(value: Any) -> Any:
    if isinstance(value, bool) or value == "auto":
        return value
    raise problem(shown(value), "true, false or auto", meant(str(value), ["auto"]))


def _listed(value: Any) -> Any:
    """One pattern is a list of one."""
    return [value] if isinstance(value, str) else value


_Beta: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
_Betas: TypeAlias = Annotated[
    tuple[_Beta, _Beta],
    BeforeValidator(_pair),
    # Written out, for editors that do not know the newer `prefixItems`.
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            "minItems": 2,
            "maxItems": 2,
        }
    ),
]
_Compile: TypeAlias = Annotated[bool | Literal["auto"] | CompileMode, BeforeValidator(_mode)]
_OrAuto: TypeAlias = Annotated[bool | Literal["auto"], BeforeValidator(_or_auto)]
_Patterns: TypeAlias = Annotated[
    list[Annotated[str, Field(pattern=r"\S")]],
    BeforeValidator(_listed),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": r"\S"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
    ),
    Field(min_length=1),
]
# numpy, which transformers seeds too, takes 32 bits.
_Seed: TypeAlias = Annotated[int, Field(ge=0, le=2**32 - 1)]


class ParameterGroup(Declared):
    """Parameters that the optimizer treats in a way of their own."""

    parameters: _Patterns = Field(
        description="Which: patterns of their names, or `head`, `backbone`, `embeddings`, `layers:N` (the first N)."
    )
    learning_rate: float | None = Field(default=None, gt=0, description="Their learning rate; null: that of the rest.")
    weight_decay: float | None = Field(default=None, ge=0, description="Their weight decay; null: that of the rest.")


class Train(Declared):
    """How the checkpoint is trained. What is not said is as `torch.optim.AdamW` has it."""

    loop: Literal["custom", "trainer", "accelerate"] = Field(
        default="custom",
        description="The training loop: `custom`, written out; transformers' `trainer`; or the documented loop of "
        "`accelerate`.",
    )
    steps: int = Field(default=20, ge=1, description="Optimizer steps.")
    epochs: float | None = Field(
        default=None, gt=0, description="Length in passes over the data instead; a part of a step counts as a step."
    )
    batch_size: int = Field(default=8, ge=1, description="Sequences in a batch; a micro-batch, where they accumulate.")
    gradient_accumulation: int = Field(
        default=1, ge=1, description="Micro-batches of a step; the last step of an epoch has those that are left."
    )
    optimizer: Literal["adamw", "adam", "sgd", "adafactor", "adamw_8bit"] = Field(
        default="adamw",
        description="torch's AdamW, Adam (decay in the gradient) or SGD; transformers' Adafactor at the declared rate; "
        "or bitsandbytes' AdamW with moments in 8 bits.",
    )
    fused: bool | None = Field(
        default=None, description="Whether one kernel does the optimizer's whole step; null: where torch has one."
    )
    learning_rate: float = Field(default=5e-5, gt=0, description="The highest learning rate of the schedule.")
    weight_decay: float = Field(default=0.01, ge=0, description="Decay of the weights; decoupled in AdamW.")
    decay: Literal["all", "matrices"] = Field(
        default="all",
        description="What decays: `all` parameters, or only `matrices`, those of two or more dimensions, which leaves "
        "out biases and the weights of norms.",
    )
    betas: _Betas = Field(default=(0.9, 0.999), description="Adam's decay rates of its two running averages.")
    eps: float = Field(default=1e-8, gt=0, description="Adam's term that keeps its division from 0.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="SGD's momentum.")
    groups: list[ParameterGroup] = Field(
        default=[],
        description="Parameters with a learning rate or decay of their own; one belongs to the first group it fits.",
    )
    freeze: _Patterns | None = Field(
        default=None,
        description="Parameters that are not trained: patterns of their names, or `head`, `backbone`, `embeddings`, "
        "`layers:N` (the first N).",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="The learning rate after the warm-up: constant, or falling to 0 at the end."
    )
    warmup_steps: int = Field(default=0, ge=0, description="Steps in which the learning rate rises linearly from 0.")
    warmup_ratio: float | None = Field(
        default=None, ge=0, le=1, description="The same as a share of all steps, rounded up."
    )
    max_grad_norm: float | None = Field(
        default=None, gt=0, description="Gradients are scaled down to this norm; null: they are left as they are."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of a label that is spread over all classes alike."
    )
    compute_loss_func: bool = Field(
        default=False,
        description="Gives the Trainer a `compute_loss_func` that divides by the labels of a whole step: the remedy "
        "where a head ignores their number.",
    )
    resume_at: int | None = Field(
        default=None,
        ge=1,
        description="Step after which a checkpoint is written; another process goes on from it, and has to take "
        "the same steps. Null: none is.",
    )
    seed: _Seed = Field(default=42, description="Seeds new weights, dropout and the order of data.")
    weights_seed: _Seed | None = Field(default=None, description="Seeds new weights instead.")
    data_seed: _Seed | None = Field(default=None, description="Seeds the order of data, and what is masked, instead.")
    dropout_seed: _Seed | None = Field(default=None, description="Seeds dropout instead.")
    max_length: int | None = Field(
        default=None, ge=1, description="Tokens that a sequence is cut to; null: the tokenizer's own limit."
    )
    shuffle: bool = Field(default=True, description="Whether each epoch takes the data in another order.")
    batching: Literal["in_order", "grouped"] = Field(
        default="in_order", description="`grouped`: batches of sequences of like length, so that less is padded."
    )
    drop_last: bool = Field(default=False, description="Whether an epoch leaves out sequences that fill no batch.")
    padding: Literal["longest", "max_length"] = Field(
        default="longest", description="Pads a batch to its longest sequence, or every batch to `max_length`."
    )
    pad_to_multiple_of: int | None = Field(
        default=None, ge=1, description="Pads further, to a multiple of this many tokens."
    )
    packing: _OrAuto = Field(
        default=False,
        description="Whether a model's layers compute real tokens alone, the sequences of a batch in one row, each of "
        "which attends to itself; auto: if a short measurement before training finds that faster.",
    )
    keep_memory: _OrAuto = Field(
        default=False,
        description="Whether memory that a step on a processor frees stays with the process, instead of going back to "
        "the kernel and being cleared for the next step; auto: if a short measurement finds that faster.",
    )
    attention: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None = Field(
        default=None, description="The implementation of attention, as transformers names it; null: its own choice."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Whether layers are computed again in the backward pass, which saves memory."
    )
    compile: _Compile = Field(
        default=False,
        description="Whether `torch.compile` compiles the model: true, a mode of its inductor, or `aot_eager`, which "
        "traces and differentiates as inductor does, generates no code and needs no C++ compiler; auto: if a "
        "measurement before training finds that it pays within the declared steps.",
    )

    @property
    def seed_of_weights(self) -> int:
        """What new weights are drawn from."""
        return self.seed if self.weights_seed is None else self.weights_seed

    @property
    def seed_of_data(self) -> int:
        """What the order of the data is drawn from."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def seed_of_dropout(self) -> int:
        """What dropout draws from."""
        return self.seed if self.dropout_seed is None else self.dropout_seed

    @model_validator(mode="after")
    def _agree(self) -> "Train":
        """No key that says nothing under the others."""
        wrong = list(_unfit(self))
        if wrong:
            raise problems("Train", wrong)
        return self


def _unfit(train: Train) -> Iterator[tuple[Location, PydanticCustomError]]:
    """Keys that contradict each other, or that the loop or the optimizer cannot honour."""
    said = train.model_fields_set
    for one, other in (("epochs", "steps"), ("warmup_ratio", "warmup_steps")):
        if {one, other} <= said and getattr(train, one) is not None:
            yield (one,), problem(f"{one} beside {other}", "one of the two")
    if train.packing and train.compile not in (False, "auto"):
        expected = "false: each batch would be of another shape, and compiled again"
        yield ("packing",), problem(f"{shown(train.packing)} beside compile", expected)
    if train.packing and train.attention not in (None, "sdpa"):
        expected = "sdpa or nothing beside packing, which goes from sequence to sequence in torch's sdpa"
        yield ("attention",), problem(shown(train.attention), expected)
    if train.resume_at is not None and train.epochs is None and train.resume_at >= train.steps:
        expected = f"a step before the last (train.steps {train.steps})"
        yield ("resume_at",), problem(str(train.resume_at), expected)
    for what, chosen, table in (("loop", train.loop, LOOPS_OF), ("optimizer", train.optimizer, OPTIMIZERS_OF)):
        for key, able in table.items():
            if key in said and getattr(train, key) not in (None, False, 0.0) and chosen not in able:
                found = f"{shown(getattr(train, key))} with {what} {chosen}, which cannot honour it"
                yield (key,), problem(found, f"nothing here, or one of the {what}s that can: {', '.join(able)}")
