"""The report's figures, drawn from what Runs saved: inline in the page, and as files beside it."""
