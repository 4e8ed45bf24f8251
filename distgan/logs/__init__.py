"""Numbers on their way to people: means, the log, alarms, trackers."""
