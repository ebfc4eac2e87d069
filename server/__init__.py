"""The fleet side: rounds, per-unit aggregation, schedules, fleet state, and the in-process grid."""
