"""What running a case left: a frozen, versioned value, complete when it is made.

A record is plain data. Laws read it without torch, it can be judged again years later, and it travels as one line
of valid JSON: numbers that are not finite are spelled ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, ValidationInfo, model_validator

from harness.experiment.model import problem, problems
from harness.experiment.stated import mistyped

FORMAT = 1
"""The number of the record format. A reader takes every record up to its own number and skips fields it does not know.

1: the first.
"""

Outcome = Literal["finished", "crashed", "out of memory", "interrupted", "skipped"]


class Part(BaseModel):
    """A frozen piece of a record."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings", protected_namespaces=())


def _numbers(value: Any, info: ValidationInfo) -> Any:
    """Turn spelled numbers back where no type says that they are numbers; only a line of JSON spells them."""
    return _unspelled(value) if info.mode == "json" else value


def _unspelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unspelled(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_unspelled(each) for each in value]
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


Evidence = Annotated[Any, BeforeValidator(_numbers)]
"""Numbers in lists and mappings."""


class Environment(Part):
    """Where the case ran: whatever may change its numbers without a change of the experiment."""

    versions: dict[str, str] = Field(default_factory=dict)
    """Version by distribution name, Python included."""
    platform: str = ""
    processor: str = ""
    device: str = ""
    """Name of the accelerator as its driver gives it, or of the processor."""
    driver: str = ""
    """Version of the accelerator's driver; empty where there is none."""
    runtime: str = ""
    """What torch drives the accelerator through, such as ``CUDA 12.8, cuDNN 91002``; empty for a processor."""
    threads: int | None = None
    """Intra-op threads of torch."""
    processors: float | None = None
    """That the process may use, parts of them included; none where nobody says."""
    commit: str | None = None
    """Commit of the repository that holds the experiment."""
    dirty: bool | None = None
    """Whether that repository had uncommitted changes."""


class Checkpoint(Part):
    """The weights the run started from, and the head ledger."""

    source: str
    """As the experiment declares it."""
    revision: str | None = None
    """The Hub commit that the files were taken from."""
    architecture: str
    """Class of the model."""
    parameters: int
    """Number of scalars in the model."""
    dtype: str
    attention: str = ""
    """The implementation of attention in use."""
    attention_reason: str = ""
    """Why it is that one."""
    digest: str
    """SHA-256 over name, dtype, shape and bytes of every tensor of the model just before the first step; empty where
    none was begun."""
    pretrained: bool
    """False where every weight is random."""
    missing: tuple[str, ...] = ()
    """Parameters of the model that the checkpoint did not hold: newly initialised."""
    unused: tuple[str, ...] = ()
    """Weights of the checkpoint that the model has no place for."""
    mismatched: tuple[str, ...] = ()
    """Parameters whose shape differs from the checkpoint's: newly initialised."""
    head: tuple[str, ...] = ()
    """Parameters outside the backbone: what a checkpoint without this task's head cannot hold."""
    compared: int = 0
    """Tensors that were compared with the checkpoint's files, bit for bit."""
    differing: tuple[str, ...] = ()
    """Those of them that were loaded with other values than the files hold."""
    altered: tuple[str, ...] = ()
    """Parameters and buffers that were other than loaded when the first step began."""
    brings_head: bool = False
    """The task's head is part of what is pretrained, as that of a language model is."""


class Adapters(Part):
    """Low-rank adapters that are trained in the place of the weights they are beside, as they were made."""

    task_type: str | None
    """As peft calls the task; none where it has no name for it."""
    rank: int
    alpha: int
    dropout: float
    targets: dict[str, int]
    """How many modules got an adapter, by the name or pattern that they match."""
    modules: int
    """Modules with an adapter."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained whole and saved beside the adapters."""
    trainable: int
    """Scalars that are trained."""
    total: int
    """Scalars of the model, adapters included."""
    reasons: dict[str, str] = Field(default_factory=dict)
    """Why the targets, the task type and the modules to save are these."""


