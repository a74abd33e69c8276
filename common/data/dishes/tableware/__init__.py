"""Tables, plates and bowls, drawn."""
