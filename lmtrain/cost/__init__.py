"""What training costs, by arithmetic: FLOPs, bytes of a device, steps of a budget, and peaks of devices.

The public names are imported on first use, because `hardware` is needed before jax: it sets the variables that choose
jax's platform. Compiled programs are read in `hlo` and `traffic`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmtrain.cost.budget import total_steps as total_steps
    from lmtrain.cost.flops import Flops as Flops
    from lmtrain.cost.flops import flops_per_step as flops_per_step
    from lmtrain.cost.flops import keys_per_query as keys_per_query
    from lmtrain.cost.hardware import peak_flops as peak_flops
    from lmtrain.cost.memory import bytes_per_device as bytes_per_device
    from lmtrain.cost.memory import shard_bytes as shard_bytes

MODULES = {
    'Flops': 'flops',
    'bytes_per_device': 'memory',
    'flops_per_step': 'flops',
    'keys_per_query': 'flops',
    'peak_flops': 'hardware',
    'shard_bytes': 'memory',
    'total_steps': 'budget',
}


def __getattr__(name: str):
    if name not in MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'lmtrain.cost.{MODULES[name]}'), name)