class Tokenizer(Part):
    """How text became numbers."""

    name: str
    vocabulary: int
    pad_token_id: int | None
    padding_side: Literal["left", "right"]
    max_length: int
    """Longest encoding in tokens; longer text is cut."""
    end_token_ids: tuple[int, ...] = ()
    """At which generation stops; none where nothing stops it."""
    decoder_start_token_id: int | None = None
    """With which a decoder begins to generate, where the model has an encoder too."""
    token_types: bool = False
    """The model tells the two texts of a pair apart by token_type_ids."""
    reasons: dict[str, str] = Field(default_factory=dict)
    """Why the pad token or the padding side is another than the tokenizer came with."""
    foreign: tuple[str, ...] = ()
    """Ids of the first texts that stand for another token in the tokenizer that came with the checkpoint, in words."""
    begin_token_id: int | None = None
    """With which a text begins; none where the tokenizer has no such token."""


class Masking(Part):
    """How tokens are hidden that a masked language model has to predict."""

    probability: float
    """Of a token to be predicted."""
    token: int
    """The id that most of those are replaced with."""


class Row(Part):
    """A row of the data, for messages."""

    row: int
    """Its place in the source, counted from 0."""
    text: str
    """The first characters."""
    note: str = ""
    """What there is to say of it."""


class Data(Part):
    """The rows of the data: where they came from, and what was seen of them."""

    source: str
    """As the experiment names it."""
    revision: str | None = None
    """The commit of the dataset's repository."""
    rows: int | None = None
    """Rows to draw from; none where a stream's end was not reached."""
    dropped: int = 0
    """Rows left out because they hold no text, no token or no known label."""
    dropped_rows: tuple[Row, ...] = ()
    """The first of them."""
    label_names: tuple[str, ...] = ()
    """By number."""
    config_label_names: tuple[str, ...] = ()
    """As the model's config has them."""
    seen: int = 0
    """Rows that the following was counted over: all of a small source, of a large one those that were drawn."""
    labels: dict[str, int] = Field(default_factory=dict)
    """How many rows have each label, by its number; none where a label is no single number."""
    outside: tuple[Row, ...] = ()
    """The first rows whose label is no class of the model."""
    classes: int = 0
    classes_declared: bool = True
    """Somebody says how many there are: else it is the highest label and one."""
    tokens: int = 0
    """Of all rows, special tokens left out."""
    unknown_tokens: int | None = None
    """How many of them are the unknown token; none where the tokenizer has none."""
    most_unknown: tuple[Row, ...] = ()
    """The rows with most of them."""
    cut: int = 0
    """Rows longer than the longest encoding."""
    most_cut: tuple[Row, ...] = ()
    """The rows that lost most tokens."""
    conflicting: int = 0
    """Rows whose text another row has too, with another label."""
    conflicts: tuple[Row, ...] = ()
    """The first of them, in pairs."""


class Example(Part):
    """One example as the tokenizer encodes it alone, without padding."""

    index: int
    text: str
    """The first characters, for messages."""
    input_ids: tuple[int, ...]
    columns: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """What else the tokenizer gives for each token, such as token_type_ids; the mask is not among it."""
    pair: bool = False
    """It is two texts in one row of tokens."""
    label: Evidence
    """What is to be learnt: a class; a number; one label for each class, each token or each token of the decoder's
    (-100 where there is none); or several of the model's arguments by name."""
    choices: tuple[Example, ...] = ()
    """An example that is several texts has its ids here, one text each."""


class Batch(Part):
    """A batch as it reached the model's forward."""

    step: int
    """The first step that saw it, counted from 0; of a step with several micro-batches, each is a batch."""
    examples: tuple[int, ...]
    """Index of the example in each row, as the loader drew them."""
    tensors: dict[str, tuple[Evidence, ...]]
    """Every tensor among the model's arguments, by keyword, as nested lists."""


