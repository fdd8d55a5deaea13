"""How options of training are refused."""


def check(holds, name: str, value, rule: str):
    """Raise ValueError that names an option, its value and the rule, unless that holds."""
    if not holds:
        raise ValueError(f"{name}={value!r} must be {rule}.")
