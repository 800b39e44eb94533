"""Export to the Medical Event Data Standard."""
