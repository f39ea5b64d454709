"""Installs lmtrain: `pip install -e .`; launch/run.sh does it. The tests have passed on the ranges of versions."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent

setup(
    name='lmtrain',
    version=re.search(r"^__version__ = '(.*)'", (ROOT / 'lmtrain' / '__init__.py').read_text('utf-8'), re.MULTILINE)[1],
    license='Apache-2.0',
    license_files=['LICENSE'],
    description='A JAX/Flax research framework for pretraining and adapting language models',
    python_requires='>=3.11',
    package_dir={'': '.'},  # a path in place of a finder: a folder `lmtrain` beside the user's script hides no package
    packages=find_packages(include=['lmtrain', 'lmtrain.*', 'configs', 'launch']),
    package_data={'lmtrain': ['py.typed', 'compare/pages/*.j2'], 'launch': ['*.sh']},
    entry_points={'console_scripts': ['lmtrain = launch.cli:main']},
    install_requires=[
        'absl-py>=2.5,<3',
        'array_record>=0.8,<0.9',  # the file format in which TFDS prepares without TensorFlow
        'flax>=0.12.8,<0.13',
        'importlib_resources>=6.5,<8',  # imported by TFDS for datasets that it builds, but not required by it
        'jax>=0.10.2,<0.13',  # 0.10 is the last for Python 3.11
        'jinja2>=3.1.6,<4',  # chat templates; older versions do not confine a template to the sandbox
        'matplotlib>=3.11,<4',
        'ml-collections>=1.1,<2',
        'ml-dtypes>=0.5.4,<0.7',
        'numpy>=2.4,<3',
        'optax>=0.2.8,<0.3',
        'orbax-checkpoint>=0.12.8,<0.13',
        'scipy>=1.17,<2',
        'tensorboardX>=2.6.5,<3',
        'tensorflow-datasets>=4.9.10,<5',
        'tensorstore>=0.1.86,<0.2',  # Orbax writes with it; reads the index of a checkpoint back
        'tokenizers>=0.23,<0.24',
    ],
    extras_require={
        'test': [
            'hypothesis>=6.100',
            'pyarrow>=18',
            'pytest>=8',
            'pytest-timeout>=2.3',
            'pytest-xdist>=3.6',
            'ruff>=0.9',
            'sentencepiece>=0.2',
            'ty>=0.0.107,<0.0.108',  # a release may add rules
        ],
        'cuda': ['jax[cuda13]'],  # driver 580 or newer and compute capability 7.5 or newer
        'cuda12': ['jax[cuda12]'],  # older drivers and cards
        'tpu': ['jax[tpu]'],
        'plan': ['libtpu'],  # the TPU's compiler, without a TPU
        'hub': ['huggingface_hub>=1'],  # downloads a base by its name on the Hugging Face Hub
        'gepa': ['gepa>=0.1.4,<0.2'],
        'wandb': ['wandb>=0.19'],
        'mlflow': ['mlflow-skinny>=2.20'],
        'parquet': ['pyarrow>=18'],
        'sentencepiece': ['sentencepiece>=0.2'],
        'bench': ['torch>=2.6'],
        'lm-eval': ['lm-eval>=0.4.13,<0.5'],
        'parity': ['datasets>=4', 'peft>=0.21', 'torch>=2.6', 'transformers>=5.23,<5.24', 'trl>=1.16'],
    },
)
