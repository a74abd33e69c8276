"""Data sets that are read from files: folders of images, tables of captions, arrays, torchvision's sets, the hub's."""
