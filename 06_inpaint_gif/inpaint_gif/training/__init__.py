"""Trainings of chapter 6."""
