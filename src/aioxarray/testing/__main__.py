"""``python -m aioxarray.testing``: an object server with latency, for trying things by hand."""

from aioxarray.testing.server import main

main()
