"""Search of an instruction by GEPA (arXiv 2507.19457): a language model reads errors and proposes new instructions.

Needs the package `gepa` (`pip install -e ".[gepa]"`). The proposing model is any function from text to text, such as a
request to a large model, or `lmtrain.generate` of one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lmtrain.data import Tokenizer
from lmtrain.data.rows import Row
from lmtrain.errors import InputError, MissingPackage
from lmtrain.inference.demonstrations import ALL, select
from lmtrain.inference.prompt_search import SearchResult, answer_nats, with_choices
from lmtrain.inference.prompting import PromptSettings, score_choices
from lmtrain.inference.questions import ask
from lmtrain.tree import Params


def search_instruction(
    model,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    settings: PromptSettings,
    demonstrations: Sequence[Row] = (),
    *,
    propose: Callable[[str], str],
    budget: int,
    seed: int = 0,
) -> SearchResult:
    """The instruction, in place of `settings.instruction`, with the highest mean probability of the right choice.

    Args:
      rows: selection rows, with choices.
      settings: the first candidate. `demonstrations` stand before every row, whatever `settings.shots` is.
      propose: prompt -> answer of the language model that proposes instructions, within ``` lines.
      budget: no candidate begins after so many computed tokens of `model`; those of `propose` are not counted.

    Returns:
      SearchResult; its candidates are {'instruction', 'probability'}.
    """
    try:
        import gepa
    except ImportError:
        raise MissingPackage('a search by GEPA needs the package gepa: pip install -e ".[gepa]"') from None
    if not settings.choices:
        raise InputError('a search by GEPA compares choices: name them in the settings')
    adapter = _Adapter((model, params, tokenizer), rows, settings, demonstrations)
    result = gepa.optimize(
        seed_candidate={'instruction': settings.instruction},
        trainset=list(range(len(rows))),
        valset=list(range(len(rows))),
        adapter=adapter,
        reflection_lm=propose,
        stop_callbacks=lambda state: adapter.spent >= budget,
        logger=adapter,
        cache_evaluation=True,
        seed=seed,
    )
    scores = zip(result.candidates, result.val_aggregate_scores, strict=True)
    table = [{'instruction': each['instruction'], 'probability': score} for each, score in scores]
    best = adapter.settings._replace(
        instruction=table[result.best_idx]['instruction'], shots=ALL if demonstrations else 0, select='first'
    )
    return SearchResult(best, list(demonstrations), table, result.best_idx, adapter.spent)


class _Adapter:
    """gepa.GEPAAdapter: a candidate is {'instruction': text}, an example is the index of a row, its score p(right)."""

    propose_new_texts = None  # the default of GEPA: `reflection_lm` answers a prompt with the errors

    def __init__(self, computes: tuple, rows, settings: PromptSettings, demonstrations):
        self.computes, self.spent = computes, 0
        self.questions, pool = ask(rows, settings, demonstrations)
        self.settings = with_choices(settings, self.questions)
        drawn = select(self.questions, pool, ALL, 'first') if pool else [[]] * len(rows)
        self.drawn = list(drawn)

    def log(self, message: str) -> None:
        """Drops GEPA's progress messages."""

    def evaluate(self, batch: list[int], candidate: dict[str, str], capture_traces: bool = False):
        from gepa import EvaluationBatch

        settings = self.settings._replace(instruction=candidate['instruction'])
        asked, drawn = [self.questions[i] for i in batch], [self.drawn[i] for i in batch]
        scores = score_choices(*self.computes, asked, drawn, settings)
        self.spent += scores.computed_tokens
        traces, values = [], []
        for question, nats in zip(asked, scores.nats, strict=True):
            values.append(float(np.exp(answer_nats(nats, question.choices.index(question.answer)))))
            predicted = question.choices[int(np.argmax(nats))]
            traces.append({'Inputs': question.context, 'Generated Outputs': predicted, 'Feedback': question.answer})
        outputs = [trace['Generated Outputs'] for trace in traces]
        return EvaluationBatch(outputs=outputs, scores=values, trajectories=traces if capture_traces else None)

    def make_reflective_dataset(self, candidate, eval_batch, components_to_update) -> dict[str, list[dict[str, Any]]]:
        records = [
            trace | {'Feedback': f'p = {score:.2f} for the right answer, {trace["Feedback"]!r}'}
            for trace, score in zip(eval_batch.trajectories, eval_batch.scores, strict=True)
        ]
        return dict.fromkeys(components_to_update, records)