class Steps(Part):
    """One entry a training step, in order, in each column."""

    loss: tuple[float, ...] = ()
    """Raw loss of the forward pass, before any log could round or filter it."""
    learning_rate: tuple[float, ...] = ()
    """Of the first parameter group, as the optimizer used it; NaN where it did not step."""
    group_rates: tuple[tuple[float, ...], ...] = ()
    """Of every parameter group."""
    seconds: tuple[float, ...] = ()
    """From the end of the step before to the end of this one, the device waited for on both sides."""
    began: tuple[float, ...] = ()
    """When the step began, in seconds by a second clock."""
    ended: tuple[float, ...] = ()
    """When it ended, by that clock."""
    processor_seconds: tuple[float, ...] = ()
    """Processor time that all threads of the process took in the step: what other processes take is no part of it."""
    queued_seconds: tuple[float | None, ...] = ()
    """Part of `seconds` in which the thread of the loop waited for a processor that others had; none where the kernel
    does not say."""
    compile_seconds: tuple[float, ...] = ()
    """Part of `seconds` in which something was compiled."""
    watching_seconds: tuple[float, ...] = ()
    """Spent on taking evidence between this step and the next; not part of any step."""
    evaluating_seconds: tuple[float, ...] = ()
    """Spent on evaluating between this step and the next; not part of any step."""
    saving_seconds: tuple[float, ...] = ()
    """Spent on writing a checkpoint between this step and the next; not part of any step."""
    joules: tuple[float | None, ...] = ()
    """Energy that the device took from before the step to after it; on a processor that of the whole socket. None where
    nobody counts it."""
    slowed: tuple[str | None, ...] = ()
    """Why the device was slower than it is made for when the step was over; empty where it was not, none where nobody
    says."""
    data_seconds: tuple[float, ...] = ()
    """Part of `seconds` in which the loop waited for its batches. This and the next five are the phases of a step: on a
    CUDA device by its own clock, from what comes before them in its queue to their end."""
    transfer_seconds: tuple[float, ...] = ()
    """Part of `seconds` in which batches were moved to the device."""
    forward_seconds: tuple[float, ...] = ()
    """Forward passes, with the loss."""
    backward_seconds: tuple[float, ...] = ()
    optimizer_seconds: tuple[float, ...] = ()
    """From the end of the last backward pass to the end of the optimizer's step, clipping and the loss scaler
    included."""
    other_seconds: tuple[float, ...] = ()
    """All the rest of a step, such as the schedule, clearing gradients and callbacks."""
    samples: tuple[NonNegativeInt, ...] = ()
    """Examples that the loader drew for the step."""
    rows: tuple[NonNegativeInt, ...] = ()
    """Examples that reached the model in it."""
    real_tokens: tuple[NonNegativeInt, ...] = ()
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()
    """Of what the model read of each micro-batch."""
    padded_tokens: tuple[NonNegativeInt, ...] = ()
    """Rows x longest row of each micro-batch: what the model computes, unless sequences are packed."""
    digest: tuple[dict[str, str], ...] = ()
    """SHA-256, shortened, of each tensor of the batch that reached the model; of several micro-batches, of theirs."""
    examples: tuple[tuple[int, ...], ...] = ()
    """Index of every example of the batch, micro-batch after micro-batch."""
    micro_batches: tuple[tuple[int, ...], ...] = ()
    """How many examples each micro-batch had."""
    terms: tuple[tuple[int, ...], ...] = ()
    """Of each micro-batch, the terms that its loss is a mean over."""
    drawable: tuple[tuple[int, ...], ...] = ()
    """Of each micro-batch, the tokens of which those terms are drawn at random; none where nothing is drawn."""
    loss_weights: tuple[tuple[float, ...], ...] = ()
    """What the model's own loss of each micro-batch was multiplied with in the backward pass; none where the loop takes
    its loss from the logits."""
    loss_scale: tuple[float | None, ...] = ()
    """By which the loss was multiplied against underflow; none without a scaler."""
    gradient_norm: tuple[float | None, ...] = ()
    """Of all gradients, as the optimizer used them; none where it did not step."""
    gradient_norm_before: tuple[float | None, ...] = ()
    """The same before clipping; none where nothing was clipped."""
    update: tuple[float, ...] = ()
    """Root mean square of what the step moved the trainable weights by, over a sample: at least 65,536, or all."""
    unmoved: tuple[float | None, ...] = ()
    """Share of the gradient, by absolute value and over that sample, that moved nothing; none without a gradient."""
    random: tuple[str, ...] = ()
    """Digest of where the generator stood that dropout draws from, when the forward pass began."""
    graphs: tuple[int, ...] = ()
    """Autograd graphs of earlier steps that are still alive at the end of this one."""

    @property
    def first_not_finite(self) -> int | None:
        """The first step, counted from 0, whose loss is NaN or infinite although there was something to learn."""
        wrong = (step for step, loss in enumerate(self.loss) if not math.isfinite(loss))
        return next((step for step in wrong if step not in self.empty), None)

    @property
    def empty(self) -> frozenset[int]:
        """Steps whose loss is NaN because a micro-batch of theirs has nothing to learn, as none of its tokens was
        drawn: the mean of nothing. Their gradients are numbers, and of that micro-batch 0.
        """
        columns = zip(self.loss, self.terms, self.drawable, self.gradient_norm, strict=False)
        return frozenset(
            step
            for step, (loss, terms, drawable, norm) in enumerate(columns)
            if math.isnan(loss) and drawable and 0 in terms and (norm is None or math.isfinite(norm))
        )

    @property
    def losses(self) -> tuple[float, ...]:
        """The loss of each step but the `empty` ones."""
        empty = self.empty
        return tuple(loss for step, loss in enumerate(self.loss) if step not in empty)


