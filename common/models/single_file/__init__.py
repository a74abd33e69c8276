"""Checkpoints in one file: kinds.py says what a file holds, conversion.py makes a folder of it."""
