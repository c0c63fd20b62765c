"""Modes, graphs, and what is saved."""

from __future__ import annotations

from harness.errors import count
from harness.laws.law import Verdict, broken, held, invalid, law, probed, vacuous
from harness.record import Record

MERGED = 1e-5
"""Largest difference of logits, relative to the largest, when adapters become part of the weights."""


@law()
def dropout_on_in_training(record: Record) -> Verdict:
    """In every training forward pass, all modules with dropout or running statistics are in train mode and draw anew.

    The inner modules are checked, not the outer flag: a wrapper can be in train mode while the model inside it is not,
    as `from_pretrained` returns it. The dropout rates are those of the checkpoint, and no step starts from the random
    state of an earlier one: an evaluation that sets the seed would make all steps drop the same units.
    """
    modes = record.modes
    if modes is None:
        return invalid("no mode was recorded")
    if modes.changed:
        return broken(
            f"{count(len(modes.changed), 'module')} with another dropout than the checkpoint has: "
            f"{', '.join(modes.changed[:3])}",
            cause="dropout was set, to 0 or to another rate, after loading",
        )
    if modes.stochastic == 0:
        return vacuous("the model has neither dropout nor running statistics")
    if modes.step is not None:
        return broken(
            f"step {modes.step + 1}: {len(modes.off)} of {modes.stochastic} such modules were in eval mode: "
            f"{', '.join(modes.off[:3])}",
            cause="model.train() is missing, or an evaluation left the model in eval mode",
        )
    if modes.redrawn is not None:
        return broken(
            f"step {modes.redrawn + 1} draws the same random numbers as an earlier one",
            cause="something sets the seed, or restores the random state, during the training",
        )
    return held(f"{modes.stochastic} modules")


@law()
def no_graph_kept(record: Record) -> Verdict:
    """No step's autograd graph outlives the next step.

    A marker in the graph of every step tells whether the graph is still alive. Summing losses without detaching them
    keeps all graphs, and memory grows until it runs out.
    """
    alive = record.steps.graphs
    if len(alive) < 3:
        return invalid(f"{count(len(alive), 'step')} cannot show graphs that pile up")
    if alive[-1] > 1 and alive[-1] > alive[len(alive) // 2]:
        return broken(
            f"{alive[-1]} graphs of earlier steps are alive after step {len(alive)}",
            cause="something keeps a loss or an output with its graph: use loss.detach() or loss.item() for logging",
        )
    return held(f"at most {max(alive)} alive after a step")


@law(probes=("saved",))
def save_reload_equal(record: Record) -> Verdict:
    """The trained model, saved and loaded again, has the same weights, logits, tokenizer and label names.

    ``save_pretrained`` into an empty folder, and loading from there in another process, as for inference. Exact: the
    logits of a padded batch on the CPU are bitwise equal. Adapters are saved without the weights of the checkpoint and
    loaded onto the original checkpoint; merged into it, they give the same logits within 1e-5 of the largest
    (measured: up to 6e-7), because sums are then taken in another order.
    """
    saved = probed(record, "saved")
    if isinstance(saved, Verdict):
        return saved
    if saved["failed"]:
        return broken(
            f"it does not load: {saved['failed']}",
            cause="the saved config does not describe the saved weights: transformers leaves out what it takes for a "
            "default",
        )
    if saved["weights"]:
        names = saved["weights"]
        return broken(
            f"{len(names)} weights differ after loading: {', '.join(names[:4])}",
            cause="they are not saved, saved under another name, tied wrongly, or saved in another precision",
        )
    if saved["logits"] != 0:
        return broken(
            f"logits differ by {float(saved['logits']):.3g} although all weights are equal",
            cause="a buffer or a config value that is not saved",
        )
    merged = saved.get("merged")
    if merged is not None and not float(merged) <= MERGED:
        return broken(
            f"merged into the weights, the adapters give logits that differ by {float(merged):.3g} of the largest",
            cause="another scale than that of the training, or an adapter that cannot be merged",
        )
    if saved["tokens"]:
        return broken(f"the saved tokenizer reads {saved['tokens'][0]!r} differently")
    if saved["settings"]:
        return broken(f"not saved: {', '.join(saved['settings'])}")
    also = "" if merged is None else f"; merged adapters within {float(merged):.1g}"
    return held(f"weights, logits, tokenizer and label names{also}")
