"""Chapter 1: DDPM as in the paper, written out, and the training of train.py."""
