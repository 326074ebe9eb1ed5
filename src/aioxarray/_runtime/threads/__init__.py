"""Threads: pools whose hanging calls can be abandoned, and moving results between threads."""
