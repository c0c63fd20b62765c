"""Options that several commands have: what they may be, and where the page goes that a command makes."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path


def share(text: str) -> float:
    """A share of something."""
    return _number(text, lambda value: 0 < value < 1, "a number between 0 and 1, such as 0.03")


def seconds(text: str) -> float:
    """A time to spend."""
    return _number(text, lambda value: 1 <= value < math.inf, "a number of seconds, 1 or more")


def _number(text: str, fits: Callable[[float], bool], expected: str) -> float:
    with contextlib.suppress(ValueError):
        if fits(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"found {text}, expected {expected}")


def writable(text: str) -> Path:
    """A file to write: looked at before anything is done, for what is to be written may take an hour."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(
            f"found {text}, expected a file that can be written, in a folder that is there"
        )
    return path


def add_margin(parser: argparse.ArgumentParser) -> None:
    """What a command that compares takes for equal."""
    parser.add_argument(
        "--margin", type=share, default=0.03, metavar="SHARE", help="still equivalent (default: %(default)s, or 3 %%)"
    )


def add_page(parser: argparse.ArgumentParser) -> None:
    """In which format a command says what it has found, and where."""
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text", help="default: %(default)s")
    parser.add_argument("--output", type=writable, metavar="FILE", help="write to this file instead of the terminal")


def put(page: str, output: Path | None) -> None:
    """Print a page, or write it to a file; where the disk is full it is printed, and not lost.

    Raises:
        OSError: the file cannot be written.
    """
    page = page.rstrip() + "\n"
    if output is None:
        print(page, end="")
        return
    try:
        output.write_text(page, encoding="utf-8")
    except OSError:
        print(page, end="")
        raise
