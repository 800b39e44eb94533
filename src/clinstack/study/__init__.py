"""Many Runs as one piece of work: cells on worker processes, and studies that end in a table of the paper."""
