"""What the doctor looks at in a training run, one subject in each module."""