class Parameter(Part):
    """How one parameter moved. All figures are root mean squares over its elements."""

    name: str
    shape: tuple[int, ...]
    head: bool
    adapter: bool = False
    """It belongs to an adapter."""
    embedding: bool = False
    """A table from which rows are looked up."""
    trainable: bool
    start: float
    change: float
    """Distance between the start and the end of the training."""
    furthest: float | None = None
    """Largest distance from the start after any step; watched for the head and adapters only."""
    gradient: float | None = None
    """At the first step; none where the parameter got no gradient at all."""


class Group(Part):
    """A parameter group of the optimizer at its first step."""

    parameters: int
    names: tuple[str, ...] = ()
    """Of the parameters, where there are several groups."""
    learning_rate: float
    weight_decay: float | None = None
    betas: tuple[float, ...] = ()
    eps: float | None = None
    momentum: float | None = None
    variants: tuple[str, ...] = ()
    """Switches for other algorithms that are on, such as `amsgrad`."""


class Optimizer(Part):
    """What the optimizer held at its first step, by identity of the tensors."""

    name: str
    fused: bool | None = None
    """Whether one kernel does its whole step; none where it cannot be said."""
    reasons: dict[str, str] = Field(default_factory=dict)
    """Why it is fused, or not."""
    groups: tuple[Group, ...]
    outside: tuple[str, ...] = ()
    """Trainable parameters of the model that it does not hold."""
    twice: tuple[str, ...] = ()
    """Parameters that it holds more than once."""
    frozen: tuple[str, ...] = ()
    """Parameters that it holds although they are not trained."""
    toggled: tuple[str, ...] = ()
    """Parameters that are trained when the training begins and not when it ends, or the other way round."""
    written: tuple[str, ...] = ()
    """Parameters that somebody wrote into between two of its steps."""
    strangers: int = 0
    """Tensors that it holds and the model does not have."""


class Modes(Part):
    """Train or eval mode of the modules that behave differently in them."""

    stochastic: int
    """Modules with a dropout above 0 or with running statistics."""
    step: int | None = None
    """The first step, counted from 0, in whose forward pass one of them was in eval mode."""
    off: tuple[str, ...] = ()
    """Which they were, in that step."""
    changed: tuple[str, ...] = ()
    """Modules whose dropout was another when the training began, or when it ended, than as loaded."""
    redrawn: int | None = None
    """The first step, counted from 0, that drew the same random numbers as one before it."""
    drifted: tuple[str, ...] = ()
    """Buffers, such as running statistics, that are other at the end of the training than at its start."""
    checkpointing: bool | None = None
    """Whether gradient checkpointing was on in the first forward pass; none if there was no such pass."""


class Compilation(Part):
    """What `torch.compile` did in the training."""

    backend: str = ""
    """Empty where it was chosen not to compile."""
    mode: str = ""
    graphs: int = 0
    """Graphs that were compiled: one if nothing broke it, more where shapes changed."""
    breaks: dict[str, int] = Field(default_factory=dict)
    """Why a graph was broken, and how often."""
    eager_passes: int = 0
    """Forward passes whose result came out of no compiled graph."""
    reason: str = ""
    """Why it was chosen to compile, or not; empty where it was declared."""


class Flops(Part):
    """Floating-point operations of a micro-batch, by torch's counter: a product and a sum are two."""

    shape: tuple[int, ...]
    forward: int
    backward: int
    real_tokens: NonNegativeInt = 0
    """Of the one that was counted; 0 where nobody says."""


class Efficiency(Part):
    """What a step computes, and what the device could."""

    flops: tuple[Flops, ...] = ()
    """By the commonest shapes of micro-batches."""
    ceiling: float | None = None
    """The most operations a second of a product of matrices, measured in the same session; none where it was not."""
    dtype: str = ""
    """Of those matrices."""
    bandwidth: float | None = None
    """The most bytes a second that the device's memory reads and writes, likewise."""
    reason: str = ""
    """Why there are no figures."""


