"""What chapter 5 measures."""
