"""GRU4Rec: recurrent neural networks for the next item (Hidasi et al., ICLR 2016; GRU4Rec+: CIKM 2018)."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.fields import Count, Dropped, Length, Options, Weight
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.blocks import Dropout


@dataclass(frozen=True)
class GRU4RecConfig(Options):
    """Sizes and regularisation of GRU4Rec.

    Args:
        max_length: Number of most recent items of a history that the model sees.
        embedding_dim: Width of the item embeddings.
        hidden_dim: Width of the recurrent layers. By default ``embedding_dim``.
        num_layers: Number of recurrent layers, each on the states of the one below.
        embedding_dropout: Dropout on the embedded input.
        hidden_dropout: Dropout on the states of every layer.
        separate_output: Learn separate output vectors. By default the item embeddings serve as input and output.
        elu: Alpha of an ELU on the scores, which helps with bpr-max (0.5 or 1 in the authors' parameter files). 0 turns
            it off.
    """

    max_length: Length = 50
    embedding_dim: Count = 64
    hidden_dim: Count | None = None
    num_layers: Count = 1
    embedding_dropout: Dropped = 0.2
    hidden_dropout: Dropped = 0.5
    separate_output: bool = False
    elu: Weight = 0.0

    def check(self) -> None:
        """Refuse two widths for one table."""
        if self.hidden_dim not in (None, self.embedding_dim) and not self.separate_output:
            raise InputError(
                f"hidden_dim is {self.hidden_dim} and embedding_dim {self.embedding_dim}, which the shared table can't "
                "serve; give the same, or separate_output"
            )

    def resolved(self) -> "GRU4RecConfig":
        """With the width of the recurrent layers."""
        return replace(self, hidden_dim=self.hidden_dim or self.embedding_dim)


class GRU4Rec(Model):
    """The model of both papers: embedding, stacked GRU (2016, eq. 2 to 5), dot product with output vectors, bias.

    What a study by the authors (Hidasi & Czapp, RecSys 2023, arXiv 2307.14956) calls the model's own features
    and finds missing or wrong in third-party ports, and how it is here:

    - Item embeddings: a table of their own (``separate_output``) or shared with the output, the "constrained
      embedding". The third form of their code, the first GRU's input weights as embedding, is a separate
      table folded into the GRU's matrix; it is left out.
    - Output bias of each item: there, in the score and so in all losses; a constant 1 beside the hidden state
      meets it, so the score stays a dot product.
    - Dropout in two places, each its own probability: on the embedded input, never on the output vectors; on
      the states of every layer, the last too. Their code also carries the dropped states to the next step;
      here a layer's own recurrence sees its whole states, since each step would forget a share of them.
    - The reset gate acts before the matrix product (2016, eq. 4), as in their Theano code. ``torch.nn.GRU``,
      cuDNN and so their PyTorch code have it after.
    - Hidden states start at zero with each user and never pass from one to another; in stacked layers too.
    - Losses: BPR-max with softmax weights over the negatives alone and with score regularisation, TOP1-max, and
      cross-entropy in the stable form (2018, section 3), in ``training/losses.py``. Their cross-entropy with sampled
      negatives is ``sampled-softmax`` here. Their ``logq = 1`` subtracts from each logit, the target's too, the log of
      its item's probability of being drawn; so does ``logq_correction="all"`` from the negatives', and from the
      target's what suits negatives that are never the target: -log of their number (see
      :func:`seqrec.training.losses.sampled_softmax`).
    - Activation of the scores (their ``final_act``): ``elu``, in their files 0.5 or 1 with bpr-max and none with
      cross-entropy; the tanh of 2016 is left out. With it the score is no dot product and top-k takes longer.
    - Negatives shared by a batch and drawn by popularity to the power alpha (2018, section 2): ``--negatives``
      and ``--popularity`` of training. Theirs come besides the targets of the other sequences of the batch;
      here the drawn ones stand for those too, and no negative is an item of the same user.
    - Every user is trained on in each epoch, by the last ``max_length`` + 1 interactions; those of the last batch too.

    Both embeddings count sqrt(width) times, as SASRec's at the input. Adam moves a weight by about its learning
    rate a step, where the authors' Adagrad begins with steps of 0.05 to 0.2; so plain narrow tables would stand
    nearly still: on a synthetic log of 1,200 items the ranking is at 0.09 NDCG@10 after 24 epochs, with this at 0.41.

    Training differs: a batch holds whole users and gradients go back through all their steps, where the
    authors run sequences in parallel and cut the gradient after each step; users are shuffled, theirs
    come in the order of time; the optimizer is Adam, theirs is Adagrad with momentum.
    """

    Config = GRU4RecConfig
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset({"item_embedding", "output_embedding", "item_bias"})
    BIAS_COLUMN = True
    config: GRU4RecConfig

    def __init__(self, config: GRU4RecConfig, num_items: int, num_users: int = 0) -> None:
        del num_users  # the model knows users by their history alone
        super().__init__()
        self.config = config
        self.num_items = num_items
        if config.elu:
            self.FACTORED = False
        dim = config.hidden_dim or config.embedding_dim
        self.item_embedding = nn.Embedding(num_items + 1, config.embedding_dim, padding_idx=0)
        self.output_embedding = nn.Embedding(num_items + 1, dim, padding_idx=0) if config.separate_output else None
        self.item_bias = nn.Embedding(num_items + 1, 1, padding_idx=0)
        self.embedding_dropout = Dropout(config.embedding_dropout)
        self.hidden_dropout = Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            GRU(config.embedding_dim if layer == 0 else dim, dim) for layer in range(config.num_layers)
        )
        self.reset()

    def reset(self) -> None:
        """Draw the weights anew: narrow tables, biases of 0, Glorot for each gate's matrices as in the authors' code.

        Their tables are uniform by Glorot's rule, which gives the same width for some twenty thousand items.
        """
        for table in (self.item_embedding, self.output_embedding):
            if table is not None:
                nn.init.normal_(table.weight, std=0.01)
                with torch.no_grad():
                    table.weight[0] = 0
        nn.init.zeros_(self.item_bias.weight)
        for module in self.modules():
            if isinstance(module, GRU):
                module.reset()

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, D + 1]`` of the tokens; the last column is 1."""
        steps = Steps(batch)
        x = self.item_embedding(batch.items.index_select(0, steps.tokens))
        x = self.embedding_dropout(x * x.shape[1] ** 0.5)
        for layer in self.layers:
            x = self.hidden_dropout(layer(x, steps))
        return F.pad(x.index_select(0, steps.places) * x.shape[1] ** 0.5, (0, 1), value=1.0)

    def item_vectors(self) -> Tensor:
        """Output vectors ``[I + 1, D + 1]``; the last column is the bias."""
        return torch.cat([(self.output_embedding or self.item_embedding).weight, self.item_bias.weight], dim=1)

    def vectors_of(self, items: Tensor) -> Tensor:
        """Output vectors ``[..., D + 1]`` of some items."""
        return torch.cat([(self.output_embedding or self.item_embedding)(items), self.item_bias(items)], dim=-1)

    def score(self, hidden: Tensor, items: Tensor | None = None) -> Tensor:
        """Logits in the shapes of the contract, after the ELU where there is one."""
        logits = super().score(hidden, items)
        return F.elu(logits, self.config.elu) if self.config.elu else logits


