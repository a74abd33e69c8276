"""Text conditioning: tokenizer -> transformer -> encoders, in the file formats of `transformers`."""
