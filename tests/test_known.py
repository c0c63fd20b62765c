"""Defects of libraries: named where a record has what it takes, and really there."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from records import EXAMPLES, PROBES, record
from transformers import (
    AlbertTokenizer,
    AutoConfig,
    BartConfig,
    BartForCausalLM,
    BartForSequenceClassification,
    FunnelConfig,
    FunnelForMaskedLM,
    ProphetNetConfig,
    ProphetNetForConditionalGeneration,
)

from harness.laws import LAWS, judge
from harness.laws.known import DEFECTS
from harness.record import Record


def cause(law: str, evidence: Record) -> str:
    """What a law says is the reason."""
    (verdict,) = judge(evidence, [one for one in LAWS if one.name == law])
    return verdict.cause


def lost(architecture: str, labels: int) -> Record:
    """A record of a head that did not come back from the folder it was saved to."""
    return record(
        checkpoint={"architecture": architecture},
        settings={"data.num_labels": labels},
        probes={"saved": {**PROBES["saved"], "weights": ["classification_head.out_proj.weight"]}},
    )


def test_defects_name_laws_and_dates() -> None:
    """A table that nobody looks after goes stale: each row says when it was last seen."""
    for defect in DEFECTS:
        assert set(defect.laws) <= {law.name for law in LAWS}
        assert date.fromisoformat(f"{defect.seen}-01").year >= 2026
        assert defect.thread == "none found" or defect.thread.startswith("https://github.com/")


@pytest.mark.parametrize(
    ("architecture", "labels", "known"),
    [("BartForSequenceClassification", 2, True), ("BartForSequenceClassification", 3, False), ("BertModel", 2, False)],
)
def test_known_defect_is_named_where_it_applies(architecture: str, labels: int, known: bool) -> None:
    """And nowhere else; the verdict stays broken."""
    assert ("known defect of transformers" in cause("save_reload_equal", lost(architecture, labels))) is known


def test_what_holds_has_no_defect() -> None:
    """A record with what it takes, in which nothing is broken."""
    evidence = record(checkpoint={"architecture": "BartForSequenceClassification"}, settings={"data.num_labels": 2})
    assert cause("save_reload_equal", evidence) == ""


def test_bart_forgets_two_labels_and_not_their_names(tmp_path: Path) -> None:
    """The defect is there, and the remedy helps."""
    small = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 20, "max_position_embeddings": 8}
    small |= {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    for folder, names in (("plain", None), ("named", {0: "bad", 1: "good"})):
        said = {"num_labels": 2} if names is None else {"id2label": names}
        BartForSequenceClassification(BartConfig(**small, **said)).save_pretrained(tmp_path / folder)
    assert AutoConfig.from_pretrained(tmp_path / "plain").num_labels == 3
    assert AutoConfig.from_pretrained(tmp_path / "named").num_labels == 2


def test_bart_as_a_decoder_takes_labels_at_their_own_place() -> None:
    """The law of the loss is broken, and says that this is the library's; the real loss is that of copying."""
    small = {"d_model": 8, "decoder_layers": 1, "vocab_size": 20, "max_position_embeddings": 8, "is_decoder": True}
    small |= {"decoder_attention_heads": 1, "decoder_ffn_dim": 8, "is_encoder_decoder": False}
    ids = torch.tensor([[3, 5, 7, 4]])
    found = BartForCausalLM(BartConfig(**small)).eval()(input_ids=ids, labels=ids)
    assert torch.allclose(found.loss, torch.nn.functional.cross_entropy(found.logits[0], ids[0]))
    step = {**PROBES["steps"]["steps"][0], "loss": 2.0, "logits_gradient": 1.4}
    said = {"settings": {"task": "causal-lm"}, "probes": {"steps": {"steps": [step]}}}
    assert "do not shift the labels" in cause(
        "loss_is_the_declared_one", record(checkpoint={"architecture": "BartForCausalLM"}, **said)
    )
    assert "known defect" not in cause(
        "loss_is_the_declared_one", record(checkpoint={"architecture": "GPT2LMHeadModel"}, **said)
    )


