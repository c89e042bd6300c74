"""What calls do with parameters: which channels they read and make, by which weights."""
