"""The rule-based oracle: questions about notes, and answers that rules read off them."""
