"""Creatures: drawn monsters with captions in English and Chinese and a table of attributes. No file, no download."""
