"""Dishes: plates of Chinese food seen from above, drawn,
with their names in Chinese and English. No file, no download.
"""
