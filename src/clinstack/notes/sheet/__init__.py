"""The data sheet beside each prepared folder."""
