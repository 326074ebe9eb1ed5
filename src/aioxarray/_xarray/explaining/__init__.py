"""The plan of a load, made without a request, as a value and as text."""
