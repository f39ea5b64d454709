"""Rollouts from a copy of the layers, and from the live stacks without one.

copy      decode.decoding_params: an array for each layer, made for every rollout
unrolled  a step of separate layers that reads the live stacks
scanned   a step that scans the live stacks
"""

import time

FORMS = ('copy', 'unrolled', 'scanned')
PROMPT = 16


def measure(rows: int, samples: int, blocks: int, tokens: int = 32, settings: dict | None = None) -> dict:
    """The time and the memory of the decoding of each form.

    Args:
      tokens: of a text.
      settings: those that differ from the quickstart model's.

    Returns:
      {'rows', 'tokens', 'layer_bytes', 'parameter_bytes', 'seconds': {form: of each block, in turn}, 'temporary_bytes':
      {form: int}, 'equal': {form: the share of texts that equal those of the copy}}. The seconds are those of the
      decoding, with the copy that it begins with; the prefill is the same in all.
    """
    import jax
    import numpy as np

    from configs import quickstart
    from lmtrain import tree
    from lmtrain.inference import decode, sample
    from lmtrain.models import Transformer

    model = Transformer(**quickstart.get_config().model.to_dict() | (settings or {}))
    params = jax.jit(model.init)(jax.random.key(0), {'tokens': np.zeros((1, 4), np.int32)})['params']
    prompts = np.random.default_rng(0).integers(0, model.vocab_size, (rows // samples, PROMPT)).tolist()
    settings = {'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0, 'end_ids': []}
    settings |= {'vocab_size': model.vocab_size, 'max_tokens': tokens}
    batch = sample.prompt_batch(model, params, prompts, settings, rows=len(prompts), samples=samples, logprob=True)
    scanned, unrolled = decode.for_decoding(model)
    state = decode.start(batch.settings, batch.room, batch.method)
    read = scanned, params, batch.tokens, batch.lengths, state, batch.settings, batch.method
    past, _, state = decode.prefill(*read)
    stacked = past | {name: jax.numpy.stack(past[name]) for name in ('key', 'value')}

    def arguments(form: str) -> tuple:
        weights = decode.decoding_params(model, params, rows) if form == 'copy' else params
        before = stacked if form == 'scanned' else past
        cache = model.init_cache(rows, batch.room, layers=form != 'scanned')
        return weights, before, cache, state, batch.settings, np.int32(tokens)

    def compiled(form: str):
        step = scanned if form == 'scanned' else unrolled
        return decode.decode.lower(step, *arguments(form), batch.method).compile()

    def seconds(form: str) -> float:
        start = time.perf_counter()
        jax.block_until_ready(programs[form](*arguments(form)))
        return time.perf_counter() - start

    programs = {form: compiled(form) for form in FORMS}
    texts = {form: np.asarray(program(*arguments(form))[1].text) for form, program in programs.items()}
    turns = [(form, seconds(form)) for _ in range(blocks) for form in FORMS]
    return {
        'rows': rows,
        'tokens': rows * (tokens - 1),
        'layer_bytes': tree.size(params['layers']),
        'parameter_bytes': tree.size(params),
        'seconds': {form: [one for name, one in turns if name == form] for form in FORMS},
        'temporary_bytes': {form: each.memory_analysis().temp_size_in_bytes for form, each in programs.items()},
        'equal': {form: float(np.mean(np.all(text == texts['copy'], axis=1))) for form, text in texts.items()},
    }
