"""Checks arguments that must be one of a few words."""

from collections.abc import Collection


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Checks that an argument is one of its choices.

    Raises:
        ValueError: ``value`` is not one of the choices; the message names them.
    """
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(choices)}, got "{value}"')
