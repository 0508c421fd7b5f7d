"""Further interventions on one answer, one file each."""