class Counters(Part):
    """What a step does, counted in one of a short further training: the same again on the same versions, whatever else
    the machine does.
    """

    step: NonNegativeInt | None = None
    """The step of the training whose batches these are, counted from 0."""
    operators: NonNegativeInt | None = None
    """Operators that torch dispatched below autograd, in both passes, the optimizer's step and the loop."""
    flops: NonNegativeInt | None = None
    """Floating-point operations of products, convolutions and attention, as they were computed: also again."""
    moved_bytes: NonNegativeInt | None = None
    """Read and written by them, each by itself, caches or not; views move nothing."""
    saved_bytes: NonNegativeInt | None = None
    """What autograd keeps for the backward passes: each storage once, without parameters and buffers."""
    host_waits: NonNegativeInt | None = None
    """Times the host asks for a value of the device; on a processor, where that is free, too."""
    kernels: NonNegativeInt | None = None
    """Launched on a CUDA device; none elsewhere."""
    peak_bytes: NonNegativeInt | None = None
    """The most that torch's allocator had handed out on a CUDA device; none elsewhere."""
    reason: str = ""
    """Why there are no figures."""


class Operator(Part):
    """What calls of one operator took, in all profiled steps together."""

    name: str
    calls: int
    seconds: float
    """Its own, without those of operators that it calls: on a CUDA device of its kernels there."""


class Profile(Part):
    """Some further steps under torch's profiler, which itself takes time, most beside small operators."""

    trace: str = ""
    """A file below the folder of the reports, for Perfetto or chrome://tracing."""
    steps: int = 0
    seconds: float = 0.0
    """Of all of them together, under the profiler."""
    busy_seconds: float = 0.0
    """Of all operators in them; the rest is outside of operators: Python, and on a CUDA device waiting for the host."""
    operators: tuple[Operator, ...] = ()
    """Those that took most, the dearest first."""
    reason: str = ""
    """Why there are no figures."""


class Machine(Part):
    """What there was beside the case on its machine while it trained. What could not be read is none."""

    processors: int | None = None
    load: float | None = None
    """Tasks that ran or waited for a processor, on average over the last minute."""
    stolen: float | None = None
    """Share of the time in which this machine had work to do and its host gave the processor to others (steal)."""
    shared: float | None = None
    """Share of the time in which other processes computed on the GPU."""
    celsius: int | None = None
    """Of the GPU, after the last step."""


class Memory(Part):
    """The most memory the training held at once."""

    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    """The most that torch's allocator had taken from a CUDA device, to hand out or to keep for later: what other
    processes cannot have, and where more is needed there is none. None elsewhere."""
    kind: str = ""
    """What was counted, or why it could not be."""
    freed: str = ""
    """Why memory that a step frees is kept, or not; empty where nothing is declared."""


class Interval(Part):
    """A figure, and how far it would scatter over other examples of the same kind. NaN where it is not defined."""

    value: float
    low: float
    high: float


class Answers(Part):
    """What the model said of each example of the evaluation split, in its order; a column each."""

    said: tuple[Evidence, ...] = ()
    """The class; a class for each word; 0 or 1 for each class; a number; text; or of a language model how many tokens
    it has right."""
    meant: tuple[Evidence, ...] = ()
    """What was to be said, in the same form; of a language model how many tokens were to be predicted."""
    loss: tuple[float, ...] = ()
    """Of a language model, summed over the tokens that were to be predicted."""


class Score(Part):
    """One evaluation of the split."""

    step: int
    """Steps taken before it."""
    seconds: float
    """Of the evaluation alone, without the evidence that is taken of it."""
    figures: dict[str, float]
    """What the loop says: the loss, and each metric."""
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """Of each metric, from the answers to each example."""
    answers: Answers | None = None
    """None where they are too many to keep."""
    answered: int = 0
    """Examples to which there is an answer."""
    stochastic: int = 0
    """Modules with a dropout above 0 or with running statistics."""
    training: tuple[str, ...] = ()
    """Those of them that were in train mode in a forward pass of it."""
    drew: bool = False
    """A forward pass drew random numbers."""
    modes: tuple[str, ...] = ()
    """Modules that it left in another mode than they were in."""
    changed: tuple[str, ...] = ()
    """Parameters, buffers and random generators that are other than before it."""


