"""Runtimes for the network itself, one file each."""
