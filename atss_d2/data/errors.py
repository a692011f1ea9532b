"""The error raised by all code that reads or prepares data."""


class DataError(RuntimeError):
    """A data set cannot be read or prepared; the message says where it failed and how to fix it."""
