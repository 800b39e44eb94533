"""The report's tables, independent of where they are shown: page, Markdown, LaTeX and console take the same cells."""
