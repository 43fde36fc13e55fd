"""IngestMetrics: turn a CloudWatch Logs batch into metric rows."""