class Steps:
    """Packed tokens in the order of time steps: first those of the first step of all users, then the second.

    Within a step the users with more tokens come first, so those who are still there at a step are the first
    ones of the step before. ``tokens int64[T]`` names the token at each place, ``places int64[T]`` the place
    of each token, ``sizes`` how many users each step has.
    """

    @torch.compiler.disable  # plain numpy, different for every batch
    def __init__(self, batch: Batch) -> None:
        lengths = batch.lengths.cpu().numpy()
        rank = np.empty_like(lengths)
        rank[np.argsort(-lengths, kind="stable")] = np.arange(len(lengths))
        sizes = len(lengths) - np.searchsorted(np.sort(lengths), np.arange(lengths.max(initial=0)), side="right")
        starts = np.concatenate([[0], np.cumsum(sizes)])
        step = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        places = starts[step] + np.repeat(rank, lengths)
        tokens = np.empty_like(places)
        tokens[places] = np.arange(len(places))
        # Where the state before each place is, for the places from the second step on.
        before = np.arange(len(places))[starts[min(1, len(sizes))] :] - np.repeat(sizes[:-1], sizes[1:])
        self.sizes: list[int] = sizes.tolist()
        self.bounds: list[tuple[int, int]] = list(pairwise(starts.tolist()))
        device = batch.items.device
        self.tokens, self.places, self.before = (torch.from_numpy(a).to(device) for a in (tokens, places, before))


class GRU(nn.Module):
    """One layer of gated recurrent units (2016, eq. 2 to 5), over tokens in the order of steps.

        r_t = sigma(W_r x_t + U_r h_(t-1) + b_r)            z_t = sigma(W_z x_t + U_z h_(t-1) + b_z)
        c_t = tanh(W x_t + U (r_t * h_(t-1)) + b)           h_t = (1 - z_t) h_(t-1) + z_t c_t

    The biases are of the authors' code. ``input`` holds W_r, W_z and W, ``gates`` U_r and U_z, ``candidate`` U.
    """

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(input_dim, 3 * hidden_dim)
        self.gates = nn.Parameter(torch.empty(2 * hidden_dim, hidden_dim))
        self.candidate = nn.Parameter(torch.empty(hidden_dim, hidden_dim))

    def reset(self) -> None:
        """Draw the weights anew."""
        for matrix, parts in ((self.input.weight, 3), (self.gates, 2), (self.candidate, 1)):
            for part in matrix.detach().chunk(parts):
                nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.input.bias)

    def forward(self, x: Tensor, steps: Steps) -> Tensor:
        """``[T, E]`` to the states ``[T, D]``, both in the order of steps."""
        return _recurrence(self.input(x), self.gates, self.candidate, steps)


@torch.compiler.disable  # as many steps as the batch's longest history has
def _recurrence(inputs: Tensor, gates: Tensor, candidate: Tensor, steps: Steps) -> Tensor:
    states: Tensor = _Recurrence.apply(inputs, gates, candidate, steps)
    return states


class _Recurrence(torch.autograd.Function):
    """The loop over steps, with its gradient by hand.

    Autograd would keep a dozen small nodes a step; here a step is seven small operations forward and nine
    back, and the gradients of the matrices are one product each over all tokens.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx: Any, inputs: Tensor, gates: Tensor, candidate: Tensor, steps: Steps) -> Tensor:
        dim = candidate.shape[0]
        # Copies, even of a single row: they are changed in place.
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
        # What the gradient of a state is multiplied by on its way to each part, for all tokens at once.
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
        d_rz_T2D[:first, :dim] = 0  # there was nothing to reset
        d_gates = d_rz_T2D[first:].T @ before_TD[first:]
        d_candidate = d_c_TD[first:].T @ (r_TD[first:] * before_TD[first:])
        return torch.cat([d_rz_T2D, d_c_TD], dim=1), d_gates, d_candidate, None
