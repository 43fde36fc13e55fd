"""ReconcileMetrics: account for every record that was emitted, then settle every experiment."""
