"""GRU4Rec: recurrent neural networks for the next item (Hidasi et al., ICLR 2016; GRU4Rec+: CIKM 2018)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.fields import Count, Dropped, Length, Weight
from seqrec.device import not_compiled
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.blocks import Dropout
from seqrec.models.features import FeatureOptions, ItemEmbedding, UserEncoder
from seqrec.models.grouping import Steps


@dataclass(frozen=True)
class GRU4RecConfig(FeatureOptions):
    """Sizes and regularisation of GRU4Rec.

    Args:
        max_length: Number of most recent items of a history that the model sees. By default chosen from the log:
            50, 100 or 200.
        embedding_dim: Width of the item embeddings.
        hidden_dim: Width of the recurrent layers. By default ``embedding_dim``.
        num_layers: Number of stacked recurrent layers.
        embedding_dropout: Dropout on the embedded input.
        hidden_dropout: Dropout on the states of every layer.
        separate_output: Learn separate output vectors. By default the item embeddings are used as input and output.
        elu: Alpha of an ELU on the scores, which helps with bpr-max (0.5 or 1 in the authors' parameter files). 0 turns
            the ELU off.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"max_length": 50}

    max_length: Length | None = None
    embedding_dim: Count = 64
    hidden_dim: Count | None = None
    num_layers: Count = 1
    embedding_dropout: Dropped = 0.2
    hidden_dropout: Dropped = 0.5
    separate_output: bool = False
    elu: Weight = 0.0

    def check(self) -> None:
        """Raise an InputError if a shared embedding table would need two widths, or features two tables."""
        super().check()
        if self.features and self.separate_output:
            raise InputError("features are shared by input and output; leave out separate_output, or features")
        if self.hidden_dim not in (None, self.embedding_dim) and not self.separate_output:
            raise InputError(
                f"hidden_dim {self.hidden_dim} and embedding_dim {self.embedding_dim} differ, but input and output "
                "share one table; make them equal, or give separate_output"
            )

    def resolved(self) -> "GRU4RecConfig":
        """A copy in which ``PLAIN`` and the width of the recurrent layers are filled in."""
        return replace(super().resolved(), hidden_dim=self.hidden_dim or self.embedding_dim)


