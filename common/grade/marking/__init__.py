"""Points: the grader of a submission, and the gradebook of a class."""
