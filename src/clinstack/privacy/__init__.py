"""Privacy: identifiers in text, canaries and their exposure, figures of attacks, the accountant, the verdict."""
