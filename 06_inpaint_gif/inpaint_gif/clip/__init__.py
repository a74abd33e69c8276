"""Chinese CLIP: names and pictures as vectors."""
