"""The exception tree. A message says what, value, rule and remedy; ``exit_code`` is what the command line returns."""

from __future__ import annotations


class NeurofluxError(Exception):
    """Base of every error that a user can cause or mend. The message is one line, fit to be printed alone."""

    exit_code = 1


class UsageError(NeurofluxError):
    """An argument or option with a value that is not allowed."""

    exit_code = 2


class ConfigError(NeurofluxError):
    """A run or fleet configuration with an unknown key or a bad value."""

    exit_code = 3


class DataError(NeurofluxError):
    """Data that is missing, empty, corrupt, or unfit for the partition that was asked for."""

    exit_code = 4


class BudgetError(NeurofluxError):
    """A memory budget under which nothing useful can be trained."""

    exit_code = 5


class StorageError(NeurofluxError):
    """A folder that cannot be written, a disk that is full, a file that does not hold what it should."""

    exit_code = 6


class FleetError(NeurofluxError):
    """A fleet that cannot go on: no nodes, no quorum, or a run that failed on every device."""

    exit_code = 7


class DependencyError(NeurofluxError):
    """An optional package that the requested feature needs is not installed."""

    exit_code = 8


class WireError(NeurofluxError):
    """A message from the network that does not parse, has another version, or breaks a rule of the protocol."""

    exit_code = 9
