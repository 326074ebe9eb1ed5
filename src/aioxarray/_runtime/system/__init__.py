"""The operating system and the interpreter: descriptors, connections, garbage collection."""
