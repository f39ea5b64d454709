import json
import pathlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments.parity import chat_cases as cases
from lmtrain.data.chat import answers
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.chat.template import Template, as_text, encode
from lmtrain.data.chat.traced import CONTENT, GENERATION, TEMPLATE, Traced, traced
from lmtrain.data.tokenizers.load import open_tokenizer

PLACE = pathlib.Path(__file__)
GOLDENS = json.loads((PLACE.parent / 'goldens_chat.json').read_text(encoding='utf-8'))
TALK = [{'role': 'user', 'content': 'sat on?'}, {'role': 'assistant', 'content': 'the mat'}]


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp('chat')
    cases.write_tokenizer(directory)
    return open_tokenizer(directory, False)


def rendered(source, tokenizer, messages=TALK, tools=None, cue=False):
    dialogue = Conversation(messages, (1,), tools=tools)
    return answers.render(dialogue, tokenizer, Template(source, 'the template', cases.DATE), 'rows.jsonl:7', cue)


# --- parity with transformers


@pytest.mark.parametrize('name', cases.TEMPLATES)
def test_ids_equal_transformers(tokenizer, name):
    """Goldens by `python -m experiments.parity`."""
    assert len(GOLDENS[name]) == 2 * len(cases.TALKS)
    for key, golden in GOLDENS[name].items():
        talk, cue = key.removesuffix(' and the cue'), key.endswith(' and the cue')
        text = rendered(cases.TEMPLATES[name], tokenizer, cases.TALKS[talk], cases.tools_of(talk), cue)
        assert encode(text, [], tokenizer)[0] == golden['ids'], key


def test_generation_mask_equals_transformers(tokenizer):
    for key, golden in GOLDENS['marked'].items():
        if key.endswith(' and the cue'):
            continue
        messages = cases.TALKS[key]
        learned = tuple(at for at, message in enumerate(messages) if message['role'] == 'assistant')
        dialogue = Conversation(messages, learned)
        text = answers.render(dialogue, tokenizer, Template(cases.TEMPLATES['marked'], ''), '', False)
        within = encode(text, answers.flagged_spans(text.origin, GENERATION), tokenizer)[1]
        if key != 'tools':  # an answer of which nothing is written is not trained
            assert [int(each) for each in within] == golden['mask']


# --- content is never a special token

pieces = st.sampled_from(
    [*cases.SPECIAL, '<', '|', '>', 's', '/s', 'im_end', '|im_start|', ' ', '\n', '"', 'é', '[', ']']
)
hostile = st.lists(pieces, max_size=5).map(''.join)
WRAPPED = {
    'in angles': "{% for m in messages %}{{ '<' + m.content + '>' }}{% endfor %}",
    'in bars': "{% for m in messages %}{{ '<|' ~ (m.content | trim) ~ '|>' }}{% endfor %}",
    'in pieces': (
        "{% for m in messages %}{{ m.content.split('|') | join('|') }}{{ m.content[:3] + m.content[3:] }}{% endfor %}"
    ),
}


def harmless(value):
    """The same with an x for each character of a special token's name."""
    if isinstance(value, str):
        return ''.join(character if character.isspace() else 'x' for character in value)
    if isinstance(value, dict):
        return {key: each if key == 'role' else harmless(each) for key, each in value.items()}
    return [harmless(each) for each in value] if isinstance(value, list) else value


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([*cases.TEMPLATES, *WRAPPED]), hostile, hostile, hostile, hostile)
@example('in bars', ' im_end ', 's', '', '')
@example('in angles', 's', '/s', '', '')
@example('phi', '<|end|>\n<|assistant|>\n', '</s>', '', '')
def test_content_is_never_a_special_token(tokenizer, name, question, answer, reasoning, argument):
    """The special tokens equal those of a conversation of the same shape without special tokens in its texts."""

    def specials(of):
        arguments = of({'a': argument, 'b': [argument]})
        call = [{'function': {'name': of(question), 'arguments': arguments}}]
        messages = [
            {'role': 'system', 'content': of(reasoning)},
            {'role': 'user', 'content': of(question)},
            {'role': 'assistant', 'content': of(answer), 'reasoning_content': of(reasoning)},
            {'role': 'user', 'content': of(argument)},
            {'role': 'assistant', 'content': of(answer), 'tool_calls': call},
            {'role': 'tool', 'content': of(argument)},
        ]
        parameters = {'properties': {'a': {'type': of(question), 'enum': [of(answer)]}}, 'required': [of(question)]}
        tools = [{'function': {'name': of(question), 'description': of(argument), 'parameters': parameters}}]
        text = rendered((cases.TEMPLATES | WRAPPED)[name], tokenizer, messages, tools)
        ids = encode(text, [], tokenizer)[0]
        return [token for token in ids if token in tokenizer.specials], text.text

    tokens, text = specials(lambda value: value)
    assert tokens == specials(harmless)[0]
    assert answer.strip() in text or 'in ' in name or not answer.strip() or '\n\n' in answer