class GRU4Rec(Model):
    """The model of both papers: embedding, stacked GRU (2016, eq. 2 to 5), dot product with output vectors, bias.

    The authors found features of the model missing or wrong in third-party versions (Hidasi & Czapp, RecSys 2023,
    arXiv 2307.14956). This is how they are implemented here:

    - Item embeddings: separate from the output vectors (``separate_output``) or shared with them, the "constrained
      embedding". A third form in their code, in which the first GRU's input weights are the embedding, is equivalent
      to a separate table and is left out.
    - Output bias: one per item, part of the score and so of all losses. The hidden state has a constant column of 1 for
      it, so that the score remains a dot product.
    - Dropout: on the embedded input, but never on the output vectors, and with its own probability on the states of
      every layer, including the last. Their code also passes the dropped states to the next step. Here a layer passes
      on its complete states, since otherwise each step would forget a share of them.
    - Reset gate: applied before the matrix product (2016, eq. 4), as in their Theano code. ``torch.nn.GRU`` and cuDNN,
      and so their PyTorch code, apply it after.
    - Hidden states: zero at the start of each user's history, in all layers.
    - Losses: BPR-max with softmax weights over the negatives only and with score regularisation, TOP1-max, and
      cross-entropy in its stable form (2018, section 3), in ``training/losses.py``. Their cross-entropy with sampled
      negatives is ``sampled-softmax`` here. Their ``logq = 1`` subtracts from each logit, the target's too, the log of
      the probability that the item is drawn. ``logq_correction="all"`` does the same for the negatives; from the
      target's logit it subtracts -log of the number of negatives, which is right for negatives that are never the
      target (see :func:`seqrec.training.losses.sampled_softmax`).
    - Activation of the scores (their ``final_act``): ``elu``. In their parameter files it is 0.5 or 1 with bpr-max, and
      absent with cross-entropy. The tanh of 2016 is left out. With an ELU the score is no longer a dot product, and
      top-k takes longer.
    - Negatives: shared by a batch and drawn by popularity to the power alpha (2018, section 2); the training options
      ``--negatives`` and ``--popularity``. Theirs are added to the targets of the other sequences of the batch. Here
      only drawn items are used, and none of them is an item of the same user.
    - Data: each epoch trains on the last ``max_length`` + 1 interactions of every user, including the last batch.

    Both embeddings are multiplied by sqrt(width), as SASRec does at the input. Adam moves a weight by about the
    learning rate per step, while the authors' Adagrad starts with steps of 0.05 to 0.2, so without the factor small
    tables would hardly change: on a synthetic log of 1,200 items, NDCG@10 after 24 epochs is 0.41 with the factor and
    0.09 without.

    Training differs from the authors': a batch holds complete histories, and gradients flow back through all steps,
    while theirs stop after each step; users are shuffled, while theirs come in the order of time; the optimizer is Adam
    instead of Adagrad with momentum.
    """

    Config = GRU4RecConfig
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset({"item_embedding", "output_embedding", "item_bias"})
    VECTORS_OF_ITEMS = True
    BIAS_COLUMN = True
    config: GRU4RecConfig

    def __init__(self, config: GRU4RecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__()
        self.config = config = config.resolved()
        self.num_items = num_items
        if config.elu:
            self.FACTORED = False
        dim = config.hidden_dim or config.embedding_dim
        self.item_embedding = ItemEmbedding(num_items, config.embedding_dim, config)
        self.user_encoder = UserEncoder(num_users, config.embedding_dim, config)
        self.output_embedding = nn.Embedding(num_items + 1, dim) if config.separate_output else None
        self.item_bias = nn.Embedding(num_items + 1, 1)
        self.embedding_dropout = Dropout(config.embedding_dropout)
        self.hidden_dropout = Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            GRU(config.embedding_dim if layer == 0 else dim, dim) for layer in range(config.num_layers)
        )
        self.reset()

    def reset(self) -> None:
        """Initialise the weights: small tables, biases of 0, and Glorot's rule for each gate, as in the authors' code.

        Their tables follow Glorot's rule too, which gives the same scale for about twenty thousand items.
        """
        for table in (self.item_embedding, self.output_embedding):
            if table is not None:
                nn.init.normal_(table.weight, std=0.01)
                with torch.no_grad():
                    table.weight[0] = 0
        self.item_embedding.reset_rest(0.01)
        self.user_encoder.reset(0.01)
        nn.init.zeros_(self.item_bias.weight)
        for module in self.modules():
            if isinstance(module, GRU):
                module.reset()

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, D + 1]`` of the tokens; the last column is 1."""
        steps = Steps(batch)
        x = self.user_encoder(self.item_embedding(batch.items.index_select(0, steps.tokens)), batch, steps.tokens)
        x = self.embedding_dropout(x * x.shape[1] ** 0.5, steps.tokens)
        for layer in self.layers:
            x = self.hidden_dropout(layer(x, steps), steps.tokens)
        return F.pad(x.index_select(0, steps.places) * x.shape[1] ** 0.5, (0, 1), value=1.0)

    def item_vectors(self) -> Tensor:
        """Output vectors ``[I + 1, D + 1]``; the last column is the bias."""
        table = self.item_embedding.all() if self.output_embedding is None else self.output_embedding.weight
        return torch.cat([table, self.item_bias.weight], dim=1)

    def vectors_of(self, items: Tensor) -> Tensor:
        """Output vectors ``[..., D + 1]`` of some items."""
        return torch.cat([(self.output_embedding or self.item_embedding)(items), self.item_bias(items)], dim=-1)

    def score(self, hidden: Tensor, items: Tensor | None = None) -> Tensor:
        """Logits in the shapes of :meth:`Model.score`, after the ELU if there is one."""
        logits = super().score(hidden, items)
        return F.elu(logits, self.config.elu) if self.config.elu else logits


class GRU(nn.Module):
    """One layer of gated recurrent units (2016, eq. 2 to 5), over tokens ordered by step.

        r_t = sigma(W_r x_t + U_r h_(t-1) + b_r)            z_t = sigma(W_z x_t + U_z h_(t-1) + b_z)
        c_t = tanh(W x_t + U (r_t * h_(t-1)) + b)           h_t = (1 - z_t) h_(t-1) + z_t c_t

    The biases come from the authors' code. ``input`` holds W_r, W_z and W, ``gates`` U_r and U_z, ``candidate`` U.
    """

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(input_dim, 3 * hidden_dim)
        self.gates = nn.Parameter(torch.empty(2 * hidden_dim, hidden_dim))
        self.candidate = nn.Parameter(torch.empty(hidden_dim, hidden_dim))

    def reset(self) -> None:
        """Initialise the weights."""
        for matrix, parts in ((self.input.weight, 3), (self.gates, 2), (self.candidate, 1)):
            for part in matrix.detach().chunk(parts):
                nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.input.bias)

    def forward(self, x: Tensor, steps: Steps) -> Tensor:
        """Inputs ``[T, E]`` to states ``[T, D]``, both ordered by step."""
        return _recurrence(self.input(x), self.gates, self.candidate, steps)


@not_compiled  # the number of steps changes with every batch
def _recurrence(inputs: Tensor, gates: Tensor, candidate: Tensor, steps: Steps) -> Tensor:
    states: Tensor = _Recurrence.apply(inputs, gates, candidate, steps)
    return states


class _Recurrence(torch.autograd.Function):
    """The loop over steps, with a hand-written gradient.

    Autograd would keep a dozen small nodes per step. Here a step takes seven small operations forward and nine
    backward, and the gradient of each matrix is a single product over all tokens.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx: Any, inputs: Tensor, gates: Tensor, candidate: Tensor, steps: Steps) -> Tensor:
        dim = candidate.shape[0]
        # Copies, even if the slice is contiguous, because they are changed in place.
        rz_T2D = inputs[:, : 2 * dim].clone(memory_format=torch.contiguous_format)
        c_TD = inputs[:, 2 * dim :].clone(memory_format=torch.contiguous_format)
        h_TD = torch.empty_like(c_TD)
        before: Tensor | None = None
        for start, stop in steps.bounds:
            rz, c, h = rz_T2D[start:stop], c_TD[start:stop], h_TD[start:stop]
            if before is None:
                rz.sigmoid_()
                torch.mul(c.tanh_(), rz[:, dim:], out=h)
            else:
                before = before[: stop - start]
                rz.addmm_(before, gates.T).sigmoid_()
                c.addmm_(rz[:, :dim] * before, candidate.T).tanh_()
                torch.lerp(before, c, rz[:, dim:], out=h)
            before = h
        ctx.save_for_backward(rz_T2D, c_TD, h_TD, gates, candidate)
        ctx.steps = steps
        return h_TD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rz_T2D, c_TD, h_TD, gates, candidate = ctx.saved_tensors
        steps: Steps = ctx.steps
        dim = candidate.shape[0]
        first = steps.sizes[0] if steps.sizes else 0
        r_TD, z_TD = rz_T2D[:, :dim], rz_T2D[:, dim:]
        before_TD = torch.zeros_like(h_TD)
        before_TD[first:] = h_TD.index_select(0, steps.before)
        # Local derivatives of a state by the input of each part, for all tokens at once.
        to_candidate = z_TD * (1 - c_TD * c_TD)
        to_update = (c_TD - before_TD) * z_TD * (1 - z_TD)
        to_reset = before_TD * r_TD * (1 - r_TD)
        kept = 1 - z_TD
        d_h_TD = gradients[0].to(h_TD.dtype).clone()
        d_rz_T2D, d_c_TD = torch.empty_like(rz_T2D), torch.empty_like(c_TD)
        for (start, stop), (earlier, _) in zip(steps.bounds[:0:-1], steps.bounds[-2::-1], strict=True):
            d_h, d_rz, d_c = d_h_TD[start:stop], d_rz_T2D[start:stop], d_c_TD[start:stop]
            torch.mul(d_h, to_candidate[start:stop], out=d_c)
            torch.mul(d_h, to_update[start:stop], out=d_rz[:, dim:])
            d_reset = d_c @ candidate
            torch.mul(d_reset, to_reset[start:stop], out=d_rz[:, :dim])
            d_before = d_h_TD[earlier : earlier + stop - start]
            d_before.addcmul_(d_h, kept[start:stop]).addcmul_(d_reset, r_TD[start:stop]).addmm_(d_rz, gates)
        torch.mul(d_h_TD[:first], to_candidate[:first], out=d_c_TD[:first])
        torch.mul(d_h_TD[:first], to_update[:first], out=d_rz_T2D[:first, dim:])
        d_rz_T2D[:first, :dim] = 0  # the first step has no previous state to reset
        d_gates = d_rz_T2D[first:].T @ before_TD[first:]
        d_candidate = d_c_TD[first:].T @ (r_TD[first:] * before_TD[first:])
        return torch.cat([d_rz_T2D, d_c_TD], dim=1), d_gates, d_candidate, None
