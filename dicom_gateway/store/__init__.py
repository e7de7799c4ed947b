"""Room 2: an `Arrival` is made durable; what leaves is an `Instance`."""
