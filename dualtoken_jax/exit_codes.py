"""What a launcher is told when the process ends; launch/README.md explains it to people."""

DONE = 0
FAILED = 1  # a restart would fail in the same way: settings, data, weights
USAGE = 2  # wrong flags
RESTART = 75  # EX_TEMPFAIL: start the same command again. So does whatever a signal killed (from 128 on in a shell)
