"""Chat templates that treat content as those of the families do, and conversations that show it. No library is needed.

The script beside this file renders and encodes them with transformers and writes the ids; the tests do so with lmtrain.
"""

import json
import pathlib

DATE = '2031-02-03'
SPECIAL = (
    *('<s>', '</s>', '<|im_start|>', '<|im_end|>', '<|user|>', '<|assistant|>', '<|system|>', '<|end|>', '<|return|>'),
    *('<|start|>', '<|message|>', '<|channel|>', '<|call|>', '[INST]', '[/INST]', '[TOOLS]', '[/TOOLS]', '[CALLS]'),
)
WORDS = ('<think>', '</think>', '<tool_call>', '</tool_call>')  # added tokens that are not special
CUE = "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"

TEMPLATES = {
    'chatml': (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        + CUE
    ),
    # Phi-3.5: an end behind the last message alone, tokens made of roles.
    'phi': (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}"
    ),
    # Zephyr: lines that stand in the source, not in literals.
    'lines': """{% for m in messages %}
{% if m.role == 'user' %}
<|user|>
{{ m.content + eos_token }}
{% elif m.role == 'assistant' %}
<|assistant|>
{{ m.content }}{{ eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
<|assistant|>
{% endif %}
{% endfor %}""",
    # Llama 2: content is stripped, and joined with the system's before it is written.
    'inst': """
{%- set system = messages[0].content if messages[0].role == 'system' else false -%}
{%- for m in messages if m.role in ('user', 'assistant') -%}
{%- set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content if loop.first and system else m.content -%}
{%- if m.role == 'user' -%}{{ bos_token ~ '[INST] ' ~ content.strip() ~ ' [/INST]' }}
{%- else -%}{{ ' ' + content | trim + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}""",
    # Qwen 3: content is searched, split and stripped; earlier reasoning is left out; calls and results of tools.
    'thinking': (
        """{%- if tools %}
    {{- '<|im_start|>system\n<tools>' }}{% for tool in tools %}{{- '\n' + tool | tojson }}{% endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages[::-1] %}
    {%- if ns.last < 0 and m.role == 'user' and not m.content.startswith('<tool_response>') %}
        {%- set ns.last = messages | length - loop.index %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role == 'assistant' %}
        {%- set reasoning = m.reasoning_content if m.reasoning_content is string else '' %}
        {%- if not reasoning and '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in m.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
"""
        + CUE
    ),
    # Llama 3.2: the date, and JSON with blanks.
    'dated': (
        """{{- bos_token }}{{- '<|im_start|>system\nToday: ' + strftime_now('%d %b %Y') + '\n' }}
{%- for tool in tools or [] %}{{- tool | tojson(indent=4) }}{% endfor %}
{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}
"""
        + CUE
    ),
    # Mistral: tools and the system stand before the last question, and a piece is cut off JSON.
    'moving': """{{- bos_token }}
{%- set asked = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in messages if m.role != 'system' %}
    {%- if m.role == 'user' %}
        {%- if tools and m == asked[-1] %}
            {{- '[TOOLS]' + tools | map(attribute='function.name') | join(', ') + '[/TOOLS]' }}
        {%- endif %}
        {%- set before = messages[0].content + '\n\n' if loop.last and messages[0].role == 'system' else '' %}
        {{- '[INST]' + before + m.content + '[/INST]' }}
    {%- elif m.tool_calls %}
        {{- '[CALLS]' + (m.tool_calls[0].function | tojson)[:-1] + ', "id": ' ~ loop.index ~ '}' + eos_token }}
    {%- else %}{{- m.content + (eos_token if m.role == 'assistant' else '') }}{%- endif %}
{%- endfor %}""",
    # gpt-oss: macros over the schemas of tools, `in` lists, another end for the last answer.
    'channels': """
{%- macro kind(spec, required) -%}
    {%- if spec.type == 'array' -%}{{ kind(spec['items'], required) + '[]' }}
    {%- elif spec.type is not string and spec.type is iterable -%}{{ spec.type | join(' | ') }}
    {%- elif spec.enum -%}{{ '"' + spec.enum | join('" | "') + '"' }}
    {%- else -%}{{ spec.type }}{%- endif -%}
{%- endmacro -%}
{{- '<|start|>system<|message|>' + strftime_now('%Y-%m-%d') }}
{%- for tool in tools or [] %}
    {{- '\n// ' + tool.function.description + '\ntype ' + tool.function.name + ' = {' }}
    {%- for name, spec in tool.function.parameters.properties.items() %}
        {{- name + ('' if name in tool.function.parameters.required else '?') + ': ' + kind(spec, []) + ', ' }}
    {%- endfor %}
    {{- '}' }}
{%- endfor %}
{{- '<|end|>' }}
{%- for m in messages %}
    {%- if m.role != 'assistant' %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}
    {%- elif m.tool_calls %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start|>assistant to=' ~ call.name ~ '<|channel|>json<|message|>' }}
        {{- call.arguments | tojson ~ '<|call|>' }}
    {%- else %}
        {%- set last = loop.last and not add_generation_prompt %}
        {%- if last and 'thinking' in m %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if last else '<|end|>') }}
    {%- endif %}
{%- endfor %}
{{- '<|start|>assistant' if add_generation_prompt }}""",
    # SmolLM 3: what the assistant says is marked.
    'marked': (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content.replace('\n\n', '\n') + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}" + CUE
    ),
}


