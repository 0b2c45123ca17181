"""What a run tells the outside while it works: a log of JSON lines, a progress line, Prometheus."""
