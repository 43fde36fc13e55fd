"""SweepTasks: no task outlives the execution that it belongs to."""
