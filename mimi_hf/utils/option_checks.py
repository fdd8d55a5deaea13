"""Reject an invalid option."""


def check_option(holds: object, name: str, value: object, rule: str) -> None:
    """Do nothing where `holds` is true.

    Raises:
        ValueError: otherwise. It names the option, its value and the rule.

    Example:
        >>> check_option(3 >= 1, "steps", 3, "at least 1")
        >>> check_option(0 >= 1, "steps", 0, "at least 1")
        Traceback (most recent call last):
            ...
        ValueError: steps=0 must be at least 1.
    """
    if not holds:
        raise ValueError(f"{name}={value!r} must be {rule}.")
