"""The matrix of faults: each fault of a server, with each client, while loading, opening, saving."""
