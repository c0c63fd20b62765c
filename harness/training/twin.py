"""The twin: the experiment's model as a loop gets it, in fp32 on the CPU, with every dropout at 0.

Logic is judged on the twin, where two right ways of computing the same thing differ by rounding alone; precision is
judged on the real run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from harness.training import attention
from harness.training.tiny import set_dropout


def twin(model: Any) -> Any:
    """A deep copy of `model` in fp32 on the CPU that draws no random numbers, in eval mode."""
    other = copied(model).to("cpu", torch.float32).eval()
    for parameter in other.parameters():
        parameter.grad = None
    attention.on_cpu(other)
    silence(other)
    for config in (other.config, other.config.get_text_config()):
        set_dropout(config, 0.0, keep={})  # BigBird makes its attention anew in the first forward pass
        if getattr(config, "use_cache", False):
            config.use_cache = False  # nothing is generated, and RWKV's cache is changed in place
    return other


def copied(model: Any) -> Any:
    """A deep copy. What a module has kept of its last forward pass (RecurrentGemma's states) is cut off the graph."""
    kept = (value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor))
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in kept if not value.is_leaf}
    return copy.deepcopy(model, memo)


@contextmanager
def same_draws(state: torch.Tensor | None = None) -> Iterator[None]:
    """Let what runs inside draw the same random numbers each time, and what runs after it as if nothing had been drawn.

    Dropout is not all that draws: Reformer hashes at random in eval mode too, and Phi-MoE samples its experts.

    Args:
        state: of the CPU's generator, to draw from; by default one that never changes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(0).get_state() if state is None else state)
        yield


def silence(model: Any) -> None:
    """Set every dropout probability to 0: of modules, and of attention layers that keep the number for themselves."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if is_dropout(name, value):
                setattr(module, name, 0.0)


def is_dropout(name: str, value: object) -> bool:
    """Whether a module's attribute is a dropout probability: ``attention_dropout``, ``dropout_prob``, ``layerdrop``."""
    return "drop" in name and isinstance(value, float) and 0 < value < 1


def dropouts(module: torch.nn.Module) -> dict[str, float]:
    """The dropout probabilities above 0 that a module has itself, by the name of its attribute."""
    own = isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0
    return {name: value for name, value in vars(module).items() if is_dropout(name, value) or (own and name == "p")}


def is_stochastic(module: torch.nn.Module) -> bool:
    """Whether a module behaves differently in train and eval mode: dropout above 0, or running statistics."""
    if isinstance(module, torch.nn.modules.batchnorm._NormBase):
        return bool(module.track_running_stats)
    return bool(dropouts(module))
