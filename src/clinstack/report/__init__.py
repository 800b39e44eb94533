"""Runs become tables, figures and sentences that a reviewer can check."""
