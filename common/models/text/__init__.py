"""Words for the network: tokenizer -> transformer -> encoders, in the file formats of `transformers`."""
