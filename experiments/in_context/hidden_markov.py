"""GINC (Xie et al., arXiv 2111.02080): documents and prompts of a mixture of hidden Markov models, and their exact law.

A document has one concept, which stays hidden. A hidden state is a pair (entity, property). The concept is a transition
matrix of properties; that of entities is the same for all. A table gives every pair its token; property 0 is the
delimiter '/'. Because several pairs share a token, the tokens do not reveal the state, and the exact probability of
the next token needs the forward algorithm, run for every concept and mixed with the posterior over concepts.

Shapes: B sequences, T tokens, C concepts, E entities, S properties, V symbols.
"""

import dataclasses
import string

import numpy as np

DELIMITER = '/'


def _concept(rng, size: int) -> np.ndarray:
    """Transition probabilities of properties [S, S]: permutations with softmax weights (temperature 0.1), as in GINC.

    A twentieth is uniform, and all of the delimiter's row, so that every prompt has a positive probability.
    """
    weights = np.exp(rng.random(size) / 0.1)
    permutations = np.stack([np.eye(size)[rng.permutation(size)] for _ in range(size)])
    matrix = 0.95 * np.tensordot(weights / weights.sum(), permutations, axes=1) + 0.05 / size
    matrix[0] = 1 / size
    return matrix


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of hidden Markov models with equal weights and a uniform first state.

    Attributes:
      properties_CSS, entities_EE: transition probabilities; rows are the state before.
      table_ES: the symbol of every pair, 0 .. V - 1; symbol 0 is the delimiter.
    """

    properties_CSS: np.ndarray
    entities_EE: np.ndarray
    table_ES: np.ndarray

    @classmethod
    def draw(cls, seed: int, concepts: int, entities: int, properties: int, symbols: int) -> 'Mixture':
        """Random parameters; an entity stays with probability 0.9, as in GINC, or is drawn again."""
        rng = np.random.default_rng(seed)
        table = rng.integers(1, symbols, (entities, properties))
        table[:, 0] = 0
        table = np.unique(table, return_inverse=True)[1].reshape(table.shape)  # only symbols that occur
        entity = 0.9 * np.eye(entities) + 0.1 / entities
        return cls(np.stack([_concept(rng, properties) for _ in range(concepts)]), entity, table)

    @property
    def symbols(self) -> list[str]:
        """The text of each symbol."""
        letters = string.ascii_lowercase + string.ascii_uppercase
        return [DELIMITER, *letters[: self.table_ES.max()]]

    @property
    def emission_ESV(self) -> np.ndarray:
        """1 where a pair emits a symbol."""
        return np.eye(len(self.symbols))[self.table_ES]

    def sample(self, rng, concept_B, length: int, property_B=None) -> np.ndarray:
        """Symbols int [B, length] of the given concepts; `property_B`: the first property, None draws it."""
        size = len(concept_B)
        num_entities, num_properties = self.table_ES.shape
        entity = rng.integers(0, num_entities, size)
        prop = rng.integers(0, num_properties, size) if property_B is None else property_B
        out = []
        for _ in range(length):
            out.append(self.table_ES[entity, prop])
            entity = _next(rng, self.entities_EE[entity])
            prop = _next(rng, self.properties_CSS[concept_B, prop])
        return np.stack(out, axis=1)

    def predict(self, symbols_BT: np.ndarray, concept_BC=None, state_BES=None) -> np.ndarray:
        """p(symbol t | symbols before t) [B, T + 1, V], by the forward algorithm over the mixture.

        Args:
          concept_BC: prior of the concepts; None is uniform.
          state_BES: prior of the first state; None is uniform.
        """
        (B, T), C, (E, S) = symbols_BT.shape, len(self.properties_CSS), self.table_ES.shape
        concept = np.full((B, C), 1 / C) if concept_BC is None else concept_BC
        state = np.full((B, E, S), 1 / (E * S)) if state_BES is None else state_BES
        # joint_BCES: p(concept, state t | symbols before t); its sum is 1.
        joint = concept[:, :, None, None] * state[:, None]
        emission = self.emission_ESV
        out = []
        for t in range(T + 1):
            out.append(np.einsum('bces,esv->bv', joint, emission, optimize=True))
            if t < T:
                joint = joint * emission[:, :, symbols_BT[:, t]].transpose(2, 0, 1)[:, None]
                joint /= joint.sum((1, 2, 3), keepdims=True)
                joint = np.einsum('bces,ef,cst->bcft', joint, self.entities_EE, self.properties_CSS, optimize=True)
        return np.stack(out, axis=1)

    def prompts(self, rng, prompts: int, examples: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Prompts of k examples and a query, as GINC draws them: (symbols [B, T] without the answer, answers [B]).

        All examples of a prompt have one concept and one first property; each begins with a new entity, has `length`
        symbols and ends with a delimiter. The answer is the most likely last symbol of the query if the concept and the
        first property were known.
        """
        C, (E, S) = len(self.properties_CSS), self.table_ES.shape
        concept, first = rng.integers(0, C, prompts), rng.integers(1, S, prompts)
        parts = []
        for _ in range(examples):
            delimiter = np.zeros((prompts, 1), int)
            parts += [self.sample(rng, concept, length, first), delimiter]
        query = self.sample(rng, concept, length - 1, first)
        known = np.zeros((prompts, E, S))
        known[np.arange(prompts), :, first] = 1 / E
        answers = self.predict(query, np.eye(C)[concept], known)[:, -1].argmax(-1)
        return np.concatenate([*parts, query], axis=1), answers


def _next(rng, probabilities_BN: np.ndarray) -> np.ndarray:
    """One draw of each row."""
    return (
        (probabilities_BN.cumsum(-1) < rng.random((len(probabilities_BN), 1)))
        .sum(-1)
        .clip(max=probabilities_BN.shape[-1] - 1)
    )
