"""Everything chosen: functions that return frozen experiments, one file per family."""