class Evaluation(Part):
    """What there is to see of the evaluation split and of its evaluations."""

    source: str
    revision: str | None = None
    rows: int
    dropped: int = 0
    dropped_rows: tuple[Row, ...] = ()
    metrics: tuple[str, ...]
    """The first has to improve."""
    lower_is_better: tuple[str, ...] = ()
    resamples: int
    confidence: float
    scores: tuple[Score, ...] = ()
    """Before training, in the midst of it where that is declared, and after it."""
    improvements: dict[str, Interval] = Field(default_factory=dict)
    """Of each metric from the first score to the last: above 0 is better."""
    label_names: tuple[str, ...] = ()
    """As the rows of the split are read."""
    config_label_names: tuple[str, ...] = ()
    """As the model's config has them."""
    examples: tuple[Example, ...] = ()
    """Of the kept batches."""
    batches: tuple[Batch, ...] = ()
    """Of the first evaluation, as they reached the model; `step` is their number."""
    drawn: tuple[int, ...] = ()
    """Index of each example that the first evaluation put to the model, in order."""
    leaked: int = 0
    """Rows that are trained on, too, word for word."""
    leaks: tuple[Row, ...] = ()
    """The first of them; the note names the row of the training data."""
    alike: int = 0
    """Rows that differ from one that is trained on in case, spaces and punctuation only."""
    likenesses: tuple[Row, ...] = ()
    """The first of them."""


class Record(Part):
    """One case, run once."""

    format: int = FORMAT
    experiment: str
    case: str
    outcome: Outcome
    reason: str = ""
    """One sentence for every outcome but `finished`."""
    traceback: str = ""
    """Of a crash; of an error that the harness itself reports, what `reason` leaves out of its message."""
    started: datetime
    seconds: float
    """Wall time of the whole case: loading, training, probes."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What the experiment declares for this case, by dotted key; sequences and labels stand as a digest."""
    environment: Environment = Environment()
    checkpoint: Checkpoint | None = None
    adapters: Adapters | None = None
    tokenizer: Tokenizer | None = None
    data: Data | None = None
    masking: Masking | None = None
    """Where tokens are hidden at random."""
    evaluation: Evaluation | None = None
    """Where a split to evaluate on is declared."""
    examples: tuple[Example, ...] = ()
    lost: tuple[int, ...] = ()
    """Indices of the examples that have lost something to be learnt, as in what is cut off."""
    lost_among: int = 0
    """How many were looked at for that: all of a small source, the first of a large one."""
    batches: tuple[Batch, ...] = ()
    """The distinct batches of the run, from its start until `BATCH_TOKENS` are reached."""
    steps: Steps = Steps()
    parameters: tuple[Parameter, ...] = ()
    optimizer: Optimizer | None = None
    modes: Modes | None = None
    compilation: Compilation | None = None
    """Where `train.compile` is declared."""
    memory: Memory = Memory()
    machine: Machine = Machine()
    counters: Counters = Counters()
    efficiency: Efficiency = Efficiency()
    profile: Profile | None = None
    """Where somebody asked for it."""
    probes: dict[str, dict[str, Evidence]] = Field(default_factory=dict)
    """Evidence by probe."""
    probe_seconds: dict[str, float] = Field(default_factory=dict)
    """What each probe took."""
    invariants: dict[str, Any] = Field(default_factory=dict)
    """What the experiment says of laws: off, or with options."""
    expect_broken: dict[str, str] = Field(default_factory=dict)
    """Laws that the experiment knows to be broken, and why."""

    @model_validator(mode="after")
    def _fit(self, info: ValidationInfo) -> Self:
        """A line that somebody else may have written has settings of the types that they are read as."""
        if info.mode == "json":
            wrong = [(("settings", *location), error) for location, error in mistyped(self.settings)]
            if self.finished and not self.settings:
                wrong.append((("settings",), problem("nothing", "what the experiment declares, as it finished")))
            if wrong:
                raise problems("Record", wrong)
        return self

    @property
    def name(self) -> str:
        """``FILE::CASE``, as pytest writes it."""
        return f"{self.experiment}::{self.case}"

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return self.outcome == "finished"

    def to_json(self) -> str:
        """One line of valid JSON."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, line: str | bytes) -> Record:
        """Read one line.

        Raises:
            pydantic.ValidationError: the line is no record.
        """
        return cls.model_validate_json(line)
