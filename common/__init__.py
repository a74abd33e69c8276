"""Everything the chapters share. Layers: schedule <- denoiser <- samplers; unet <- checkpoint <- training.

Importing this package makes the process-wide settings that must precede `import torch`. What you set yourself stays.

OMP_WAIT_POLICY, GOMP_SPINCOUNT  A thread that waits for another one sleeps after 1,000 rounds of a loop. By default it spins 300,000
    rounds and so takes the core that the other thread needs: with two threads beside two busy processes, a training step took 31 times
    as long as with one thread alone, and takes twice as long with this setting. With no spinning at all, a second thread gains almost
    nothing on an idle machine (0.97 of one thread's time, instead of 0.69). (python -m bench.busy)
PYTORCH_ENABLE_MPS_FALLBACK  An operation that Apple's MPS lacks runs on the CPU instead of ending the program.
HF_ENDPOINT  An empty address of a mirror is taken for none, and one without a scheme gets https://.

It also lets stdout and stderr print characters that their encoding lacks (common/io/encoding.py), and gives a name and a home directory to
a user whom the system does not know (common/io/user.py).
"""

import os

from common.io.encoding import accept_any_text
from common.io.hub import tidy_environment
from common.io.user import name_unknown_user

PROCESS_SETTINGS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000", "PYTORCH_ENABLE_MPS_FALLBACK": "1"}

if "OMP_WAIT_POLICY" in os.environ:  # a spin count would overrule your policy
    PROCESS_SETTINGS.pop("GOMP_SPINCOUNT")
for _name, _value in PROCESS_SETTINGS.items():
    os.environ.setdefault(_name, _value)

accept_any_text()
name_unknown_user()
tidy_environment()
