"""The stages: each reads Notes and Stacks from disk and writes one Run. A stage never imports another."""
