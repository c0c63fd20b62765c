"""Who may influence whom, by gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.nn import Embedding

from harness.training.checkpoint import Loaded
from harness.training.probes.padding import larger
from harness.training.probes.result import Texts, chosen, features, inputs, logits, rows_of_tokens, texts
from harness.training.twin import same_draws, twin
from harness.training.workload import Workload


def dependence(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """Gradient of each example's squared logits with respect to every embedded token of its batch.

    The embedding's output is caught before any other hook sees it, on the twin in eval mode. Figures are the largest
    absolute values: on tokens of other examples, on padding, and the tokens of each example whose gradient is
    exactly 0; where tokens are predicted one by one, also that of the first half's logits on the tokens behind it. With
    the trained weights and with those that they started from: a model that has learnt a few examples by heart may be
    flat around them, and one whose head starts at 0 is flat then.
    """
    model = twin(work.model)
    indices = chosen(work.examples.lengths)
    rows = [features(work, index) for index in indices]
    batch, whole = work.plain_collator()(rows), texts(work, indices, rows)
    try:
        end = _influence(model, work, batch, whole)
    except AssertionError:  # Reformer computes gradients in train mode only; a twin drops nothing there either
        end = _influence(model.train(), work, batch, whole)
    model.load_state_dict(loaded.model.state_dict())
    start = _influence(model, work, batch, whole)
    return {
        "examples": list(whole.examples),
        "lengths": list(whole.lengths),
        **{name: [*map(larger, end[name], start[name])] for name in ("own", "future") if name in end},
        **{name: larger(end[name], start[name]) for name in ("others", "padding")},
        "dead": [sorted({*one} & {*two}) for one, two in zip(end["dead"], start["dead"], strict=True)],
    }


def _influence(model: Any, work: Workload, batch: Any, whole: Texts) -> dict[str, Any]:
    """The figures with the model's present weights."""
    columns = batch["input_ids"].shape[-1]
    real = torch.zeros(len(whole.lengths), columns, dtype=torch.bool)
    for row in range(len(real)):
        real[row, whole.real(row, columns)] = True
    try:
        tables, results = _tables(model, work, batch, real)
    except LookupError:
        if _reads(model, work, batch, real):
            raise
        return _nothing_read(work, whole)
    width = max(table.width for table in tables if table.of_tokens)
    real = torch.nn.functional.pad(real, (0, width - columns))  # Longformer pads to whole windows inside
    found: dict[str, Any] = {"own": [], "others": 0.0, "padding": 0.0, "dead": []}
    for row in range(len(real)):
        gradients = torch.autograd.grad(
            results[row, whole.read(row, results.shape[1])].square().sum(),
            [table.embedded for table in tables],
            retain_graph=True,
            allow_unused=True,
        )
        sizes = [table.size(gradient, width) for table, gradient in zip(tables, gradients, strict=True)]
        found["others"] = max([found["others"], *(_most(size, row) for size in sizes)])
        # Where ids are shifted on the way in, as decoders of encoder-decoders do, columns are no places of the text.
        mine = sum(size[row] for size, table in zip(sizes, tables, strict=True) if table.of_tokens)
        found["padding"] = max([found["padding"], *map(float, mine[~real[row]])])
        found["own"].append(float(mine.max()))
        first = whole.real(row, columns).start
        found["dead"].append([int(place) - first for place in torch.nonzero((mine == 0) & real[row]).flatten()])
    if work.task.causal:
        found["future"] = [_future(tables, results, row, whole.read(row, columns)) for row in range(len(real))]
    return found


def _reads(model: Any, work: Workload, batch: Any, real: torch.Tensor) -> bool:
    """Whether the logits are others, to the bit, where every word is another."""
    ids = rows_of_tokens(batch["input_ids"])
    words = real & ~torch.isin(ids, torch.tensor(work.tokenizer.all_special_ids))
    with torch.no_grad(), same_draws():
        one = logits(work.task, model(**inputs(work, batch)))
    with torch.no_grad(), same_draws():
        two = logits(work.task, model(**inputs(work, _with_other_tokens(batch, words, work.tokenizer))))
    return not torch.equal(one, two)


def _nothing_read(work: Workload, whole: Texts) -> dict[str, Any]:
    """The figures of a model that gives the same for whatever it gets."""
    rows = len(whole.lengths)
    found = {"own": [0.0] * rows, "others": 0.0, "padding": 0.0, "dead": [[*range(length)] for length in whole.lengths]}
    return {**found, "future": [0.0] * rows} if work.task.causal else found


def _future(tables: list[_Table], results: torch.Tensor, row: int, real: slice) -> float:
    """Largest gradient of the logits of a text's first half on the tokens of its second."""
    middle = (real.start + real.stop + 1) // 2
    said = results[row, real.start : middle].square().sum()
    own = [table for table in tables if table.of_tokens]
    gradients = torch.autograd.grad(said, [table.embedded for table in own], retain_graph=True, allow_unused=True)
    sizes = [table.size(gradient, real.stop)[row] for table, gradient in zip(own, gradients, strict=True)]
    behind = [size[middle : real.stop] for size in sizes]
    return max((float(size.max()) for size in behind if size.numel()), default=0.0)


