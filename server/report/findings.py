"""What someone who looks after a fleet should know first: one sentence for each thing that is not as it should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from neuroflux_fl.sizes import format_bytes
from server.answer_log import Answer
from server.report.facts import DeviceFacts, RunFacts
from server.report.names import name_of_node
from server.report.stragglers import is_straggler, typical_seconds

_MOST_NAMES = 4


def findings(run: RunFacts) -> tuple[str, ...]:
    """Sentences, the gravest first; none where all is well."""
    return tuple(
        sentence
        for sentence in (
            _over_budget(run.devices),
            _rejected(run),
            _quorum(run),
            _unanswered(run),
            _stragglers(run),
            _counted(run.devices, "out_of_memory_retries", "ran out of memory and halved a batch", "batches"),
            _counted(run.devices, "deadlines_reached", "had training cut short by the deadline", "tasks"),
            _counted(run.devices, "cache_refusals", "had no room for the cache and computed anew", "times"),
            _update_error(run),
        )
        if sentence
    )


def name_some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _over_budget(devices: Sequence[DeviceFacts]) -> str:
    over = sorted((device for device in devices if device.over_budget), key=lambda device: -(device.budget_share or 0))
    if not over:
        return ""
    worst = over[0]
    return (
        f"Memory: training took more than the budget on {len(over)} of {len(devices)} devices "
        f"({name_some([device.name for device in over])}); at worst {format_bytes(worst.totals.measured_peak_bytes)} "
        f"of {format_bytes(worst.totals.budget_bytes or 0)} on {worst.name}."
    )


def _rejected(run: RunFacts) -> str:
    reasons: Counter[str] = Counter()
    for record in run.rounds:
        reasons.update(record.rejected)
    if not reasons:
        return ""
    shown = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in reasons.most_common())
    return f"Updates: {sum(reasons.values())} rejected by the server and not used ({shown})."


def _quorum(run: RunFacts) -> str:
    rounds = [str(record.round) for record in run.rounds if record.below_quorum]
    return f"Quorum: too few devices answered in round {name_some(rounds)}." if rounds else ""


def _unanswered(run: RunFacts) -> str:
    tasks = run.tasks
    phrases = {
        "failed": "failed", "never_answered": "never answered", "late_used": "came late and used at a discount",
        "late_dropped": "came too late",
    }  # fmt: skip
    lost = [f"{tasks[key]} {phrase}" for key, phrase in phrases.items() if tasks.get(key)]
    if not lost:
        return ""
    missed = Counter(answer.node_id for answer in run.answers if answer.fate in ("failed", "missing"))
    names = run.device_names()
    worst = [f"{names.get(node) or name_of_node(node)} ({count})" for node, count in missed.most_common()]
    return f"Tasks: of {tasks['sent']} sent, {', '.join(lost)}" + (
        f"; not in time: {name_some(worst)}." if worst else "."
    )


def _stragglers(run: RunFacts) -> str:
    typical = typical_seconds(run.answers)
    slow: dict[int, list[Answer]] = {}
    for answer in run.answers:
        if is_straggler(answer, typical):
            slow.setdefault(answer.node_id, []).append(answer)
    if not slow:
        return ""
    names = run.device_names()
    worst = sorted(slow, key=lambda node: -len(slow[node]))
    shown = [f"{names.get(node) or name_of_node(node)} ({len(slow[node])}x)" for node in worst]
    return f"Stragglers: answers that took over twice their round's median came from {name_some(shown)}."


def _counted(devices: Sequence[DeviceFacts], field: str, what: str, of: str) -> str:
    hit = sorted((device for device in devices if getattr(device.totals, field)), key=lambda device: device.name)
    hit.sort(key=lambda device: -int(getattr(device.totals, field)))
    count = sum(int(getattr(device.totals, field)) for device in hit)
    return f"Devices that {what}: {name_some([device.name for device in hit])} ({count} {of} in all)." if hit else ""


def _update_error(run: RunFacts) -> str:
    worst = max((device.totals.update_error for device in run.devices), default=0.0)
    if worst <= 0.05:
        return ""
    precision = run.config.get("update-precision", "a coarse precision")
    return f"Updates in {precision} lost up to {100 * worst:.2g} % of what training moved."
