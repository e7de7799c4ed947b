"""Builders, real peers and witnesses that the tests share."""
