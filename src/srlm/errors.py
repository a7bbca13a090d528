"""The one exception a user can cause."""


class UserError(ValueError):
    """One sentence: what was given, what was expected, what to do. The command line prints it and exits with code 2."""


def expect(settings: object, name: str, ok: bool, expected: str) -> None:
    """
    Raises:
        UserError: the setting `name` is not as expected.
    """
    if not ok:
        option = name.replace("_", "-")
        raise UserError(f"--{option} is {getattr(settings, name)!r}, expected {expected}: correct it")
