"""A prediction table -> figures and plots. No torch."""
