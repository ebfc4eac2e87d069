"""The device side of a fleet."""
