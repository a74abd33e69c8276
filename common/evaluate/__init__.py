"""How good are generated images? `python -m common.evaluate --help`"""
