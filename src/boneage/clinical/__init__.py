"""What a bone age means: reference tables of skeletal maturation. No torch."""
