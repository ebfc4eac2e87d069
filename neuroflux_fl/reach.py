"""How far the gradient reaches when memory decides: as few windows as fit at a batch size that still teaches well."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from neuroflux_fl.plan import Window


def fewest_windows(
    units: range, *, fits: Callable[[Window], bool], trainable: Callable[[Window], bool], cut_costs: Sequence[int]
) -> tuple[list[Window], tuple[int, ...]]:
    """Cut ``units`` into the fewest windows that fit; among equally few into the most even, then where it costs least.

    A longer gradient teaches better (InfoPro, arXiv 2101.10832, table 1), so memory beyond a useful batch goes into
    reach. Each question to ``fits`` may cost a trace: at most about two for a unit are asked.

    Args:
        units: consecutive units.
        fits: whether a window fits at the useful batch. A window that does not fit is taken not to fit with an
            earlier start either: there is only more to keep.
        trainable: whether a window of one unit fits at the smallest batch; asked where it does not at the useful one.
        cut_costs: by unit, what a cut after it costs; negative where it saves something.

    Returns:
        The windows in order, and the units that are in none because they do not fit at all.
    """
    if not units:
        return [], ()
    refused: set[Window] = set()

    def asked(window: Window) -> bool:
        if window not in refused and not fits(window):
            refused.add(window)
        return window not in refused

    ends = _furthest_ends(units, asked)
    while True:
        windows = _cheapest(units, ends, refused, cut_costs)
        # A shorter window can be the larger one, where its head is: every one that is chosen is asked for.
        if all(window.reach == 1 or asked(window) for window in windows):
            break
    untrained = [window for window in windows if window.reach == 1 and not asked(window) and not trainable(window)]
    return [window for window in windows if window not in untrained], tuple(item.first_unit for item in untrained)


def _furthest_ends(units: range, fits: Callable[[Window], bool]) -> dict[int, int]:
    """By start, the last unit of the longest window that fits; the start itself where none does."""
    whole = Window(first_unit=units[0], last_unit=units[-1])
    if fits(whole):
        return dict.fromkeys(units, units[-1])
    ends: dict[int, int] = {}
    end = units[-1]
    for start in reversed(units):
        while end > start and not fits(Window(first_unit=start, last_unit=end)):
            end -= 1
        if end == start and not fits(Window(first_unit=start, last_unit=start)):
            end = start - 1  # no window may hold this unit
        ends[start] = max(start, end)
        end = min(end, ends[start])
    return ends


def _cheapest(units: range, ends: dict[int, int], refused: set[Window], cut_costs: Sequence[int]) -> list[Window]:
    best: dict[int, tuple[int, int, int, list[Window]]] = {units[-1] + 1: (0, 0, 0, [])}
    for start in reversed(units):
        options = []
        for end in range(start, ends[start] + 1):
            window = Window(first_unit=start, last_unit=end)
            if end > start and window in refused:
                continue
            count, squares, cost, rest = best[end + 1]
            cost += cut_costs[end] if rest else 0
            options.append((count + 1, squares + window.reach**2, cost, [window, *rest]))
        best[start] = min(options, key=lambda option: option[:3])
    return best[units[0]][3]
