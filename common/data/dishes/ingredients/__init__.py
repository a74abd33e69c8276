"""The foods on a plate, drawn."""
