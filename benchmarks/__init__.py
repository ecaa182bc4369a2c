"""Measurements, one command per question; README.md says what each has found."""
