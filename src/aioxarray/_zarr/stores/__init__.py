"""Stores: the one request, the limits it keeps, its retries, and the identity of a store."""
