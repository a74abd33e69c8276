"""Chapter 6: from the name of a dish to a moving picture."""
