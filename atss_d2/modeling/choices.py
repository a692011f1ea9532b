"""Arguments that are one of a few words."""

from collections.abc import Collection


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """
    Raises:
        ValueError: ``value`` is none of the choices; the message names them.
    """
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(choices)}, got "{value}"')
