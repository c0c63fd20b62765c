"""What a language model knows of the data's texts before anything is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from harness.training import adapters
from harness.training.checkpoint import Loaded, head_names
from harness.training.encoding import tokens_of
from harness.training.tasks import IGNORED
from harness.training.twin import same_draws, twin
from harness.training.workload import Workload

TOKENS = 1024
"""That are read, at most; the standard error of a mean over them is below 0.1 nats, of a hidden seventh below 0.3."""
LONGEST = 128
"""Tokens of a text."""
ROWS = 4
HIDDEN = 7
"""Of a text for a masked language model every seventh token is hidden (BERT is trained with 15 %); of few texts every
token once."""

LANGUAGE_MODELS = (
    (AutoModelForMaskedLM, False, ("ForMaskedLM", "ForPreTraining")),
    (AutoModelForCausalLM, True, ("ForCausalLM", "LMHeadModel")),
)
"""How the config of a checkpoint calls the class that it was pretrained as; the flag is whether it looks back only."""


def prior(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """The loss of the pretraining's own task on the texts, as the case encodes them, and on the same with every word
    replaced by another, always the same one.

    With the loaded weights, on the twin. Of a checkpoint with another head the language model's is read from its files.
    """
    found = _language_model(loaded, work)
    if isinstance(found, str):
        return {"reason": found}
    model, causal = found
    words, masked = loaded.tokenizer, not causal
    if masked and words.mask_token_id is None:
        return {"reason": "the tokenizer has no mask token"}
    texts = _texts(work)
    turns = min(HIDDEN, -(-TOKENS // max(1, sum(map(len, texts))))) if masked else 1
    losses: dict[str, list[torch.Tensor]] = {"loss": [], "permuted": []}
    vocabulary = 0
    renamed = _renamed(words)
    for turn in range(turns):
        for first in range(0, len(texts), ROWS):
            batch = words.pad({"input_ids": texts[first : first + ROWS]}, return_tensors="pt")
            for name, ids in (("loss", batch["input_ids"]), ("permuted", renamed[batch["input_ids"]])):
                asked, labels = _behind(ids, words) if causal else _hidden(ids, words, turn, first)
                logits = _logits(model, asked, batch["attention_mask"])
                vocabulary = logits.shape[-1]
                logits = logits[:, : labels.shape[1]].float()
                losses[name].append(
                    cross_entropy(logits[labels != IGNORED], labels[labels != IGNORED], reduction="none")
                )
    each = {name: torch.cat(found).double() for name, found in losses.items()}
    return {
        "causal": causal,
        "vocabulary": vocabulary,
        "predictions": len(each["loss"]),
        **{name: float(found.mean()) for name, found in each.items()},
    }


def _language_model(loaded: Loaded, work: Workload) -> tuple[Any, bool] | str:
    """The pretrained language model and whether it looks back only; or why there is none."""
    if not loaded.pretrained:
        return "every weight is random: nothing was pretrained"
    if work.task.brings_head:
        if not (work.task.causal or work.task.masked is not None):
            return "an encoder with a decoder was pretrained in a way of its own"
        if loaded.new & {*map(adapters.plain, head_names(loaded.model))}:
            return "the head of the language model is newly initialised"
        model = twin(work.model)
        model.load_state_dict(loaded.model.state_dict())
        return model, work.task.causal
    return _of_files(loaded)


def _of_files(loaded: Loaded) -> tuple[Any, bool] | str:
    """What a checkpoint was pretrained as, with the weights of the case's model where that has them."""
    names = getattr(loaded.model.config, "architectures", None) or ()
    kinds = ((auto, causal) for auto, causal, ends in LANGUAGE_MODELS if any(name.endswith(ends) for name in names))
    for auto, causal in kinds:
        try:
            model, report = auto.from_pretrained(
                loaded.folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        except ValueError:  # no class of this kind for its model type
            continue
        if not (report["missing_keys"] or report["mismatched_keys"]):
            model = twin(model)
            model.load_state_dict(_shared(loaded.model.state_dict(), model.state_dict()), strict=False)
            return model, causal
    return f"the checkpoint holds no language model ({', '.join(names) or 'its config names no class'})"


def _shared(mine: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mine = {adapters.plain(name): value for name, value in mine.items() if not adapters.is_spare(name)}
    return {name: mine[name] for name, value in wanted.items() if name in mine and mine[name].shape == value.shape}


def _texts(work: Workload) -> list[list[int]]:
    """Ids of the first texts, as many as there may be tokens."""
    found: list[list[int]] = []
    room = TOKENS
    for index in range(len(work.examples.lengths)):
        for ids in tokens_of(work.examples[index]):
            found.append(list(ids[: min(LONGEST, room)]))
            room -= len(found[-1])
            if room <= 0:
                return found
    return found


def _renamed(words: Any) -> torch.Tensor:
    """An id for each id: another word for each word, special tokens as they are."""
    special = {*words.all_special_ids}
    plain = torch.tensor([number for number in range(len(words)) if number not in special])
    renamed = torch.arange(len(words))
    renamed[plain] = plain[torch.randperm(len(plain), generator=torch.Generator().manual_seed(0))]
    return renamed


def _special(ids: torch.Tensor, words: Any) -> torch.Tensor:
    return torch.isin(ids, torch.tensor(words.all_special_ids))


def _behind(ids: torch.Tensor, words: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids, and for each place but the last the one behind it."""
    labels = ids[:, 1:].clone()
    labels[_special(labels, words)] = IGNORED
    return ids, labels


def _hidden(ids: torch.Tensor, words: Any, turn: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids with every seventh hidden, counted anew in each turn, and what is hidden."""
    rows, places = torch.arange(len(ids)).unsqueeze(1) + first, torch.arange(ids.shape[1]).unsqueeze(0)
    hide = ((rows + places) % HIDDEN == turn) & ~_special(ids, words)
    return ids.masked_fill(hide, words.mask_token_id), ids.masked_fill(~hide, IGNORED)


def _logits(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), same_draws():
        found: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
        return found
