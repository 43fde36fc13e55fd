"""ConcludeStudy: write how a study ended, and fail where it did; redriven, clear the way for what failed."""
