"""Prolonged mechanical ventilation: who was ventilated, how long, and what was written before."""
