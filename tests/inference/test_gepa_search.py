"""GEPA proposes instructions; here a function proposes them, of which one is the best."""

import sys

import numpy as np
import pytest

from lmtrain.data.rows import Row
from lmtrain.inference import prompting
from lmtrain.inference.gepa_search import search_instruction
from lmtrain.inference.prompt_search import answer_nats

FORM = {'template': '{text} is {gold}', 'answer': 'gold', 'choices': ('a', 'b'), 'batch_size': 8, 'separator': '\n'}
SETTINGS = prompting.PromptSettings(**FORM)
ROWS, POOL = (
    [Row(f'{place}:{i}', {'text': text, 'gold': 'ab'[i % 2]}) for i, text in enumerate(texts)]
    for place, texts in (('rows', ['cat', 'dog', 'hen', 'owl']), ('pool', ['cow']))
)


def test_the_best_of_the_proposed_instructions_is_returned(computes):
    pytest.importorskip('gepa')
    texts, seen = ['Say a', 'aaaa', 'Is it a, or is it b?', 'bab'], []

    def propose(prompt):
        seen.append(prompt)
        return f'```\n{texts[len(seen) % 4]}\n```'

    search = search_instruction(*computes, ROWS, SETTINGS, POOL, propose=propose, budget=8_000)
    assert any('for the right answer' in prompt and 'cat is' in prompt for prompt in seen)
    assert {each['instruction'] for each in search.candidates} <= {'', *texts} and len(search.candidates) > 1
    assert search.computed_tokens >= 8_000 or len(seen) > 10
    best = search.candidates[search.best]
    assert best['probability'] == max(each['probability'] for each in search.candidates)
    assert search.settings.instruction == best['instruction']
    scores = prompting.score(*computes, ROWS, search.settings, demonstrations=search.demonstrations)
    nats = [answer_nats(np.array(row['nats']), 'ab'.index(row['answer'])) for row in scores.rows]
    assert np.mean(np.exp(nats)) == pytest.approx(best['probability'], abs=1e-5)


def test_a_missing_package_is_named(computes, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gepa', None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[gepa\]"'):
        search_instruction(*computes, ROWS, SETTINGS, propose=str, budget=100)
