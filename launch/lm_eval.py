"""The command line of lm-eval with the model `lmtrain`: a run or a Hugging Face directory (extra `lm-eval`).

    python -m launch.lm_eval run --model lmtrain --model_args pretrained=runs/quickstart --tasks arc_easy

Further arguments of the model: `step` and `member` of a run, `adapter` (a PEFT directory), `add_bos_token`. The flags
are those of lm-eval.
"""

import sys
from typing import Any

from launch import process_setup
from lmtrain.errors import InputError, MissingPackage


def register() -> None:
    """Registers the model `lmtrain` in lm-eval. MissingPackage: lm-eval is not installed."""
    try:
        from lm_eval.api.registry import register_model
    except ImportError:
        raise MissingPackage('this command needs lm-eval: pip install -e ".[lm-eval]"') from None
    from lmtrain import api
    from lmtrain.evaluation.lm_eval import LMTrain

    @register_model('lmtrain')
    class LoadedLMTrain(LMTrain):
        """LMTrain of a path."""

        def __init__(
            self,
            pretrained: str,
            step: int | str | None = None,
            member: int | None = None,
            adapter: str = '',
            **settings: Any,
        ):
            super().__init__(api.load(pretrained, step=step, member=member, adapter=adapter), **settings)


def main() -> None:
    process_setup.configure()
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except InputError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
