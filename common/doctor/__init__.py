"""`python -m common.doctor`: is this machine ready for the course, and what is wrong with a training run."""
