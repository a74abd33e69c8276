"""What the doctor looks at on a machine, one subject in each module."""
