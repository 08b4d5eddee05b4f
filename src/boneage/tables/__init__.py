"""The one reader of CSVs, and of the ids, ages and sexes in them."""
