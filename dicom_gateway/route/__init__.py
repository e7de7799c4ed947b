"""Room 3: which pipelines a series goes through, and why (or why none)."""
