"""Threads: the pools that nobody waits for, and moving results between threads."""
