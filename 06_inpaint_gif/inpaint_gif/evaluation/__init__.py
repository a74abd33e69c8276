"""Evaluation of the models and the films of this chapter."""
