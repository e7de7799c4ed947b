"""Room 4: when a series is complete, and its one true volume in shared memory."""
