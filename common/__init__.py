"""Everything the chapters share. Layers: schedule <- denoiser <- samplers; unet <- checkpoint <- training.

Importing this package makes the process-wide settings that must precede `import torch`. What you set yourself stays.

OMP_WAIT_POLICY             passive: a thread that waits for another one sleeps. By default it spins, and so takes the core that the
                            other thread needs: beside one busy process a training step took several times as long (python -m bench.busy)
PYTORCH_ENABLE_MPS_FALLBACK 1: an operation that Apple's MPS lacks runs on the CPU instead of ending the program

It also lets stdout and stderr print characters that their encoding lacks (common/encoding.py).
"""

import os

from common.encoding import accept_any_text

PROCESS_SETTINGS = {"OMP_WAIT_POLICY": "passive", "PYTORCH_ENABLE_MPS_FALLBACK": "1"}

for _name, _value in PROCESS_SETTINGS.items():
    os.environ.setdefault(_name, _value)

accept_any_text()
