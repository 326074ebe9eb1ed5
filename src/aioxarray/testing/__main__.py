"""``python -m aioxarray.testing``: an object server with latency, for manual experiments."""

from aioxarray.testing.server import main

main()
