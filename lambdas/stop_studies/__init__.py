"""StopStudies: before the stack is deleted, no study runs and no task."""
