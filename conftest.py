"""Shared by the tests and the shipped experiments."""

pytest_plugins = ["pytester"]
