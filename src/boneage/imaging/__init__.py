"""A file -> a radiograph -> what a network sees. No torch."""
