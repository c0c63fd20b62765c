"""Packing: a model's layers compute the real tokens of a batch alone, all its sequences in one row.

Batches reach the model padded, as ever, and the head gets what it would get; between the two, padding is left out of
every matrix product, and attention goes from sequence to sequence (as in "padding-free training" of transformers' and
TRL's guides, which is for decoders on CUDA devices). Where the head is a product with the whole vocabulary, padding is
left out of it, too, and in a decoder out of the loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harness.errors import Unavailable, count
from harness.training import adapters, attention, choice
from harness.training.choice import GAIN, Trial, in_turns
from harness.training.devices import Device
from harness.training.tasks import IGNORED

PACKED = "sdpa_packed"
"""The implementation of attention that a packed model uses; in any other one it computes padded batches."""
ENCODERS = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
"""Types of models whose layers know of a token's place by what the embeddings say alone."""
DECODERS = (
    "gemma",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "starcoder2",
)
"""Types of models whose tokens take the positions that they are told, and meet in attention alone: of transformers
5.23, as `packing_changes_nothing` says of each."""
_BY_TOKEN = ("hidden_states", "inputs_embeds", "token_type_ids", "position_ids")
"""What a stack of layers may get that is of rows x places, or rows x places x width."""


def require(model: Any, device: Device) -> None:
    """See to it that the model can be packed, and its device is one where that is done.

    Raises:
        Unavailable: it cannot; says why.
    """
    kind, name = model.config.model_type, type(model).__name__
    if kind not in (*ENCODERS, *DECODERS) or (kind in ENCODERS and getattr(model.config, "is_decoder", False)):
        raise Unavailable(
            f"no packing in {name}: only in encoders of {', '.join(ENCODERS)} and decoders of {', '.join(DECODERS)}"
        )
    if hasattr(adapters.base(model), "qa_outputs"):
        raise Unavailable(f"no packing in {name}: its loss is over all places of a row, those of padding included")
    if getattr(model.config, "output_router_logits", False):
        raise Unavailable(f"no packing in {name} with output_router_logits: its loss counts experts by padded rows")
    if device.torch.type != "cpu":
        raise Unavailable(f"no packing on {device.name}: attention, sequence by sequence, would be many small kernels")


def use(model: Any) -> None:
    """Let the model's layers compute real tokens alone."""
    AttentionInterface.register(PACKED, attend)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    model.set_attn_implementation(PACKED)
    layers, row = layers_of(model), _Row(model.config)
    layers.register_forward_pre_hook(row.pack, with_kwargs=True)
    layers.register_forward_hook(row.unpack)
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(row.pack_head)
        if model.config.model_type in DECODERS:  # whose loss is what `loss_function` says
            own = adapters.base(model)
            row.right_loss, own.loss_function = own.loss_function, row.loss
            model.register_forward_hook(row.unpack_logits)
        else:
            head.register_forward_hook(row.unpack_head)


def layers_of(model: Any) -> Any:
    """The stack of layers: of an encoder what takes hidden states, of a decoder what takes tokens and their places."""
    decodes = model.config.model_type in DECODERS
    takes = {"attention_mask", "kwargs"} | ({"input_ids", "position_ids"} if decodes else {"hidden_states"})
    for module in model.modules():
        stacked = any(isinstance(child, torch.nn.ModuleList) for child in module.children())
        if stacked and takes <= inspect.signature(module.forward).parameters.keys():
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
    """Attention within each sequence of a row; in a decoder's layers, to what comes before.

    Args:
        module: the layer.
        query: 1 x heads x tokens x width, as `key` and `value`, which may have fewer heads; where no lengths are given,
            rows of a batch.
        key: likewise.
        value: likewise.
        attention_mask: of a batch that is not packed.
        dropout: probability.
        scaling: of the scores.
        lengths: tokens of each sequence in the row, one after the other.
        kwargs: for the implementation of transformers.
    """
    if not lengths:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    groups = getattr(module, "num_key_value_groups", 1)
    heads = (query, repeat_kv(key, groups), repeat_kv(value, groups))
    sequences = zip(*(each.split(list(lengths), dim=2) for each in heads), strict=True)
    way = {"dropout_p": dropout, "scale": scaling, "is_causal": getattr(module, "is_causal", True)}  # as there
    attended = [torch.nn.functional.scaled_dot_product_attention(*each, **way) for each in sequences]
    return torch.cat(attended, dim=2).transpose(1, 2), None


