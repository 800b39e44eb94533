"""FHIR resources to Notes and tasks."""
