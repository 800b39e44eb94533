"""A language model as judge of answers: its rubric, the blind orders, how its replies are read, and the figures."""
