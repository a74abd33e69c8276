"""Networks that can be read, and the file formats of `diffusers` and `transformers` that they are saved in."""
