"""A run: its directory, configuration, checkpoints, loggers, what it will log, and how it goes on."""
