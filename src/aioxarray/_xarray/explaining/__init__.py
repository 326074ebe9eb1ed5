"""What a load would do, found without a request, as a value and as text."""
