"""Room 1: objects come in by C-STORE; what leaves is an `Arrival`."""
