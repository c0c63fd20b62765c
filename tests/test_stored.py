"""What the files of a checkpoint hold is what is loaded from them, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_laws_logic import Judged, check
from transformers import AutoModelForSequenceClassification, BertForPreTraining, BertModel
from trial import case, save, train

from harness.training import checkpoint, stored


def load(folder: Path) -> Any:
    """The checkpoint, with a new head."""
    return checkpoint.load(case(folder).settings)


@pytest.mark.parametrize("model", [BertForPreTraining, BertModel])
def test_every_tensor_of_the_backbone_is_compared(tmp_path: Path, model: Any) -> None:
    """Whether the files name them with the backbone's prefix or without."""
    loaded = load(save(tmp_path, model))
    names = {name for name, _ in loaded.model.named_parameters()} - set(loaded.missing)
    assert loaded.compared == len(names)
    assert loaded.differing == ()


def test_precision_of_the_file_does_not_matter(tmp_path: Path) -> None:
    """A stored bf16 is compared as the fp32 that it becomes."""
    model = BertForPreTraining.from_pretrained(save(tmp_path), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert load(tmp_path).differing == ()


def test_shards_are_all_read(tmp_path: Path) -> None:
    """A checkpoint in several files is compared as one."""
    folder = save(tmp_path)
    whole = load(folder).compared
    model = BertForPreTraining.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    assert (folder / stored.INDEX).is_file()
    assert load(folder).compared == whole


def test_a_layer_drawn_anew_while_loading_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`_init_weights` runs on a tensor that the files hold: nothing is missing, and nothing warns."""
    right = AutoModelForSequenceClassification.from_pretrained

    def wrong(*args: Any, **kwargs: Any) -> Any:
        model, report = right(*args, **kwargs)
        with torch.no_grad():
            model.bert.encoder.layer[1].output.dense.weight.normal_(std=0.02)
        return model, report

    folder = save(tmp_path)
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", wrong)
    record = train(case(folder, train={"steps": 2}))
    check(
        Judged(
            "head_is_new",
            "",
            record,
            "1 of 39 tensors are other than in the checkpoint's files: bert.encoder.layer.1.output.dense.weight",
            "initialised again after they were loaded",
        ),
        "broken",
    )
