"""Everything that the chapters share; read `diffusion` first. The layers are listed in tests/test_layers.py.

Importing this package makes the settings of the process that must precede `import torch` (common/io/process.py).
"""

from common.io.process import prepare_process

prepare_process()
