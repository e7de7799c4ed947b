"""Room 8: one outbox per destination; results go out until they are accepted."""