def turn(role: str, content: str, **more) -> dict:
    return {'role': role, 'content': content} | more


CALLS = [{'type': 'function', 'function': {'name': 'sat', 'arguments': {'on': 'a "mat" é', 'cats': [1, None]}}}]
SCHEMA = {'on': {'type': 'string', 'enum': ['a', 'b']}, 'cats': {'type': 'array', 'items': {'type': 'string'}}}
SCHEMA |= {'at': {'type': ['string', 'null'], 'default': 3}}
TOOLS = [
    {
        'type': 'function',
        'function': {
            'name': 'sat',
            'description': 'says <who> sat',
            'parameters': {'type': 'object', 'properties': SCHEMA, 'required': ['on']},
        },
    }
]
TALKS = {
    'one': [turn('user', '  the cat \n'), turn('assistant', 'sat on é 漢\n')],
    'turns': [turn('user', 'who?'), turn('assistant', 'the cat'), turn('user', 'on?'), turn('assistant', 'the\n\nmat')],
    'thought': [
        turn('user', 'the <think> mat </think>?'),
        turn('assistant', '<think>\nsat\n</think>\n\nthe cat'),
        turn('user', 'on?'),
        turn('assistant', '<think>\nthe\n</think>\n\nthe mat'),
    ],
    'reasoning': [turn('user', 'who?'), turn('assistant', 'the cat', reasoning_content='it sat')],
    'system': [turn('system', 'be <a> cat'), turn('user', 'who?'), turn('assistant', 'the cat')],
    'tools': [
        turn('user', 'who?'),
        turn('assistant', '', tool_calls=CALLS),
        turn('tool', '{"cat": "the"}'),
        turn('assistant', 'the cat'),
        turn('user', 'on?'),
        turn('assistant', 'the mat'),
    ],
}


def tools_of(talk: str) -> list | None:
    return TOOLS if talk == 'tools' else None


def write_tokenizer(directory: pathlib.Path) -> None:
    """A tokenizer.json of bytes alone, with the special tokens and words above."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in sorted(printable)] + [chr(256 + index) for index in range(len(others))]
    vocabulary = {letter: token for token, letter in enumerate(letters)}
    flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}
    spec = {
        'version': '1.0',
        'added_tokens': [
            {'id': 256 + number, 'content': name, 'special': name in SPECIAL} | flags
            for number, name in enumerate((*SPECIAL, *WORDS))
        ],
        'pre_tokenizer': level,
        'decoder': level,
        'model': {'type': 'BPE', 'vocab': vocabulary, 'merges': []},
    }
    config = {'bos_token': '<s>', 'eos_token': '</s>', 'tokenizer_class': 'PreTrainedTokenizerFast'}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'tokenizer.json').write_text(json.dumps(spec), encoding='utf-8')
    (directory / 'tokenizer_config.json').write_text(json.dumps(config), encoding='utf-8')
