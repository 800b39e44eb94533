"""A synthetic hospital: invented patients in tables with MIMIC-III's names, columns and types.

Text and tables of a patient are drawn from one latent patient, so that notes predict outcomes, noisily.
"""

from clinstack.notes.cohort.write import write_cohort

__all__ = ["write_cohort"]
