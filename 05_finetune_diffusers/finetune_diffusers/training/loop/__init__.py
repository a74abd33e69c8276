"""The training loop of chapter 5."""
