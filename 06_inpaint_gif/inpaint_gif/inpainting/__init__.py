"""Pictures from names, and what fills holes in them."""
