"""Cross-entropy of tokens: causal and masked language modelling, which differ in how data made the targets."""


def loss(forward, batch, *, z_loss: float = 0.0):
    """Negative log-likelihood of `batch['targets']` in nats, weighted by `batch['loss_mask']`.

    Args:
      forward: Batch -> {head: Array}; reads `logprob` and `log_z`, both [B, T] float32 ([B, M] under `select`).
      batch: columns `targets` int32 and `loss_mask` float32 of that shape, beside the model's own.
      z_loss: weight of log(Z)^2, which keeps the softmax normaliser near 1 (PaLM, arXiv 2204.02311, section 5).

    Returns:
      ({'loss', 'nats'}, weights): `loss` is what is differentiated, `nats` the likelihood alone.
    """
    outputs = forward(batch)
    nats = -outputs['logprob']
    penalised = nats + z_loss * outputs['log_z'] ** 2 if z_loss else nats
    return {'loss': penalised, 'nats': nats}, batch['loss_mask']
