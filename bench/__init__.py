"""Measurements of speed and of quality at a given time. See bench/README.md."""
