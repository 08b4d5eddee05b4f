"""Labels, split and data sets for training."""
