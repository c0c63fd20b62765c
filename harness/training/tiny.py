"""Any architecture's config, made tiny by its own field names and values.

No model is named here. What a field means is read from its name, by the words that transformers' configs share
(`n_layer`, `encoder_layers`, `num_hidden_layers`), and how far it shrinks from the other values of the same config:
widths keep their ratios, key-value heads stay fewer than heads, and the layers that are left show every kind of layer
that the full model has.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from harness.errors import HarnessError

WIDTH = 64
"""The hidden size aimed at. The real one is the nearest by which all widths of the config shrink without rounding."""
HEADS = 4
LAYERS = 2
"""Of each kind."""
EXPERTS_PER_TOKEN = 2
POSITIONS = 256
WINDOW = 16
"""Tokens in a window, block or chunk. Short enough to be active in a batch of sentences; two layers of it reach 31
tokens back, so that few tokens are out of every reader's sight."""
VOCABULARY = 1000
"""Rows of the token embedding where nobody says how many."""


class UnknownConfigKey(HarnessError, ValueError):
    """A `config:` key that the architecture's config class does not know."""

    def __init__(self, key: str, model_type: str, known: Iterable[str]) -> None:
        """Name `key` and the nearest of the `known` ones, all of them dotted where nested."""
        by_last = {name.rpartition(".")[2]: name for name in sorted(known, reverse=True)}
        near = [by_last[last] for last in difflib.get_close_matches(key.rpartition(".")[2], by_last)]
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        super().__init__(f"config key {key!r} is unknown to architecture {model_type!r}{hint}")
        self.key = key


class InvalidConfig(HarnessError, ValueError):
    """Config values that the architecture's config class refuses."""


def configure(
    model_type: str, *, size: Literal["tiny", "default"], vocab_size: int | None, overrides: Mapping[str, Any]
) -> PreTrainedConfig:
    """The config of a model with random weights: the architecture's defaults, made tiny if asked, then `overrides`.

    An override always wins, and a tiny config shapes itself around it: with `num_hidden_layers: 5` its lists of layer
    types have five entries, with `hidden_size: 128` the other widths follow. Nested configs are overridden by nested
    mappings. `vocab_size` is the number of embedding rows; None leaves it at the architecture's own (`size="default"`)
    or at most at `VOCABULARY` (`size="tiny"`).

    Raises UnknownConfigKey, or InvalidConfig for an unknown `model_type` and for values that don't go together.
    """
    try:
        config = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise InvalidConfig(f"transformers knows no architecture {model_type!r}") from error
    overrides = _canonical(config, overrides)
    _check_sizes(config, overrides)
    try:
        if size == "tiny":
            return shrink(config, vocab_size=vocab_size or _vocabulary(config), keep=overrides)
        config = _rebuilt(config, _resized_vocabulary(config, vocab_size))
        return _rebuilt(config, _nested(config, overrides))
    # Hundreds of config classes check their values, and they don't agree on what to raise.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InvalidConfig(f"architecture {model_type!r} refuses the config {overrides!r}: {reason}") from error


def shrink(config: PreTrainedConfig, *, vocab_size: int, keep: Mapping[str, Any] | None = None) -> PreTrainedConfig:
    """A new config of the same class with every size made small; `config` itself is left as it is.

    `vocab_size` is the number of embedding rows. Fields in `keep` get these values, and what depends on them follows.
    Rates, activations and everything else that is not a size stay, dropout included.
    """
    keep = keep or {}
    scale = _scale(config, vocab_size, keep)
    changes = dict(keep)
    for name, value in _values(config).items():
        if isinstance(value, PreTrainedConfig) and isinstance(keep.get(name, {}), Mapping):
            changes[name] = shrink(value, vocab_size=vocab_size, keep=keep.get(name))
        elif name not in keep:
            changes[name] = _resized(name, value, scale)
    if own := _own_of_layers(config):
        changes["per_layer_config"] = {
            new: {name: _resized(name, value, scale) for name, value in own[old].items()}
            for new, old in enumerate(scale.layers)
            if old in own
        }
    return _rebuilt(config, changes)


