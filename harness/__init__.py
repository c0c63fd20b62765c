"""Fine-tune declared experiments under pytest, judge the training, and time it."""

__version__ = "0.1.0"