@dataclass(frozen=True)
class _Table:
    """What one embedding of numbers for each token gave, as a leaf of the graph: rows x places x width, or with rows
    and places changed about, as XLNet has them.
    """

    embedded: torch.Tensor
    of_tokens: bool = False
    """A token changes its own place in it, and no other."""
    rows_second: bool = False

    @property
    def width(self) -> int:
        """Places for each row."""
        return self.embedded.shape[0 if self.rows_second else 1]

    def size(self, gradient: torch.Tensor | None, width: int) -> torch.Tensor:
        """Largest absolute gradient of each token, rows x `width`; 0 where the logits do not depend on the table."""
        size = self.embedded.new_zeros(self.embedded.shape) if gradient is None else gradient.abs()
        size = size.amax(dim=-1).T if self.rows_second else size.amax(dim=-1)
        return torch.nn.functional.pad(size, (0, max(0, width - size.shape[1])))


def _tables(model: Any, work: Workload, batch: Any, real: torch.Tensor) -> tuple[list[_Table], torch.Tensor]:
    """Every embedding of numbers for each token in a forward pass, and the logits that come of them.

    Which of them hold the text's tokens, and where, shows when one token of each row becomes another: models hash ids,
    pad them, transpose and shift them before they look them up.
    """
    with torch.no_grad():
        places = _first_words(rows_of_tokens(batch["input_ids"]), real, work.tokenizer)
        one_each = torch.zeros_like(real).scatter_(1, places.unsqueeze(1), True)
        other, _ = _forward(model, work, _with_other_tokens(batch, one_each, work.tokenizer), _kept)
    caught, results = _forward(model, work, batch, lambda output: output.detach().requires_grad_())
    tables = [_placed(one, two, places) for one, two in zip(caught, other, strict=True)]
    # One row of positions for all belongs to no example.
    tables = [table for table in tables if table.of_tokens or len(table.embedded) == len(places)]
    if not any(table.of_tokens for table in tables):
        raise LookupError("no embedding of the model was given the batch's input_ids")
    return tables, results


def _forward(
    model: Any, work: Workload, batch: Any, catch: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What `catch` makes of the output of each module that looks whole numbers up, and the logits that come of it."""
    caught: list[torch.Tensor] = []

    def hook(module: Any, args: tuple[Any, ...], output: Any) -> Any:
        embedded, *rest = output if isinstance(output, tuple) else (output,)  # I-BERT's come with a scale
        if not _is_lookup(args, embedded):
            return None
        caught.append(catch(embedded))
        embedded = caught[-1].clone()  # some models scale it in place, which a leaf does not allow
        return (embedded, *rest) if isinstance(output, tuple) else embedded

    leaves = [module for module in model.modules() if isinstance(module, Embedding) or not [*module.children()]]
    handles = [module.register_forward_hook(hook, prepend=True) for module in leaves]
    try:
        with same_draws():
            return caught, logits(work.task, model(**inputs(work, batch)))
    finally:
        for handle in handles:
            handle.remove()


def _kept(output: torch.Tensor) -> torch.Tensor:
    return output.detach()


def _is_lookup(args: tuple[Any, ...], output: Any) -> bool:
    """Whether a module was given a whole number for each token, and gave a vector for each."""
    if not args or not isinstance(args[0], torch.Tensor) or not isinstance(output, torch.Tensor):
        return False
    return args[0].dim() == 2 and not args[0].is_floating_point() and output.shape[:-1] == args[0].shape


def _placed(embedded: torch.Tensor, other: torch.Tensor, places: torch.Tensor) -> _Table:
    """The table, told where it keeps the tokens: by what differs when those at `places` are others."""
    if embedded.shape != other.shape:
        return _Table(embedded)
    differs = (embedded.detach() != other).any(dim=-1)
    found = {tuple(place) for place in torch.nonzero(differs).tolist()}
    expected = set(enumerate(places.tolist()))
    if found and found <= expected:
        return _Table(embedded, of_tokens=True)
    if found and found <= {(place, row) for row, place in expected}:
        return _Table(embedded, of_tokens=True, rows_second=True)
    return _Table(embedded)


def _with_other_tokens(batch: Any, places: torch.Tensor, tokenizer: Any) -> dict[str, torch.Tensor]:
    """The batch with the tokens at some places, rows x columns, replaced by another."""
    special = set(tokenizer.all_special_ids)
    one, two = islice((number for number in range(len(tokenizer) + 2) if number not in special), 2)
    ids = rows_of_tokens(batch["input_ids"])
    ids = torch.where(places, torch.where(ids == one, two, one), ids)
    return {**batch, "input_ids": ids.view(batch["input_ids"].shape)}


def _first_words(ids: torch.Tensor, real: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """The first place of each row that holds a word, or any token where there is none: heads look for special ones."""
    words = real & ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    return (2 * words.int() + real.int()).argmax(dim=1)


def _most(size: torch.Tensor, row: int) -> float:
    """Largest entry outside a row."""
    rest = [float(size[other].max()) for other in range(len(size)) if other != row]
    return max(rest, default=0.0)
