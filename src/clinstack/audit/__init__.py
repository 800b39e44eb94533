"""Can a stack give away a patient? The attacks on an opened Stack, each one function that returns its findings."""
