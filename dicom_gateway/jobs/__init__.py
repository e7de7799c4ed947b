"""Room 5: durable jobs with leases and fences; the queue that survives everything."""
