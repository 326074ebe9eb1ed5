"""The matrix of faults: each fault of a server, with each client, in each call."""