def set_dropout(config: PreTrainedConfig, rate: float, keep: Mapping[str, Any]) -> None:
    """Set every dropout rate of `config`, and of the configs inside it, but for the fields in `keep`.

    A field that is None (BERT's `classifier_dropout`) goes on following another one.
    """
    # All that it holds, not only its fields: T5Gemma's config hands its own rates to those inside it.
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            nested = keep.get(name)
            set_dropout(value, rate, nested if isinstance(nested, Mapping) else {})
        elif "dropout" in name and isinstance(value, float | int) and not isinstance(value, bool) and name not in keep:
            setattr(config, name, rate)


# What a size is, by its name. The first rule that fits is taken, so the special names stand before the general ones.


@dataclasses.dataclass(frozen=True)
class _Scale:
    """The sizes that the others follow, before and after."""

    config: PreTrainedConfig
    old_width: int
    width: int
    old_heads: int
    heads: int
    old_layers: int
    layers: tuple[int, ...]
    """The original layers that stay, by index."""
    old_blocks: int
    blocks: int
    vocabulary: int


def _at_most(limit: int) -> Callable[[int, _Scale], int]:
    return lambda old, scale: min(old, limit)


def _layer_count(old: int, scale: _Scale) -> int:
    return min(old, len(scale.layers))


def _head_count(old: int, scale: _Scale) -> int:
    """One head stays one, fewer than the attention heads stay fewer and divide them, more stay more."""
    if old == scale.old_heads or old == 1:
        return min(old, scale.heads)
    return max(1, scale.heads // 2) if old < scale.old_heads else 2 * scale.heads


def _head_width(old: int, scale: _Scale) -> int:
    """Keep the ratio to hidden size / heads. A multiple of 4, so that halves of it can be rotated in pairs."""
    if not (scale.old_width and scale.old_heads):
        return min(old, WIDTH // HEADS)
    ratio = old * scale.old_heads / scale.old_width
    return min(old, max(4, 4 * round(ratio * scale.width / scale.heads / 4)))


def _width(old: int, scale: _Scale) -> int:
    """Keep the ratio to the hidden size."""
    if not scale.old_width:
        return min(old, scale.width)
    exact = old * scale.width / scale.old_width
    return min(old, max(8, int(exact) if exact.is_integer() else 8 * round(exact / 8)))


def _inner_width(old: int, scale: _Scale) -> int:
    # Grouped matrix products of experts take multiples of 4 only.
    return min(8 * math.ceil(_width(old, scale) / 8), 4 * scale.width)


def _positions(old: int, scale: _Scale) -> int:
    # 514 is 512 and two rows that RoBERTa's padding takes: the odd rows stay.
    return min(old, POSITIONS + old % 64)


def _image_size(old: int, scale: _Scale) -> int:
    """Four patches wide."""
    patch = getattr(scale.config, "patch_size", None)
    return min(old, 4 * patch if isinstance(patch, int) else WIDTH)


def _kernel(old: int, scale: _Scale) -> int:
    # An odd kernel stays odd: its padding is half of it on each side.
    return min(old, 8 + old % 2)


_RULES: tuple[tuple[str, Callable[[int, _Scale], int]], ...] = (
    # Tables.
    (r"^vocab_size$", lambda old, scale: scale.vocabulary),
    (r"vocab_size", lambda old, scale: min(old, scale.vocabulary)),
    (r"hash_buckets$", _at_most(VOCABULARY)),
    # How many tokens attention may pick by their content is no size of the model. Short text is attended to in full, as
    # in the real model; with a small number the choice, and so the result, would depend on padding.
    (r"^index_topk$|^keep_window_size$|attn_chunk_length$", lambda old, scale: old),
    # Coordinates come from the data, not from the length of the text: layout models read boxes of 0..1000.
    (r"2d_position", lambda old, scale: old),
    (r"position(s|_embeddings)$|max_seq_len$|seq_length$", _positions),
    # Depth. The first layer of a period, and the first dense layers of a mixture, leave room for the other kind.
    (r"shared_layers$", _at_most(1)),
    (r"(^|_)period$|(^|_)interval$|_pattern$|_step$|every_n_layers$", _at_most(LAYERS)),
    (r"_offset$|first_k_dense", _at_most(1)),
    (r"(^|_)layers$|^n_layer$|^num_layer$|^depth$|max_depth$|self_attends_per_block$", _layer_count),
    # Experts: four of them in two groups, and the two that a token takes from one group.
    (r"topk_group$", _at_most(1)),
    (r"^n_group$|expert_groups?$", _at_most(2)),
    (r"experts_per_tok(en)?$|top_?k$|top_?k_experts$|^moe_k$", _at_most(EXPERTS_PER_TOKEN)),
    (r"experts$|expert_num$", _at_most(4)),
    # Attention heads, and groups of a state space's heads.
    (r"n_?groups$", _at_most(2)),
    (r"(^|_)n_heads?$|heads$|query_groups$", _head_count),
    (r"head_?dim$|^d_head$|^d_kv$|kv_channels$|attention_head_size$|rotary_dim$", _head_width),
    # Windows, kernels, images, states.
    (r"window(_size)?$|^local_attention$|block_size$|^chunk_size$|stride$", _at_most(WINDOW)),
    (r"d_conv$|kernel(_size|_dim)?$", _kernel),
    (r"(image|input)_size$", _image_size),
    (r"patch_size$|merge_size$", lambda old, scale: old),
    (r"tokens_per_image$", _at_most(4)),
    (r"rank$|d_state$|state_size$|^num_latents$", _at_most(WINDOW)),
    # Widths: everything else that calls itself a size or a dimension.
    (r"intermediate|ffn|feed_forward|inner|(^|_)d?ff$", _inner_width),
    (r"hidden_size$|^d_|^n_embd$|(^|_)dim$|_size$|embds_dim$|^out(put)?_channels$", _width),
)


def _resized(name: str, value: Any, scale: _Scale) -> Any:
    """The new value of one field that is not a config itself."""
    if name == "vocab_size":
        return scale.vocabulary
    if value is None:
        return _unset(name, scale)
    if name == "rope_parameters" and value == {}:
        # A rotation for each kind of layer, with none declared: none.
        return dict.fromkeys(getattr(scale.config, "layer_types", None) or [])
    if isinstance(value, list | tuple):
        return type(value)(_resized_list(name, value, scale))
    return _resized_number(name, value, scale)


def _unset(name: str, scale: _Scale) -> Any:
    """A value for a field that the class leaves open although its model needs one; else None."""
    if name == "head_dim" and scale.old_width:
        return scale.width // scale.heads
    if name == "num_key_value_heads" and scale.old_heads:
        return scale.heads
    if name == "num_experts_per_tok":
        return EXPERTS_PER_TOKEN
    if name.startswith("default_"):
        # A choice for the user to make (`default_language`): the first of those on offer (`languages`).
        return next(iter(getattr(scale.config, name.removeprefix("default_") + "s", None) or []), None)
    return None


def _resized_number(name: str, value: Any, scale: _Scale) -> Any:
    # 0 and -1 switch something off, True is no size.
    if type(value) is not int or value < 1:
        return value
    return next((resize(value, scale) for pattern, resize in _RULES if re.search(pattern, name)), value)


def _resized_list(name: str, value: Sequence[Any], scale: _Scale) -> Sequence[Any]:
    if (kinds := _kinds_by_layer(value, scale.old_layers)) is not None:
        kept = [_resized_number(name, kinds[layer], scale) for layer in scale.layers]
        return [[kept, 1]] if _is_run_length(value) else kept
    if not value or not all(type(item) is int for item in value):
        return value
    if len(value) == scale.old_blocks:
        return [min(value[block % len(value)], 1) for block in range(scale.blocks)]
    if math.prod(value) == getattr(scale.config, "max_position_embeddings", None):
        return _factors(value)
    if name.endswith(("_ids", "_layers", "_indices", "_indexes", "_idx")) and max(value) < scale.old_layers:
        return [new for new, old in enumerate(scale.layers) if old in value]
    return [_resized_number(name, item, scale) for item in value]


def _factors(value: Sequence[int]) -> list[int]:
    """As many factors, of about the same size, with `POSITIONS` as their product."""
    side = 2 ** (POSITIONS.bit_length() // len(value))
    return [*[side] * (len(value) - 1), POSITIONS // side ** (len(value) - 1)]


# The layers that stay.


def _layers(config: PreTrainedConfig, old_layers: int, wanted: int | None) -> tuple[int, ...]:
    """Indices of the fewest layers that show every kind of layer, or of as many as `wanted`.

    Each kind is there twice if the model has it twice: some share weights between the layers of one kind.
    """
    lists = [_kinds_by_layer(value, old_layers) for value in _values(config).values()]
    per_layer = list(zip(*filter(None, lists), strict=True)) or [()] * old_layers
    seen: Counter[tuple[int, Any]] = Counter()
    chosen = []
    for layer, of_layer in enumerate(per_layer):
        kinds = [*enumerate(of_layer), (-1, "any")]
        if any(seen[kind] < LAYERS for kind in kinds):
            chosen.append(layer)
            seen.update(kinds)
    others = [layer for layer in range(old_layers) if layer not in chosen]
    count = wanted or max(len(chosen), _longest_pattern(config, old_layers))
    kept = (chosen + others)[:count]
    # More layers than the architecture has by default: the whole pattern again.
    kept += [layer % old_layers for layer in range(len(kept), count) if old_layers]
    return tuple(sorted(kept))


def _longest_pattern(config: PreTrainedConfig, old_layers: int) -> int:
    """The length of a list of kinds that is repeated over the layers; 0 where there is none."""
    lists = [
        value for name, value in _values(config).items() if name.endswith("_types") and isinstance(value, list | tuple)
    ]
    return max((len(value) for value in lists if len(value) < old_layers and not _is_run_length(value)), default=0)


def _kinds_by_layer(value: Any, old_layers: int) -> list[Any] | None:
    """The kind of each layer if `value` is a list with one entry a layer, written out or as `[[kinds, times], ...]`."""
    if not isinstance(value, list | tuple) or old_layers < 2:
        return None
    value = _expanded(value)
    if all(type(kind) is int for kind in value) and len(set(value)) == len(value):
        return None  # all different: indices of layers, not kinds
    fits = len(value) == old_layers and all(isinstance(kind, str | int | float) for kind in value)
    return list(value) if fits else None


def _block_list(config: PreTrainedConfig, old_layers: int) -> str | None:
    """The field that lists the number of layers in each block, if there is one."""
    lists = {name: value for name, value in _values(config).items() if isinstance(value, list | tuple)}
    whole = {name: value for name, value in lists.items() if all(type(item) is int for item in value)}
    return next((name for name, value in whole.items() if sum(value) == old_layers and max(value) > 1), None)


def _expanded(value: Sequence[Any]) -> Sequence[Any]:
    return [kind for kinds, times in value for kind in list(kinds) * times] if _is_run_length(value) else value


def _is_run_length(value: Sequence[Any]) -> bool:
    return bool(value) and all(
        isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], list | tuple) and type(item[1]) is int
        for item in value
    )


# The sizes that the others follow.


def _scale(config: PreTrainedConfig, vocab_size: int, keep: Mapping[str, Any]) -> _Scale:
    old_width = _leading(config, "hidden_size", _width)
    old_heads = _leading(config, "num_attention_heads", _head_count)
    old_layers = _leading(config, "num_hidden_layers", _layer_count)
    # A number of key-value heads that is asked for must divide the heads.
    shared = _kept(config, keep, "num_key_value_heads") or 1
    heads = _kept(config, keep, "num_attention_heads") or shared * max(1, min(old_heads, HEADS) // shared)
    blocks = _block_list(config, old_layers)
    return _Scale(
        config=config,
        old_width=old_width,
        width=_kept(config, keep, "hidden_size") or _tiny_width(config, old_width, heads),
        old_heads=old_heads,
        heads=heads,
        old_layers=old_layers,
        layers=_layers(config, old_layers, _wanted_layers(config, old_layers, keep)),
        old_blocks=len(getattr(config, blocks)) if blocks else 0,
        blocks=len(keep[blocks]) if blocks is not None and blocks in keep else LAYERS,
        vocabulary=vocab_size,
    )


def _wanted_layers(config: PreTrainedConfig, old_layers: int, keep: Mapping[str, Any]) -> int | None:
    """The number of layers that `keep` asks for, by number or by the length of a list with one entry a layer."""
    number = _kept(config, keep, "num_hidden_layers")
    per_layer = [name for name, value in _values(config).items() if _kinds_by_layer(value, old_layers) is not None]
    lists = [keep[name] for name in per_layer if isinstance(keep.get(name), list | tuple)]
    return number or next((len(_expanded(value)) for value in lists), None)


def _leading(config: PreTrainedConfig, name: str, resize: Callable[[int, _Scale], int]) -> int:
    """The value of the field `name` or, where the class has no such synonym, of its first field of that kind; or 0."""
    value = _value(config, name)
    if type(value) is int:
        return value
    return next((value for name, value in _numbers(config) if _rule(name) is resize), 0)


def _kept(config: PreTrainedConfig, keep: Mapping[str, Any], name: str) -> int | None:
    value = keep.get(config.attribute_map.get(name, name))
    return value if type(value) is int else None


def _tiny_width(config: PreTrainedConfig, old_width: int, heads: int) -> int:
    """Near `WIDTH`: a hidden size that all widths shrink to exactly, with heads of an even width.

    It keeps a factor 3 (some models cut the hidden size in six) and prefers heads that a quarter of can be rotated.
    """
    together = math.gcd(old_width, *(value for name, value in _numbers(config) if _rule(name) is _width))
    exact = [old_width // divisor for divisor in range(1, together + 1) if together % divisor == 0]
    fitting = [width for width in exact if width % (2 * heads) == 0 and WIDTH / 2 <= width <= WIDTH * 2]

    def faults(width: int) -> tuple[bool, bool, int]:
        return old_width % 3 == 0 and width % 3 > 0, width % (8 * heads) > 0, abs(width - WIDTH)

    return min(fitting, key=faults, default=max(1, WIDTH // (2 * heads)) * 2 * heads)


def _rule(name: str) -> Callable[[int, _Scale], int] | None:
    return next((resize for pattern, resize in _RULES if re.search(pattern, name)), None)


def _numbers(config: PreTrainedConfig) -> list[tuple[str, int]]:
    """The counts and sizes among the fields, those in lists too."""
    items = [(name, value if isinstance(value, list | tuple) else [value]) for name, value in _values(config).items()]
    return [(name, item) for name, values in items for item in values if type(item) is int and item > 0]


# Reading and rebuilding a config.


def _values(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that the class is built from, without the numbers that it works out from others."""
    derived = {name for name in _derived(config) if type(_value(config, name)) is int}
    return {name: _value(config, name) for name in _fields(config) if name not in derived}


def _value(config: PreTrainedConfig, name: str) -> Any:
    """A field that its layers may override: the config refuses to say what holds for the others."""
    return vars(config)[name] if name in vars(config) else getattr(config, name, None)


def _plain(value: Any) -> Any:
    """Something that can be compared: configs of layers that differ cannot."""
    return value.to_dict() if isinstance(value, PreTrainedConfig) else value


def _own_of_layers(config: PreTrainedConfig) -> dict[int, dict[str, Any]]:
    """The fields that some layers have values of their own for, by layer; none in most architectures."""
    if not getattr(config, "is_heterogeneous", False):  # of transformers 5.23; earlier ones have no such configs
        return {}
    return {int(layer): dict(own) for layer, own in config.to_dict()["per_layer_config"].items()}


def _derived(config: PreTrainedConfig) -> set[str]:
    """Fields declared as None or "auto" that have a value all the same: left out, the class works it out anew."""
    default = type(config)()
    return {
        name
        for name, declared in _fields(config).items()
        if (declared is None or isinstance(declared, str))
        and _value(config, name) != declared
        and _plain(_value(config, name)) == _plain(_value(default, name))
    }


def _fields(config: PreTrainedConfig) -> dict[str, Any]:
    """What the class can be built from, with the values that it declares as defaults."""
    return {field.name: field.default for field in dataclasses.fields(config) if field.init}


def _rebuilt(config: PreTrainedConfig, changes: Mapping[str, Any]) -> PreTrainedConfig:
    """A new config with some fields changed and those that follow from them worked out anew."""
    kept = _fields(config).keys() - _derived(config)
    if "num_labels" in changes:
        kept -= {"id2label", "label2id"}
    return type(config)(**{name: _value(config, name) for name in kept} | dict(changes))


def _nested(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides with each mapping for a nested config replaced by that config, rebuilt."""
    return {
        name: _rebuilt(nested, _nested(nested, value))
        if isinstance(nested := getattr(config, name, None), PreTrainedConfig) and isinstance(value, Mapping)
        else value
        for name, value in overrides.items()
    }


def _vocabulary(config: PreTrainedConfig) -> int:
    text = config.get_text_config()
    return min(getattr(text, "vocab_size", None) or VOCABULARY, VOCABULARY)


def _resized_vocabulary(config: PreTrainedConfig, vocab_size: int | None) -> dict[str, Any]:
    """The changes that give `config` and the configs inside it `vocab_size` rows."""
    changes: dict[str, Any] = {}
    if vocab_size is None:
        return changes
    for name, value in _values(config).items():
        if isinstance(value, PreTrainedConfig):
            changes[name] = _rebuilt(value, _resized_vocabulary(value, vocab_size))
        elif name == "vocab_size":
            changes[name] = vocab_size
    return changes


def _canonical(config: PreTrainedConfig, overrides: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The overrides by the class's own field names, with synonyms resolved. Raises UnknownConfigKey."""
    canonical: dict[str, Any] = {}
    for key, value in overrides.items():
        if key not in _keys(config):
            known = {prefix + name for name in _nested_keys(config)}
            raise UnknownConfigKey(prefix + key, config.model_type, known)
        nested = getattr(config, key, None)
        if isinstance(nested, PreTrainedConfig) and isinstance(value, Mapping):
            value = _canonical(nested, value, f"{prefix}{key}.")
        canonical[config.attribute_map.get(key, key)] = value
    return canonical


def _check_sizes(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> None:
    """Raise InvalidConfig for a size below 1: transformers builds a model of -1 layers without a word."""
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        value = _kept(config, overrides, name)
        if value is not None and value < 1:
            raise InvalidConfig(
                f"config key {config.attribute_map.get(name, name)!r}: found {value}, expected 1 or more"
            )
    for name, nested in overrides.items():
        if isinstance(inner := getattr(config, name, None), PreTrainedConfig) and isinstance(nested, Mapping):
            _check_sizes(inner, nested)


def _keys(config: PreTrainedConfig) -> set[str]:
    """What the class can be built from: its fields, their synonyms and the number of labels."""
    return {*_fields(config), *config.attribute_map, "num_labels"}


def _nested_keys(config: PreTrainedConfig) -> set[str]:
    """The same with those of the configs inside it, dotted."""
    inner = {name: value for name, value in vars(config).items() if isinstance(value, PreTrainedConfig)}
    return _keys(config) | {f"{name}.{key}" for name, value in inner.items() for key in _nested_keys(value)}
