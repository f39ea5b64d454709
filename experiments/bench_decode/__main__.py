"""How fast is greedy generation compared with transformers, and are the texts equal?

    python -m experiments.bench_decode [--quick] [--smollm2 DIR]    # two idle cores
    python -m experiments.bench_decode --gpu FILE [--dry]           # one GPU

With --worker, this process is one of the two sides.
"""

import argparse
import sys

from experiments.bench.bench import serve

SIDES = {'lmtrain': 'ours', 'transformers': 'theirs'}


def main() -> None:
    match sys.argv[1:]:
        case ['--worker', side, platform]:
            import importlib

            serve(importlib.import_module(f'experiments.bench_decode.{SIDES[side]}').Side(platform))
            return
    parser = argparse.ArgumentParser(prog='python -m experiments.bench_decode', description=__doc__.split('\n')[0])
    parser.add_argument('--quick', action='store_true', help='fewer blocks and tokens; results.json is not written')
    parser.add_argument('--smollm2', default='', help='directory of SmolLM2-135M; without it, its rows are not shown')
    parser.add_argument('--gpu', default='', help='measures on the GPU and writes this JSON file')
    parser.add_argument('--dry', action='store_true', help='with --gpu: toy sizes on the CPU')
    values = parser.parse_args()
    from experiments.bench_decode import compare

    if values.gpu:
        compare.gpu(values.gpu, values.dry)
    else:
        compare.cpu(values.smollm2, values.quick)


main()