def test_special_tokens_strip_their_spaces(tmp_path, bpe):
    plain = bpe(tmp_path / 'x')
    spec = json.loads((tmp_path / 'x' / 'tokenizer.json').read_text())
    spec['added_tokens'][3]['rstrip'] = True
    (tmp_path / 'x' / 'tokenizer.json').write_text(json.dumps(spec))
    eating = open_tokenizer(tmp_path / 'x', False)
    text = Traced('<|im_end|> \n', TEMPLATE) + Traced(' the', CONTENT)
    assert encode(as_text(text, eating), [], eating)[0] == [273, *eating.encode('the')]
    assert encode(as_text(text, plain), [], plain)[0] == [273, *plain.encode(' \n the')]


def test_special_token_name_must_come_from_the_template(tokenizer):
    one = Traced('</s>', TEMPLATE)
    for text, expected in (
        (one, [1]),
        ('</s>', []),
        (Traced('</s', TEMPLATE) + '>', []),
        (Traced('</s>', CONTENT) + one, [1]),
        # A name that begins in content must not hide a name that begins inside it.
        (Traced('<s><s', CONTENT) + Traced('><s>', TEMPLATE), [0]),
        (Traced('[/', CONTENT) + Traced('[INST]', TEMPLATE), [tokenizer.special_ids['[INST]']]),
    ):
        ids = [special.token - 256 for special in as_text(text, tokenizer).specials]
        assert ids == [token if token < 256 else token - 256 for token in expected], text


def test_special_token_names_with_spaces_and_common_prefixes(tmp_path, bpe):
    bpe(tmp_path / 'x')
    spec = json.loads((tmp_path / 'x' / 'tokenizer.json').read_text())
    for token, name in zip(spec['added_tokens'], ('<s>', '<s>x', '<a b>', 'b>')):
        token['content'] = name
    (tmp_path / 'x' / 'tokenizer.json').write_text(json.dumps(spec))
    tokenizer = open_tokenizer(tmp_path / 'x', False)
    a, b, c, d = (tokenizer.special_ids[name] for name in ('<s>', '<s>x', '<a b>', 'b>'))
    own, content = (lambda text: Traced(text, TEMPLATE)), (lambda text: Traced(text, CONTENT))
    for text, expected in (
        (own('<s>x<a b>'), [b, c]),
        (own('<s>') + content('x'), [a]),
        (own('<a') + content(' ') + own('b>'), [d]),
    ):
        assert [special.token for special in as_text(text, tokenizer).specials] == expected, text


# --- variables and failures


def test_template_variables_equal_transformers(tokenizer):
    source = (
        "{{ strftime_now('%Y')[:2] }}{{ {'a': '<'} | tojson }}{{ bos_token }}{% for m in messages %}"
        '{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{{ m.thinking }}{% endfor %}{{ tools is none }}'
    )
    text = rendered(source, tokenizer, [TALK[0], TALK[1] | {'reasoning': ' so'}])
    assert text.text == '20{"a": "<"}<s>the mat soTrue'
    assert Template(source, '').writes_date and not Template('', '').writes_date


@pytest.mark.parametrize(
    ('source', 'error'),
    [
        ("{{ raise_exception('roles must alternate') }}", 'the template fails on this row: roles must alternate'),
        ('{{ messages[9].content }}', 'fails on this row: list object has no element 9|is undefined|has no attribute'),
        ('{% for m in messages %}', 'fails on this row: .*end of template'),
        ("{{ ''.__class__.__mro__ }}", 'fails on this row: .*unsafe'),
        ('{{ messages[0].content._origin[0] }}', 'fails on this row: .*unsafe'),
        ('{{ messages.append(1) }}', 'fails on this row: .*not safely callable|unsafe'),
        ('{{ 1 // 0 }}', 'fails on this row: ZeroDivisionError'),
        (
            "{{ '<|%s|>' % messages[0].role }}",
            "the template writes '<.user.>' with % or format, so that it cannot be distinguished from content",
        ),
        (
            "{{ '<{}>'.format('s') }}",
            "the template writes '<s>' with % or format, so that it cannot be distinguished from content",
        ),
    ],
)
def test_failing_template_is_named_with_row(tokenizer, source, error):
    with pytest.raises(ValueError, match=f'rows.jsonl:7: .*{error}'):
        rendered(source, tokenizer)


def test_name_of_unknown_origin_is_content(tokenizer):
    text = rendered("{{ 'x%s' % messages[0].content }}", tokenizer, [TALK[0] | {'content': 'a</s>'}])
    assert text.text == 'xa</s>' and not text.specials


def test_template_sees_real_content(tokenizer):
    source = (
        "{% set c = messages[0].content %}{{ '</s>' in c }} {{ c.startswith('<|im_end|>') }} {{ c | length }} "
        "{{ c == '<|im_end|>a</s>' }} {{ {'<|im_end|>a</s>': 1}[c] }} {{ c in ['<|im_end|>a</s>'] }} {{ c is string }}"
    )
    text = rendered(source, tokenizer, [TALK[0] | {'content': '<|im_end|>a</s>'}])
    assert text.text == 'True True 15 True 1 True True' and not text.specials


def test_cut_does_not_divide_special_tokens(tokenizer):
    text = as_text(traced('a</s>b', TEMPLATE), tokenizer)
    assert [text.cut(at) for at in range(7)] == [0, 1, 1, 1, 1, 5, 6]
