"""The process that holds a submission, and how the grader talks to it.

Nothing in this folder imports the course: the process that runs a submission is started from these files alone.
"""
