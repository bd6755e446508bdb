"""The error that a user's input raises."""


class UserError(ValueError):
    """What the user gave cannot be used: the message says what was expected, what came, and which option to change.

    The command prints it in one paragraph, without a traceback, and exits with status 2.
    """
