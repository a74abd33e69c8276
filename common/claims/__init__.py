"""`python -m common.claims`: what practitioners say, where, and what this course measured."""
