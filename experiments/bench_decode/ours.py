"""lmtrain's side: `sample.generate`, and the seconds of `lmtrain generate` until its first text."""

import gc
import time


class Side:
    def __init__(self, platform: str):
        import jax

        self.device = jax.devices()[0]

    def build(self, folder: str, dtype: str) -> dict:
        """Loads the model of a Hugging Face directory, parameters and computation in `dtype`."""
        import dataclasses

        import jax

        from lmtrain import tree
        from lmtrain.models.pretrained import load_pretrained

        self.params, self.weights = None, {}
        gc.collect()
        model, self.params = load_pretrained(folder, dtype=dtype)
        self.model = dataclasses.replace(model, dtype=dtype)
        token = 2 * model.num_layers * model.num_kv_heads * model.head_dim
        return {
            'parameters': tree.count(self.params),
            'weight_bytes': tree.size(self.params),
            'cache_bytes_per_token': token * jax.numpy.dtype(dtype).itemsize,
            'device': self.device.device_kind,
        }

    def encode(self, folder: str, text: str) -> dict:
        """The token ids of a text."""
        from lmtrain.training.load import open_tokenizer

        return {'ids': list(map(int, open_tokenizer(folder, mask=False).encode(text)))}

    def rollouts(self, **case) -> dict:
        """`stacks.measure`."""
        from experiments.bench_decode import stacks

        return stacks.measure(**case)

    def generate(self, prompts: list, max_tokens: int, times: int = 1) -> dict:
        """Greedy texts without end tokens, and the seconds of each call."""
        import jax

        from lmtrain.inference import decode, sample

        if len(prompts) not in self.weights:
            weights = decode.decoding_params(self.model, self.params, len(prompts))
            self.weights = {len(prompts): jax.block_until_ready(weights)}
        settings = {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0, 'end_ids': []}
        settings |= {'vocab_size': self.model.vocab_size, 'max_tokens': max_tokens}
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            texts = sample.generate(self.model, self.params, prompts, weights=self.weights[len(prompts)], **settings)
            seconds.append(time.perf_counter() - start)
        return {'seconds': seconds, 'texts': [text.ids for text in texts]}
