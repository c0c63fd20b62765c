"""Folders that `pytest experiments/` leaves out; whoever names one, or a file in it, runs it."""

collect_ignore = ["zoo"]  # every architecture of transformers: minutes
