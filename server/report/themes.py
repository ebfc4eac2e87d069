"""Colours of the figures, light and dark: told apart by people who see colours differently, and in grey print."""

from __future__ import annotations

from dataclasses import dataclass

# Paul Tol's "light" set: dark text is readable on every one of them.
BLOCK_COLOURS = ("#77aadd", "#eedd88", "#99ddff", "#ee8866", "#bbcc33", "#ffaabb", "#44bb99", "#dddddd")
BLOCK_TEXT = "#111111"


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """One look. Figures are transparent: ``surface`` is what the page has behind them."""

    name: str
    surface: str
    ink: str
    muted: str
    """Axes and notes."""
    grid: str
    bar: str
    """A quantity as it should be."""
    alarm: str
    """A quantity beyond its limit, or something that went wrong."""
    second: str
    """The other one of two quantities."""
    activities: tuple[tuple[str, str], ...]
    """Colour by what a device does."""
    depth: tuple[str, ...]
    """From the shallowest exit to the deepest: three stops of a scale."""


LIGHT = Theme(
    name="light",
    surface="#ffffff",
    ink="#1c2430",
    muted="#5b6675",
    grid="#e3e7ec",
    bar="#0072b2",
    alarm="#c8321e",
    second="#e69f00",
    activities=(
        ("train", "#0072b2"),
        ("cache", "#56b4e9"),
        ("evaluate", "#009e73"),
        ("profile", "#cc79a7"),
        ("waiting", "#c9d0d8"),
    ),
    depth=("#d98200", "#00806b", "#30308f"),
)
DARK = Theme(
    name="dark",
    surface="#171c24",
    ink="#e8ecf1",
    muted="#a3aebb",
    grid="#2b323d",
    bar="#4aa8e0",
    alarm="#ff7a5c",
    second="#f0b429",
    activities=(
        ("train", "#3c8fc9"),
        ("cache", "#9ad4f5"),
        ("evaluate", "#27b98c"),
        ("profile", "#d98fb8"),
        ("waiting", "#4a5462"),
    ),
    depth=("#ffb84d", "#3fc8ab", "#a9a6ff"),
)
THEMES = (LIGHT, DARK)
