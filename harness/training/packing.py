"""Packing: an encoder's layers compute the real tokens of a batch alone, all its sequences in one row.

Batches reach the model padded, as ever, and the head gets what it would get; between the two, padding is left out of
every matrix product, and attention goes from sequence to sequence (as in "padding-free training" of transformers' and
TRL's guides, which is for decoders on CUDA devices).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harness.errors import Unavailable, count
from harness.training import attention, choice
from harness.training.choice import GAIN, forth_and_back, in_turns
from harness.training.devices import Device

PACKED = "sdpa_packed"
"""The implementation of attention that a packed model uses; in any other one it computes padded batches."""
MODELS = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
"""Types of models whose layers know of a token's place by what the embeddings say alone."""


def require(model: Any, device: Device) -> None:
    """See to it that the model can be packed, and its device is one where that is done.

    Raises:
        Unavailable: it cannot; says why.
    """
    kind = model.config.model_type
    if kind not in MODELS or getattr(model.config, "is_decoder", False):
        raise Unavailable(f"no packing in {type(model).__name__}: only in encoders of {', '.join(MODELS)}")
    if device.torch.type != "cpu":
        raise Unavailable(f"no packing on {device.name}: attention, sequence by sequence, would be many small kernels")


def use(model: Any) -> None:
    """Let the model's layers compute real tokens alone."""
    AttentionInterface.register(PACKED, attend)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    model.set_attn_implementation(PACKED)
    encoder, row = _encoder(model), _Row(model.config)
    encoder.register_forward_pre_hook(row.pack, with_kwargs=True)
    encoder.register_forward_hook(row.unpack)


def _encoder(model: Any) -> Any:
    """The stack of layers: what takes hidden states, a mask, and anything that is for attention."""
    for module in model.modules():
        parameters = inspect.signature(module.forward).parameters
        if {"hidden_states", "attention_mask", "kwargs"} <= parameters.keys() and hasattr(module, "layer"):
            return module
    raise Unavailable(f"no packing in {type(model).__name__}: it has no stack of layers")


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    lengths: Sequence[int] = (),
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each sequence of a row.

    Args:
        module: the layer.
        query: 1 x heads x tokens x width, as `key` and `value`; where no lengths are given, rows of a batch.
        key: likewise.
        value: likewise.
        attention_mask: of a batch that is not packed.
        dropout: probability.
        scaling: of the scores.
        lengths: tokens of each sequence in the row, one after the other.
        kwargs: for the implementation of transformers.
    """
    if not lengths:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    sequences = zip(*(each.split(list(lengths), dim=2) for each in (query, key, value)), strict=True)
    attended = [
        torch.nn.functional.scaled_dot_product_attention(*each, dropout_p=dropout, scale=scaling) for each in sequences
    ]
    return torch.cat(attended, dim=2).transpose(1, 2), None


class _Row:
    """Takes the padding out of what an encoder gets, and puts it back into what it gives."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._real: torch.Tensor | None = None
        """Places of real tokens in the flattened batch; none where there is no padding."""
        self._shape: torch.Size = torch.Size()

    def pack(self, encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Hidden states of rows x places x width become those of 1 x real tokens x width."""
        said = inspect.signature(encoder.forward).bind(*args, **kwargs).arguments
        states, mask = said["hidden_states"], said.get("attention_mask")
        self._real = None
        if mask is None or self._config._attn_implementation != PACKED:
            return args, kwargs
        seen = mask[:, 0, 0]  # rows x places: every query sees the same
        self._real, self._shape = seen.flatten().nonzero().squeeze(1), states.shape
        lengths = [length for length in seen.sum(dim=1).tolist() if length]
        row = states.flatten(0, 1).index_select(0, self._real)[None]
        others = said.pop("kwargs", {})
        return (), {**said, **others, "hidden_states": row, "attention_mask": None, "lengths": lengths}

    def unpack(self, encoder: Any, args: Any, output: Any) -> Any:
        """And back; padding gets zeros."""
        if self._real is None:
            return output
        row = output.last_hidden_state[0]
        padded = row.new_zeros(self._shape[0] * self._shape[1], row.shape[-1]).index_copy(0, self._real, row)
        output.last_hidden_state = padded.view(*self._shape[:2], -1)
        return output


def settle(
    declared: bool | str,
    model: Any,
    device: Device,
    autocast: Callable[[], AbstractContextManager[Any]],
    batches: Callable[[], list[Any]],
) -> tuple[bool, str]:
    """Whether a model is to be packed, and why.

    Args:
        declared: ``train.packing``.
        model: which `use` has not changed.
        device: where it is.
        autocast: the precision of the forward pass.
        batches: makes a few batches with labels, on the device.

    Raises:
        Unavailable: it is declared, and cannot be.
    """
    return choice.settle(
        declared,
        lambda: require(model, device),
        lambda: _measured(model, autocast, batches()),
        cannot="train.packing is auto",
        so_declared="train.packing declares it",
    )


def _measured(model: Any, autocast: Callable[[], AbstractContextManager[Any]], batches: list[Any]) -> tuple[bool, str]:
    """On copies, which go when it is known."""
    padded, packed = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    use(packed)
    ways = {"padded": padded, "packed": packed}
    took = in_turns({name: partial(forth_and_back, way, autocast, batches) for name, way in ways.items()})
    (fast, turns), (slow, _) = took["packed"], took["padded"]
    says = f"{len(batches)} batches forth and back in {fast:.3g} s packed, {slow:.3g} s padded"
    return fast < (1 - GAIN) * slow, f"train.packing is auto: {says} (median of {count(turns, 'turn')})"


def undone(model: Any) -> Any:
    """The model, computing padded batches."""
    attention.switch(model, "sdpa")
    return model
