"""What the programs of bench measure."""
