"""A camera's way over a growing canvas, as frames and files."""
