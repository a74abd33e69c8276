"""The one exception a user should ever see: a clear sentence, printed without a traceback, exit code 2."""


class UserError(Exception):
    """What was wrong, what was expected, and what to type instead, in one sentence."""
