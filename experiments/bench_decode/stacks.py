"""Rollouts of the quickstart model from a copy of its layers, and from the live stacks without one.

copy      decode.decoding_params: an array for each layer, made for every rollout
unrolled  a step of separate layers that reads the live stacks
scanned   a step that scans the live stacks
"""

import time

FORMS = ('copy', 'unrolled', 'scanned')
PROMPT, TOKENS = 16, 32


def measure(rows: int, samples: int, blocks: int) -> dict:
    """{'rows', 'tokens', 'layer_bytes', 'seconds': {form: of each block, in turn}, 'temporary_bytes': {form: int}}.

    The seconds are those of the decoding, with the copy that it begins with; the prefill is the same in all.
    """
    import jax
    import numpy as np

    from configs import quickstart
    from lmtrain import tree
    from lmtrain.inference import decode, sample
    from lmtrain.models import Transformer

    model = Transformer(**quickstart.get_config().model)
    params = jax.jit(model.init)(jax.random.key(0), {'tokens': np.zeros((1, 4), np.int32)})['params']
    prompts = np.random.default_rng(0).integers(0, model.vocab_size, (rows // samples, PROMPT)).tolist()
    settings = {'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0, 'end_ids': []}
    settings |= {'vocab_size': model.vocab_size, 'max_tokens': TOKENS}
    batch = sample.prompt_batch(model, params, prompts, settings, rows=len(prompts), samples=samples, logprob=True)
    scanned, unrolled = decode.for_decoding(model)
    state = decode.start(batch.settings, batch.room, batch.method)
    read = scanned, params, batch.tokens, batch.lengths, state, batch.settings, batch.method
    past, _, state = decode.prefill(*read)
    stacked = past | {name: jax.numpy.stack(past[name]) for name in ('key', 'value')}

    def arguments(form: str) -> tuple:
        weights = decode.decoding_params(model, params, rows) if form == 'copy' else params
        step, before = (scanned, stacked) if form == 'scanned' else (unrolled, past)
        cache = model.init_cache(rows, batch.room, layers=form != 'scanned')
        return step, weights, before, cache, state, batch.settings, np.int32(TOKENS), batch.method

    def seconds(form: str) -> float:
        start = time.perf_counter()
        jax.block_until_ready(decode.decode(*arguments(form)))
        return time.perf_counter() - start

    texts = {form: np.asarray(decode.decode(*arguments(form))[1].text).tolist() for form in FORMS}
    assert all(text == texts['copy'] for text in texts.values()), 'the forms draw different texts'
    analysed = {form: decode.decode.lower(*arguments(form)).compile().memory_analysis() for form in FORMS}
    turns = [(form, seconds(form)) for _ in range(blocks) for form in FORMS]
    return {
        'rows': rows,
        'tokens': rows * (TOKENS - 1),
        'layer_bytes': tree.size(params['layers']),
        'parameter_bytes': tree.size(params),
        'seconds': {form: [one for name, one in turns if name == form] for form in FORMS},
        'temporary_bytes': {form: each.temp_size_in_bytes for form, each in analysed.items()},
    }
