"""``python -m aioxarray.testing``: an object server with latency, for manual experiments."""

from aioxarray.testing.server import main

if __name__ == "__main__":
    main()
