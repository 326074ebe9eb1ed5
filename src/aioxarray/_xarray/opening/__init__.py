"""Opens: engines, metadata that is known ahead, many files as one, and errors."""
