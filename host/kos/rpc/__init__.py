"""Calls into the running kernel: rings in guest RAM, and frames on a serial line."""
