"""Trainings of chapter 5."""
