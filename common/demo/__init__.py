"""A page to play with: python -m common.demo. pictures/ makes the pictures, page/ shows them, server.py serves the page."""
