"""A hospital's own tables to Notes and tasks, by a small YAML of columns."""
