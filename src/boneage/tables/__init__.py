"""Reads CSV files and the ids, ages and sexes in them, for every other package."""
