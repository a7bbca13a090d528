"""The one exception a user can cause."""


class UserError(ValueError):
    """One sentence: what was given, what was expected, what to do. The command line prints it and exits with code 2."""
