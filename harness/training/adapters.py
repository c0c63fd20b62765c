"""Low-rank adapters (LoRA) on a checkpoint, through the peft library, and the names that they give to parameters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from typing import Any

from harness import experiment, record
from harness.errors import CheckpointError, Unavailable

TASK_TYPES = {
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
}
"""What peft calls the tasks that it knows; the model class, and the heads it keeps by itself, depend on it."""

ADAPTER = re.compile(r"\.lora_\w+\.|\.lora_embedding_[AB]\.")
_WRAPPER = "base_model.model."
_SPARE = ".original_module."
"""Where peft keeps what a module that is trained whole was before."""
_COPY = ".modules_to_save.default"
_NEAREST = 5
"""Names that are listed where one matches nothing."""


def adapt(model: Any, declared: experiment.Peft, task: str, new: Collection[str]) -> tuple[Any, record.Adapters]:
    """The model with adapters on it, and everything else frozen but what is trained whole.

    Args:
        model: changed in place.
        declared: rank, scale, dropout, targets.
        task: of the experiment.
        new: parameters that the checkpoint did not hold: random, so they have to be trained.

    Raises:
        CheckpointError: a name matches no module, or one that cannot have an adapter.
        Unavailable: peft is not installed.
    """
    try:
        import peft  # two seconds of imports: only who uses it waits
    except ImportError:
        raise Unavailable("adapters need the peft library: pip install 'pytest-finetune[peft]'") from None
    targets, reason = _targets(declared, model)
    reasons = {"targets": reason, "task_type": _why(task)}
    whole, reasons["modules_to_save"] = _whole(declared, model, new)
    if isinstance(targets, list):
        _require("peft.targets", targets, _modules(model))
        _require_apart(targets, model, whole)
    config = peft.LoraConfig(
        task_type=TASK_TYPES.get(task),
        r=declared.rank,
        lora_alpha=declared.alpha,
        lora_dropout=declared.dropout,
        target_modules=targets,
        modules_to_save=list(whole) or None,
    )
    try:
        adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        raise CheckpointError(f"peft.targets: {_first_sentence(error)}") from error
    return adapted, _describe(adapted, declared, targets, reasons)


def _targets(declared: experiment.Peft, model: Any) -> tuple[list[str] | str, str]:
    """Names of modules, `all-linear`, or a regular expression of peft's; and why these."""
    if declared.targets is not None:
        return declared.targets, "declared"
    from peft.utils import constants

    kind = model.config.model_type
    if kind in constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        return constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[kind], f"what peft takes for {kind}"
    return experiment.ALL_LINEAR, f"peft knows no targets for {kind}"


def _why(task: str) -> str:
    if task in TASK_TYPES:
        return f"what peft calls {task}"
    return f"peft has none for {task}: what has to be trained whole is named instead"


def _whole(declared: experiment.Peft, model: Any, new: Collection[str]) -> tuple[tuple[str, ...], str]:
    """Modules that are trained whole: those that hold nothing but new parameters, and those declared; and why."""
    fresh = tuple(_holding(model, frozenset(new), ""))
    modules = _modules(model)
    _require("peft.modules_to_save", declared.modules_to_save, modules)
    asked = tuple(name for name in modules if any(_ends(name, part) for part in declared.modules_to_save))
    asked = tuple(name for name in asked if not _below(name, fresh))
    said = [f"{', '.join(names)}: {why}" for names, why in ((fresh, "newly initialised"), (asked, "declared")) if names]
    return (*fresh, *asked), "; ".join(said) or "nothing is newly initialised"


def _holding(module: Any, names: frozenset[str], prefix: str) -> Iterable[str]:
    """The outermost modules all of whose parameters are among the names."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        held = {f"{path}.{each}" for each, _ in child.named_parameters()}
        if held and held <= names:
            yield path
        elif held & names:
            yield from _holding(child, names, f"{path}.")


def _modules(model: Any) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def _ends(name: str, part: str) -> bool:
    """Whether peft takes the part for the module: by the end of its name."""
    return name == part or name.endswith(f".{part}")


def _below(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _require(key: str, parts: Iterable[str], modules: Collection[str]) -> None:
    """Each part names a module.

    Raises:
        CheckpointError: one does not; with the nearest names that do.
    """
    for part in parts:
        if not any(_ends(name, part) for name in modules):
            width = part.count(".") + 1
            known = sorted(
                {".".join(name.split(".")[-width:]) for name in modules if not name.split(".")[-1].isdigit()}
            )
            near = difflib.get_close_matches(part, known, _NEAREST, cutoff=0.5) or known[:_NEAREST]
            raise CheckpointError(
                f"{key}: found {part!r}, which matches no module, expected the end of a module's name; "
                f"nearest: {', '.join(near)}"
            )


def _require_apart(parts: Iterable[str], model: Any, whole: Collection[str]) -> None:
    """No part names only what is trained whole, where peft puts no adapter."""
    for part in parts:
        if all(_below(name, whole) for name in _modules(model) if _ends(name, part)):
            raise CheckpointError(
                f"peft.targets: found {part!r}, which is trained whole ({', '.join(whole)}), expected modules that are "
                "frozen but for an adapter"
            )


def _first_sentence(error: Exception) -> str:
    """What peft says, without the printed layers of a module."""
    text = str(error).strip()
    if match := re.match(r"Target module (\w+)\(", text):
        return f"found a module of the class {match[1]}, expected linear, embedding and convolution layers"
    return text.splitlines()[0]


def _describe(
    model: Any, declared: experiment.Peft, targets: list[str] | str, reasons: dict[str, str]
) -> record.Adapters:
    layers = adapted(model)
    return record.Adapters(
        task_type=getattr(model.peft_config["default"].task_type, "value", model.peft_config["default"].task_type),
        rank=declared.rank,
        alpha=declared.alpha,
        dropout=declared.dropout,
        targets={part: _matched(part, layers) for part in ([targets] if isinstance(targets, str) else targets)},
        modules=len(layers),
        modules_to_save=tuple(
            name.removeprefix(_WRAPPER)
            for name, module in model.named_modules()
            if hasattr(module, "modules_to_save") and hasattr(module, "original_module")
        ),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        total=sum(parameter.numel() for name, parameter in model.named_parameters() if _SPARE not in name),
        reasons=reasons,
    )


def _matched(part: str, layers: Collection[str]) -> int:
    if part == experiment.ALL_LINEAR:
        return len(layers)
    return sum(_ends(name, part) or re.fullmatch(part, name) is not None for name in layers)


def adapted(model: Any) -> dict[str, Any]:
    """The layers that have adapters, by the base model's own names."""
    return {
        plain(name): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "scaling")
    }


def base(model: Any) -> Any:
    """The model below the adapters; a model without any is its own."""
    return model.get_base_model() if is_adapted(model) else model


def is_adapted(model: Any) -> bool:
    """Whether there are adapters on the model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter."""
    return ADAPTER.search(f"{name}.") is not None


def is_spare(name: str) -> bool:
    """Whether a parameter of that name is what one that is trained whole was before, which no forward pass reads."""
    return _SPARE in name


def plain(name: str) -> str:
    """The base model's name of a parameter or module in an adapted model."""
    for part in (_COPY, _SPARE.rstrip("."), ".base_layer"):
        name = name.replace(part, "")
    return name.removeprefix(_WRAPPER)


def outer(name: str) -> str:
    """The name in an adapted model of what its base model calls that."""
    return f"{_WRAPPER}{name}"
