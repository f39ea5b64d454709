"""How fast is lmtrain compared with a plain PyTorch GPT, and does it compute the same losses?

    bash experiments/bench/run.sh [--gpu FILE] [--dry]

With --worker, this process is one of the two sides.
"""

import sys

from experiments.bench.bench import THREADS, Ours, gpu_alone, main, serve

match sys.argv[1:]:
    case ['--worker', 'lmtrain', platform]:
        serve(Ours(platform, THREADS))
    case ['--worker', 'torch', platform]:
        from experiments.bench import torch_gpt

        serve(torch_gpt.Side(platform, THREADS))
    case [] | ['--dry'] as flags:
        main(dry=bool(flags))
    case ['--gpu', file] | ['--gpu', file, '--dry']:
        gpu_alone(file, dry='--dry' in sys.argv)
    case _:
        sys.exit('usage: bash experiments/bench/run.sh [--gpu FILE] [--dry]')
