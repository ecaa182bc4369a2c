"""Commands that prepare datasets: index, convert, filter, verify, stats."""
