"""Clinical meaning of a bone age: reference tables of skeletal maturation. No torch."""
