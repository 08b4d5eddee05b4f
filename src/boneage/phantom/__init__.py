"""Synthetic hand radiographs: anatomy, bones, exposure, cohort. No torch."""
