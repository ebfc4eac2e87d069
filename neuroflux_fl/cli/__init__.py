"""The command line. The only place that reaches into ``clients`` and ``server``, and that only when asked to."""
