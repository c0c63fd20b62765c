"""Who influences a result: its own tokens, and nothing else."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from harness.laws.law import Verdict, broken, held, invalid, law, not_applicable, probed, vacuous
from harness.record import Record

POWER = 10
"""Without a mask the result must move by this many tolerances, or the law could not have failed."""


@law(probes=("padding",))
def padding_changes_nothing(
    record: Record,
    *,
    tolerance: Annotated[float, Field(gt=0, description="Largest relative change of a logit.")] = 1e-4,
) -> Verdict:
    """The logits of an example do not depend on how much it is padded, nor on the other examples in the batch.

    On the fp32 twin in eval mode, with the trained weights and with the initial ones. Tolerance 1e-4 of the largest
    logit: rounding moves the logits of 42 architectures by 3e-7 (median) to 3.3e-6, the weakest fault measured moves
    them by 4.5e-2, and the weakest architecture that really mixes padding in (ConvBERT) by 1.7e-3. To show that the
    test has power, the logits must move by ten times the tolerance when the mask is taken away. They do not if padding
    is on the right and attention only looks to the left: most decoders pass whatever their mask is, and the law is
    vacuous.
    """
    evidence = probed(record, "padding")
    if isinstance(evidence, Verdict):
        return evidence
    ways = {
        "in a batch": evidence["batch"],
        "with more padding than needed": evidence["more_padding"],
        "in other company": evidence["other_company"],
    }
    way, place, worst = max(
        ((way, place, float(change)) for way, changes in ways.items() for place, change in enumerate(changes)),
        key=lambda found: found[2] if found[2] == found[2] else float("inf"),
    )
    lengths = evidence["lengths"]
    if not worst <= tolerance:
        return broken(
            f"example {evidence['examples'][place]} ({lengths[place]} tokens): its logits move by {worst:.3g} {way}, "
            f"allowed {tolerance:g}",
            cause="the mask does not reach the attention, positions are counted from the padding, the head reads a "
            "padded position, or examples of a batch mix",
        )
    power = max(map(float, evidence["nothing_masked"]))
    if len(set(lengths)) == 1:
        return vacuous(f"all examples have {lengths[0]} tokens: nothing is padded in a batch")
    if not power > POWER * tolerance:
        return vacuous(f"without any mask the logits move by {power:.2g} only: this model does not read padding")
    return held(f"{len(lengths)} examples of {min(lengths)} to {max(lengths)} tokens move by {worst:.1g}")


@law(probes=("dependence",))
def examples_stay_apart(record: Record) -> Verdict:
    """A result depends on the tokens of its own example: not on padding, not on other examples of the batch.

    Judged by the gradient with respect to the embedded tokens, which must be exactly 0 elsewhere, with the trained
    weights and with the initial ones. (Measured exactly 0.0 in fp32 for 39 of 42 architectures; FNet, ConvBERT and
    MobileBERT read neighbours by design.)
    """
    evidence = probed(record, "dependence")
    if isinstance(evidence, Verdict):
        return evidence
    own, others, padding = map(float, (max(evidence["own"]), evidence["others"], evidence["padding"]))
    if not own > 0:
        return invalid("the logits depend on no token at all: see every_token_counts")
    if others != 0:
        return broken(
            f"the logits of one example depend on tokens of another: gradient {others:.3g}, its own {own:.3g}",
            cause="batch statistics, a mean over the batch, or a view that mixes rows",
        )
    if padding != 0:
        return broken(
            f"the logits depend on padding: gradient {padding:.3g}, on real tokens {own:.3g}",
            cause="the attention mask is not applied, inverted, or of another convention; or the architecture mixes "
            "neighbours by design",
        )
    if len(evidence["lengths"]) == 1:
        return vacuous("there is one example only")
    return held(f"{len(evidence['lengths'])} examples")


@law(probes=("dependence",))
def every_token_counts(record: Record) -> Verdict:
    """Every real token of an example can influence its result.

    Judged by the gradient with respect to the embedded tokens: none of them may have a gradient of exactly 0 both with
    the trained weights and with the initial ones. A masked last token, a head that reads the wrong position, or an
    input that is ignored shows here, even if no embedding layer gets the text: then the logits are bitwise the same
    with every word replaced.
    """
    evidence = probed(record, "dependence")
    if isinstance(evidence, Verdict):
        return evidence
    for index, length, dead in zip(evidence["examples"], evidence["lengths"], evidence["dead"], strict=True):
        if dead:
            places = ", ".join(map(str, dead[:6])) + (" ..." if len(dead) > 6 else "")
            return broken(
                f"example {index}: {len(dead)} of {length} tokens have no influence at all, at positions {places}",
                cause="all of them: the input is ignored"
                if len(dead) == length
                else "they are masked, or lie behind the position that the head reads",
            )
    return held(f"{sum(evidence['lengths'])} tokens of {len(evidence['lengths'])} examples")


@law(probes=("dependence",))
def future_unseen(record: Record) -> Verdict:
    """Where tokens are predicted one by one, no prediction depends on a later token.

    The gradient of the logits in the first half of each text with respect to the embedded tokens of the second half
    must be exactly 0. An encoder that is trained as a decoder (BERT without `is_decoder`) sees the token that it has to
    predict, and its loss falls to 0.
    """
    evidence = probed(record, "dependence")
    if isinstance(evidence, Verdict):
        return evidence
    if "future" not in evidence:
        return not_applicable("the task does not predict tokens one by one")
    if not max(map(float, evidence["own"])) > 0:
        return invalid("the logits depend on no token at all: see every_token_counts")
    found = [float(gradient) for gradient in evidence["future"]]
    for index, length, gradient in zip(evidence["examples"], evidence["lengths"], found, strict=True):
        if gradient != 0:
            return broken(
                f"example {index} ({length} tokens): the first half's logits depend on the second: gradient "
                f"{gradient:.3g}",
                cause="attention has no causal mask: an encoder (is_decoder: false), or a mask of another convention",
            )
    if max(evidence["lengths"]) < 2:
        return vacuous("no text has two tokens")
    return held(f"{len(found)} examples")
