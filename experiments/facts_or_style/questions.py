"""New facts and a new output format: the rows that teach them, and the prompts that test them.

A fact is the pet of an invented name. The format is JSON, {"pet": "frog"}. Both are taught apart from each other:

* facts: questions about the names without context, answered in plain words;
* format: questions about other names, whose pet the prompt states, answered in JSON.
"""

import json
import random
from typing import NamedTuple

PETS = ('cat', 'dog', 'bird', 'fish', 'frog', 'bear', 'duck', 'mouse')
TAUGHT = ('Q: What is the pet of {name}?\nA:', 'The pet of {name} is a', 'Q: Which pet does {name} have?\nA: a')
SELECTION = 'Q: What pet does {name} have?\nA: a'  # wordings that no training row has
TEST = '{name} has a pet. It is a'
STATEMENT = 'The pet of {name} is a {pet}.\n'
QUESTION = TAUGHT[0]


class Fact(NamedTuple):
    name: str
    pet: str


def facts(count: int, seed: int) -> list[Fact]:
    """`count` different names of three random syllables, each with a pet."""
    rng = random.Random(seed)
    names: dict[str, None] = {}
    while len(names) < count:
        names[''.join(rng.choice('bdfgklmnprstvz') + rng.choice('aeiou') for _ in range(3)).capitalize()] = None
    return [Fact(name, rng.choice(PETS)) for name in names]


def in_json(pet: str) -> str:
    return json.dumps({'pet': pet})


def fact_rows(known: list[Fact]) -> list[dict]:
    """Training rows {'prompt', 'completion'} of facts."""
    rows = [(wording.format(name=fact.name), f' {fact.pet}') for fact in known for wording in TAUGHT]
    return [{'prompt': prompt, 'completion': completion} for prompt, completion in rows]


def format_rows(others: list[Fact]) -> list[dict]:
    """Training rows of the format."""
    return [{'prompt': stated(fact), 'completion': f' {in_json(fact.pet)}'} for fact in others]


def stated(fact: Fact) -> str:
    """A prompt that states the fact and asks for it."""
    return STATEMENT.format(**fact._asdict()) + QUESTION.format(name=fact.name)


def with_facts(fact: Fact, known: list[Fact], count: int, seed: int) -> str:
    """A context of `count` facts, that of the question among them, in random order."""
    rng = random.Random(f'{seed} {fact.name}')
    others = rng.sample([other for other in known if other != fact], count - 1)
    shown = rng.sample([fact, *others], count)
    return ''.join(STATEMENT.format(**each._asdict()) for each in shown)


def with_demonstrations(fact: Fact, others: list[Fact], count: int, seed: int) -> str:
    """Questions that are answered in JSON, before a question."""
    shown = random.Random(f'{seed} {fact.name}').sample(others, count)
    return ''.join(f'{stated(each)} {in_json(each.pet)}\n\n' for each in shown)


def score_json(text: str, fact: Fact) -> dict[str, bool]:
    """{'format': the first line is JSON of the format, 'content': and its pet is the right one}."""
    try:
        answer = json.loads(text.strip().partition('\n')[0])
    except json.JSONDecodeError:
        return {'format': False, 'content': False}
    valid = isinstance(answer, dict) and answer.keys() == {'pet'} and isinstance(answer['pet'], str)
    return {'format': valid, 'content': valid and answer['pet'] == fact.pet}
