"""NeuroFlux-FL: train CNNs on a fleet of unequal, memory-poor devices.

This package is the on-device core. It imports and runs where only torch, torchvision and numpy are installed; the
network lives in ``clients`` and ``server``.
"""

__version__ = "0.1.0"