class _Row:
    """Takes the padding out of what layers get, and puts it back into what they give."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._real: torch.Tensor | None = None
        """Places of real tokens in the flattened batch; none where a batch is not packed."""
        self._shape: torch.Size = torch.Size()
        """Rows x places of the batch."""
        self.right_loss: Callable[..., torch.Tensor]
        """The decoder's own, of rows x places."""

    def pack(self, layers: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What is of rows x places becomes of 1 x real tokens; each keeps the place that it has in its padded row."""
        said = inspect.signature(layers.forward).bind(*args, **kwargs).arguments
        others = said.pop("kwargs", {})
        seen = self._seen(said)
        self._real = None
        if seen is None:
            return args, kwargs
        self._real, self._shape = seen.flatten().nonzero().squeeze(1), seen.shape
        if "hidden_states" not in said:
            if said.get("inputs_embeds") is None:
                said["inputs_embeds"] = layers.get_input_embeddings()(said.pop("input_ids"))
            if said.get("position_ids") is None:
                said["position_ids"] = torch.arange(seen.shape[1], device=seen.device)
            said["position_ids"] = said["position_ids"].expand(seen.shape)
            said["use_cache"] = False  # of a row nobody can go on
        row = {name: self._taken(said[name])[None] for name in _BY_TOKEN if said.get(name) is not None}
        lengths = [length for length in seen.sum(dim=1).tolist() if length]
        return (), {**said, **others, **row, "attention_mask": None, "lengths": lengths}

    def unpack(self, layers: Any, args: Any, output: Any) -> Any:
        """And back; padding gets zeros."""
        if self._real is not None:
            output.last_hidden_state = self._put_back(output.last_hidden_state[0])
        return output

    def pack_head(self, head: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hidden states of rows x places x width become those of real tokens x width."""
        whole = self._real is not None and args[0].shape[:2] == self._shape  # and not only what is to be kept of it
        return (self._taken(args[0]),) if whole else args

    def unpack_head(self, head: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        """And their logits those of rows x places x vocabulary; padding gets zeros."""
        return self._put_back(output) if output.dim() == 2 else output

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The model's own, of real tokens x vocabulary where its head got no others."""
        if logits.dim() == 2:
            following = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
            kwargs["shift_labels"] = self._taken(following)
        return self.right_loss(logits, labels, *args, **kwargs)

    def unpack_logits(self, model: Any, args: Any, output: Any) -> Any:
        """What the model gives is of rows x places x vocabulary, whatever its head got; padding gets zeros."""
        output.logits = self.unpack_head(model, args, output.logits)
        return output

    def _seen(self, said: dict[str, Any]) -> torch.Tensor | None:
        """Rows x places: which are of real tokens; none where the batch is to be computed as it is."""
        mask = said.get("attention_mask")
        if mask is None or self._config._attn_implementation != PACKED or said.get("past_key_values") is not None:
            return None
        seen: torch.Tensor = (mask[:, 0, 0] if mask.dim() == 4 else mask).bool()  # every query of an encoder sees it
        window = getattr(self._config, "sliding_window", None)
        if seen.all() or (window is not None and seen.shape[1] > window):
            return None
        return seen

    def _taken(self, padded: torch.Tensor) -> torch.Tensor:
        return padded.flatten(0, 1).index_select(0, self._real)

    def _put_back(self, row: torch.Tensor) -> torch.Tensor:
        padded = row.new_zeros(self._shape.numel(), row.shape[-1]).index_copy_(0, self._real, row)
        return padded.view(*self._shape, -1)


def settle(declared: bool | str, trial: Trial) -> tuple[bool, str]:
    """Whether a model is to be packed, and why.

    Args:
        declared: ``train.packing``; where that is true, `require` has been asked.
        trial: of a model that `use` has not changed.
    """
    return choice.settle(
        declared,
        lambda: require(trial.model, trial.device),
        lambda: _measured(trial),
        cannot="train.packing is auto",
        so_declared="train.packing declares it",
    )


def _measured(trial: Trial) -> tuple[bool, str]:
    batches, padded, packed = trial.batches(), trial.copied(), trial.copied()
    use(packed)
    ways = {"padded": padded, "packed": packed}
    took = in_turns({name: partial(trial.passes, way, batches) for name, way in ways.items()})
    (fast, turns), (slow, _) = took["packed"], took["padded"]
    says = f"{len(batches)} batches forward and backward in {fast:.3g} s packed, {slow:.3g} s padded"
    return fast < (1 - GAIN) * slow, f"train.packing is auto: {says} (median of {count(turns, 'turn')})"


def undone(model: Any) -> Any:
    """The same model, from here on computing padded batches."""
    attention.switch(model, "sdpa")
    return model
