"""What somebody would write without the harness: the custom loop of an experiment file, and nothing else.

    python benchmarks/plain.py experiments/course.yaml

`train` is also what `overhead.py` measures steps against, in its own process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    get_constant_schedule_with_warmup,
    set_seed,
)


def main(path: Path) -> None:
    """Train and print the losses."""
    experiment = yaml.safe_load(path.read_text())
    model, tokenizer = load(experiment)
    print(" ".join(f"{loss.item():.6f}" for loss in train(model, tokenizer, experiment)))


def load(experiment: dict[str, Any]) -> tuple[Any, Any]:
    """The checkpoint that an experiment names, with its tokenizer."""
    package, _, inside = experiment["checkpoint"].removeprefix("package:").partition("/")
    folder = next(Path(place) / package / inside for place in sys.path if (Path(place) / package / inside).is_dir())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    set_seed(experiment["train"].get("seed", 42))
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    return model, tokenizer


def train(model: Any, tokenizer: Any, experiment: dict[str, Any]) -> Iterator[torch.Tensor]:
    """The steps of an experiment, and the loss of each."""
    said = experiment["train"]
    seed = said.get("seed", 42)
    # Fused where the harness is: what is measured is the harness, and not a kernel.
    optimizer = torch.optim.AdamW(model.parameters(), lr=float(said["learning_rate"]), fused=said.get("fused", True))
    schedule = get_constant_schedule_with_warmup(optimizer, 0)
    batches = epochs(tokenizer, experiment, seed)
    set_seed(seed)
    model.train()
    for _ in range(said["steps"]):
        loss = model(**next(batches)).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss


def epochs(tokenizer: Any, experiment: dict[str, Any], seed: int) -> Iterator[Any]:
    """Batches without end, each epoch in an order of its own."""
    data = experiment["data"]
    encoded = tokenizer(data["sequences"], truncation=True)
    rows = [
        {**{name: column[index] for name, column in encoded.items()}, "label": label}
        for index, label in enumerate(data["labels"])
    ]
    collate = DataCollatorWithPadding(tokenizer)
    epoch = 0
    while True:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        yield from DataLoader(rows, experiment["train"]["batch_size"], sampler=order, collate_fn=collate)
        epoch += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
