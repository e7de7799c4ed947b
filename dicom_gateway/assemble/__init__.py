"""Room 4: when a series is complete, and its true volumes in shared memory.

Nothing is imported here: the decoders' processes are several, and import only what they use.
"""
