"""What grades exercises and builds lessons. `python -m common.grade --help`"""
