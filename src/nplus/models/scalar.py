"""Scalar models: a language model's trunk with a one-number head, as reward model and as critic.

The network is transformers' own `*ForSequenceClassification` with one label, so what is saved
here loads anywhere. Output = head(final norm(hidden)) - shift (Details D2, D5).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from nplus.batches import SharedBatch
from nplus.models.files import built_aside, load_complete
from nplus.models.golden import check_golden, write_golden
from nplus.models.lm import hidden_at, model_inputs, set_dropout, shared_inputs, trailing_hidden
from nplus.models.weights import require_weights
from nplus.records import InputError

SHIFT_KEY = "nplus_reward_shift"
"""Key of config.json that holds the shift where it cannot be folded into the weights."""
_FINAL_NORMS = ("final_layer_norm", "final_layernorm", "ln_f", "norm")


def head_weights(hidden: int, init: str, seed: int) -> Tensor:
    """[H] float32 weights of a fresh head (Detail D2), by `seed` alone.

    Raises ValueError for another init than `normal`, `uniform` and `zero`.
    """
    generator = torch.Generator().manual_seed(seed)
    if init == "normal":
        return torch.randn(hidden, generator=generator) / (hidden + 1) ** 0.5
    if init == "uniform":
        return (2.0 * torch.rand(hidden, generator=generator) - 1.0) / hidden**0.5
    if init == "zero":
        return torch.zeros(hidden)
    raise ValueError(f"unknown head init {init!r}; known: normal, uniform, zero")


class ScalarModel(torch.nn.Module):
    """One number per position: a reward where the text ends, a value before each token."""

    network: PreTrainedModel
    shift: Tensor
    tokens_back: int = 0
    """Scores are read so many tokens before the last one: 0 is the EOS (Detail D4)."""

    def __init__(self, network: PreTrainedModel, shift: float = 0.0) -> None:
        super().__init__()
        head = getattr(network, "score", None)
        if not isinstance(head, torch.nn.Linear) or head.bias is not None or head.out_features != 1:
            raise InputError(
                f"{type(network).__name__} has no bias-free one-label head `score`; "
                "a reward model is a *ForSequenceClassification with num_labels=1"
            )
        self.network = network
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32))
        set_dropout(network, 0.0)

    @classmethod
    def from_causal(
        cls, causal_lm: PreTrainedModel, *, pad_id: int, seed: int, head_init: str = "normal"
    ) -> Self:
        """A copy of the trunk of `causal_lm` under a fresh head that depends on `seed` alone.

        Detail D2: head weights ~ N(0, 1/sqrt(hidden + 1)), no bias; torch's default (`uniform`)
        has the std 1/sqrt(3 hidden), and a std of 1 would start the loss far above ln 2.
        """
        config = copy.deepcopy(causal_lm.config)
        config.num_labels = 1
        config.problem_type = "regression"
        config.use_cache = False
        # An embedding cannot have a padding row that it does not hold; such a PAD stays unnamed.
        config.pad_token_id = pad_id if pad_id < config.vocab_size else None
        with torch.random.fork_rng(devices=[]):
            network = AutoModelForSequenceClassification.from_config(
                config,
                dtype=causal_lm.dtype,
                attn_implementation=causal_lm.config._attn_implementation,
            ).to(causal_lm.device)
        # Strict in both directions: every tensor of the trunk is copied, and none is left random.
        network.base_model.load_state_dict(causal_lm.base_model.state_dict(), strict=True)
        model = cls(network)
        weight = model.network.score.weight
        with torch.no_grad():
            weight.copy_(head_weights(weight.shape[1], head_init, seed)[None])
        return model

    @property
    def device(self) -> torch.device:
        return self.network.device

    def hidden(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """[B, T, H] last hidden states, after the final norm."""
        inputs = model_inputs(self.network, tokens_BT, mask_BT)
        return self.network.base_model(**inputs).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """[...] float32 from [..., H]: head minus shift; float64 stays float64."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        return hidden.to(dtype) @ self.network.score.weight[0].to(dtype) - self.shift

    def values(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """[B, T] float32: the output at every position; meaningless, but finite, in padding."""
        return self.head(self.hidden(tokens_BT, mask_BT))

    def response_values(self, tokens_BT: Tensor, mask_BT: Tensor, width: int) -> Tensor:
        """[B, R]: V of the state before each of the last `width` tokens (Detail F1).

        Slot r is column P + r - 1, the columns that the log-probs come from. The slot after the EOS
        (s + 1) reads the EOS itself, which is real; slots beyond mean nothing.
        """
        if not 0 < width < tokens_BT.shape[1]:
            raise ValueError(f"a response of {width} does not fit {tokens_BT.shape[1]} columns")
        hidden_BRH = trailing_hidden(self.network, tokens_BT, mask_BT, width + 1)[:, :-1]
        return self.head(hidden_BRH)

    def scores(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """[B] float32, read at the last real token, wherever the padding is (Detail D4)."""
        length = mask_BT.shape[1]
        read_B = length - 1 - mask_BT.flip(-1).int().argmax(-1) - self.tokens_back
        width = length - max(0, int(read_B.min()))
        hidden_BWH = trailing_hidden(self.network, tokens_BT, mask_BT, width)
        rows_B = torch.arange(len(read_B), device=read_B.device)
        return self.head(hidden_BWH[rows_B, read_B - (length - width)])

    def shared_scores(self, batch: SharedBatch) -> Tensor:
        """[N] float32: the score of each of the batch's responses, their queries read once."""
        width = batch.tokens_BT.shape[1]
        read_U, of_N = self._read(batch).unique(return_inverse=True)
        rows_U = read_U // width
        first_B = rows_U.bincount().cumsum(0).roll(1).index_fill_(0, rows_U[:1], 0)
        slots_U = torch.arange(len(read_U), device=read_U.device) - first_B[rows_U]
        columns_BW = read_U.new_zeros(len(batch.tokens_BT), int(slots_U.max()) + 1)
        columns_BW[rows_U, slots_U] = read_U % width
        hidden_BWH = hidden_at(self.network, shared_inputs(self.network, batch), columns_BW)
        return self.head(hidden_BWH[rows_U, slots_U][of_N])

    def _read(self, batch: SharedBatch) -> Tensor:
        """[N]: row * T + column where each score is read; before an EOS alone the query ends."""
        read_N = batch.ends_N - self.tokens_back
        segment = batch.segments_BT.flatten()
        row_N = batch.ends_N // batch.tokens_BT.shape[1]
        query_N = row_N * batch.tokens_BT.shape[1] + (batch.segments_BT == 0).sum(1)[row_N] - 1
        return torch.where(segment[read_N] == segment[batch.ends_N], read_N, query_N)

    def set_shift(self, shift: float | Tensor) -> None:
        """Subtract `shift` from every output from now on (Detail D5: the demonstrations' mean)."""
        self.shift.fill_(float(shift))

    def set_std(self, std: float) -> None:
        """Divide every output by `std` from now on (OpenAI 2019; the paper only shifts)."""
        with torch.no_grad():
            self.network.score.weight.div_(std)
            self.shift.div_(std)

    def copy(self) -> Self:
        """An independent copy: a critic from its reward model (Detail E3)."""
        return copy.deepcopy(self)

    def save(self, path: Path | str, tokenizer: Any | None = None) -> None:
        """Write a directory that plain `AutoModelForSequenceClassification` loads.

        Where the final norm has a bias in full precision, the shift is folded into it: plain
        transformers then gives the shifted scores, and the shift is 0 after `load`. Elsewhere
        (RMSNorm) it stands in config.json as `nplus_reward_shift`. This object stays as it is.
        The scores of a few fixed rows stand beside it, for `load` to compare.
        """
        config = self.network.config
        state = self._folded()
        stored_shift = float(self.shift) if state is None else 0.0
        setattr(config, SHIFT_KEY, stored_shift)
        try:
            with built_aside(Path(path)) as aside:
                self.network.save_pretrained(aside, state_dict=state)
                write_golden(aside, self.network, float(self.shift), stored_shift, tokenizer)
                if tokenizer is not None:
                    tokenizer.save_pretrained(aside)
        finally:
            delattr(config, SHIFT_KEY)

    @classmethod
    def load(
        cls, path: Path | str, *, dtype: torch.dtype | str = "auto", attn: str | None = None
    ) -> Self:
        """What `save` wrote, or any one-label classifier with a bias-free `score` head.

        Raises InputError for a directory without weights, for a checkpoint without `score.weight`
        (transformers would make up a random head and only warn), and for one that does not score
        its golden rows as when it was saved.
        """
        source = Path(path)
        require_weights(source)
        options: dict[str, Any] = {} if attn is None else {"attn_implementation": attn}
        # Never a pickle, and never code that lies beside the weights: unset, transformers asks.
        options |= {"use_safetensors": True, "trust_remote_code": False}
        network = load_complete(
            AutoModelForSequenceClassification, source, dtype=dtype, num_labels=1, **options
        )
        shift = float(network.config.to_dict().get(SHIFT_KEY, 0.0))
        if hasattr(network.config, SHIFT_KEY):
            delattr(network.config, SHIFT_KEY)
        model = cls(network, shift)
        check_golden(source, network, shift)
        return model

    def _folded(self) -> dict[str, Tensor] | None:
        """The state dict with the shift inside the final norm's bias; None where it cannot be.

        Adding `-shift * w / |w|^2` to the bias adds `-shift` to `w . h`.
        """
        if not float(self.shift):
            return self.network.state_dict()
        trunk = self.network.base_model
        norm = next((getattr(trunk, n) for n in _FINAL_NORMS if hasattr(trunk, n)), None)
        bias = getattr(norm, "bias", None)
        weight = self.network.score.weight.detach()[0].double()
        if bias is None or bias.dtype not in (torch.float32, torch.float64) or not weight.any():
            return None
        folded = bias.detach().double() - self.shift.double() * weight / weight.square().sum()
        state = self.network.state_dict()
        name = next(name for name, p in self.network.named_parameters() if p is bias)
        return {**state, name: folded.to(bias.dtype)}