def prophetnet(**settings: Any) -> ProphetNetForConditionalGeneration:
    """A small one, with weights large enough for relative positions to matter."""
    small = {"hidden_size": 8, "vocab_size": 20, "max_position_embeddings": 16, "num_decoder_layers": 2}
    small |= {"num_encoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "use_cache": False}
    torch.manual_seed(2)
    model = ProphetNetForConditionalGeneration(ProphetNetConfig(**small, **settings)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model


@torch.no_grad()
def test_prophetnet_learns_from_two_streams_and_mixes_up_heads_and_places() -> None:
    """The defects are there, and are named; the remedy of the loss helps, and with one head nothing is mixed up."""
    ids, longer = torch.tensor([[3, 5, 7, 4]]), torch.tensor([[3, 5, 7, 4, 9, 9]])
    one_head = {"num_encoder_attention_heads": 1, "num_decoder_attention_heads": 1}
    for disabled in (True, False):
        found = prophetnet(disable_ngram_loss=disabled, **one_head)(input_ids=ids, labels=ids)
        of_the_first = torch.nn.functional.cross_entropy(found.logits[0], ids[0])
        assert torch.allclose(found.loss, of_the_first) is disabled
    for heads, mixed in ((1, False), (2, True)):
        said = {"num_encoder_attention_heads": heads, "num_decoder_attention_heads": heads}
        model = prophetnet(**said)
        short, long = (model(input_ids=ids, decoder_input_ids=each).logits for each in (ids, longer))
        assert (float((short - long[:, :4]).abs().max()) > 1e-4) is mixed
    moved = {"padding": {**PROBES["padding"], "batch": [0.03] * 4}}
    evidence = record(checkpoint={"architecture": "ProphetNetForConditionalGeneration"}, probes=moved)
    assert "reads heads before places" in cause("padding_changes_nothing", evidence)


def test_loading_forgets_the_padding_tokens_row(tmp_path: Path) -> None:
    """Funnel's row of it is 0 again, whatever was saved."""
    config = FunnelConfig(vocab_size=20, block_sizes=[1], d_model=8, n_head=1, d_head=8, d_inner=8, pad_token_id=1)
    model = FunnelForMaskedLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[1] = 1.0
    model.save_pretrained(tmp_path)
    again = FunnelForMaskedLM.from_pretrained(tmp_path)
    assert again.get_input_embeddings().weight[1].tolist() == [0.0] * 8
    assert "pad token's row" in cause("save_reload_equal", lost("FunnelForMaskedLM", 2))


def test_adamw_in_fp16_makes_nan_of_weights() -> None:
    """Its eps is 0 there: what gets no gradient is divided by 0."""
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    weight.grad = torch.tensor([1.0, 0.0], dtype=torch.float16)
    optimizer.step()
    assert bool(weight.isnan().any())


def test_tokenizers_tell_no_texts_of_a_pair_apart() -> None:
    """The defect is there, and the remedy helps."""
    texts = "the soup", "was cold"
    vocabulary = [("<pad>", 0.0), ("<unk>", -1.0), ("[CLS]", -1.0), ("[SEP]", -1.0), ("[MASK]", -1.0), ("▁", -2.0)]
    assert "token_type_ids" not in AlbertTokenizer(vocab=vocabulary)(*texts)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    assert {*AlbertTokenizer(vocab=vocabulary, model_input_names=names)(*texts)["token_type_ids"]} == {0, 1}
    pairs = tuple(one.model_copy(update={"pair": True}) for one in EXAMPLES)
    said = {"examples": pairs, "tokenizer": {"token_types": True, "name": "AlbertTokenizer"}}
    assert "return no token_type_ids any more" in cause("tokens_match_tokenizer", record(**said))
