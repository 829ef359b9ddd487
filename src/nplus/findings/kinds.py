"""The table of all kinds of findings: what, cause and mend, and `docs/guides/doctor.md`'s table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""`error`: the numbers do not mean what they say, or the run cannot end well; `warning`: something
goes wrong, or soon will; `note`: worth knowing."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that can be wrong."""

    name: str
    severity: Severity
    when: str
    """When it is looked for: `settings`, `environment`, `text`, `models`, `reward model`, `start`
    or `training`."""
    what: str
    cause: str
    mend: str


KINDS = (
    # --- update 1 of PPO ---------------------------------------------------------------------
    Kind(
        "kl_at_start",
        "error",
        "start",
        "At update 1 the KL to the reference is not 0.",
        "Policy and reference are the same network then, so their log-probs are computed "
        "differently: dropout, a temperature in one of them only, another attention, shifted "
        "columns, or a reference that is not the policy's start.",
        "Set model.dropout=0 and name old and reference in ppo.tempered; see the other findings "
        "for which of the two is wrong.",
    ),
    Kind(
        "ratio_at_start",
        "error",
        "start",
        "At the first minibatch of update 1 the probability ratio is not 1.",
        "Nothing has moved yet, so the forward that trains differs from the one that gave the old "
        "log-probs: dropout, a temperature in one of them only, sampler's log-probs that differ, "
        "or a mask off by one. Clipping then acts on noise.",
        "Set model.dropout=0, ppo.old_logprobs=trainer, ppo.autocast=none, and name old and new in "
        "ppo.tempered.",
    ),
    Kind(
        "sampler_differs",
        "error",
        "start",
        "The sampler's log-probs of the tokens it drew are not the trainer's.",
        "The sampler and the training forward see different distributions: another temperature or "
        "a truncation, other position ids or padding, stale weights, or lower precision in the "
        "sampler. The policy then learns from samples that are not its own.",
        "Name old in ppo.tempered, keep model.dropout=0 and model.positions=real; in low precision "
        "keep ppo.old_logprobs=trainer.",
    ),
    Kind(
        "tempered_unevenly",
        "error",
        "settings",
        "Some log-probs of PPO are of the tempered distribution and others are not.",
        "ppo.tempered leaves one of old, reference and new out: the KL or the ratio then compares "
        "two temperatures, and the KL estimate can be negative.",
        "Set ppo.tempered=[old,reference,new], or ppo.sampling.temperature=1.",
    ),
    Kind(
        "autocast_in_update",
        "note",
        "settings",
        "Old log-probs are computed without autocast, new ones with it.",
        "ppo.autocast applies to the training forwards alone, so the first ratio is 1 but for "
        "bfloat16's rounding (about 0.05 a token), and some tokens are clipped for that.",
        "Set ppo.autocast=none where clipping has to be exact.",
    ),
    # --- text and tokenizer ------------------------------------------------------------------
    Kind(
        "double_bos",
        "error",
        "text",
        "Sequences begin with BOS twice.",
        "A template or a data file writes the BOS marker and the tokenizer adds one. No model has "
        "seen that in pretraining; it costs quality silently, and differently in every tool.",
        "Remove the marker from data.template or the data, or set add_bos_token=false in "
        "tokenizer_config.json.",
    ),
    Kind(
        "template_double_bos",
        "warning",
        "text",
        "The tokenizer adds a BOS to what its own chat template begins with BOS.",
        "The template writes the marker and the tokenizer adds one. nplus adds no BOS, so its own "
        "rows are right; whoever tokenises the template's text with special tokens gets two.",
        "Set add_bos_token=false in tokenizer_config.json, or tokenise with "
        "add_special_tokens=False.",
    ),
    Kind(
        "pad_is_eos",
        "error",
        "text",
        "PAD is the EOS token.",
        "What holds the PAD id is masked, so every EOS is too: it is never a target of SFT, the "
        "reward model reads the token before it, and no response ends by itself.",
        "Set tokenizer.distinct_pad=true; nplus then adds tokenizer.pad_token.",
    ),
    Kind(
        "eos_not_trained",
        "error",
        "text",
        "No training row has EOS among its targets.",
        "EOS is cut off (data.overlong=cut with a small data.max_response_tokens) or masked as "
        "padding (PAD is EOS). SFT then never learns to stop, and PPO pays the missing-EOS penalty "
        "for every response.",
        "Raise data.max_response_tokens or set data.overlong=drop, and "
        "tokenizer.distinct_pad=true.",
    ),
    Kind(
        "eos_cut",
        "warning",
        "text",
        "Some training rows have no EOS among their targets.",
        "Responses longer than data.max_response_tokens lose their EOS under data.overlong=cut, so "
        "the policy learns to run into the limit where a response should end.",
        "Raise data.max_response_tokens, or set data.overlong=drop.",
    ),
    # --- networks ----------------------------------------------------------------------------
    Kind(
        "dropout_set",
        "error",
        "settings",
        "Dropout is on in the settings.",
        "With dropout every log-prob is a draw: the first KL of PPO is not 0, the first ratio not "
        "1, and clipping acts on noise (Detail B1).",
        "Set model.dropout=0.",
    ),
    Kind(
        "dropout_active",
        "error",
        "models",
        "A network of PPO draws dropout in its forwards.",
        "A module is in training mode with p > 0: what it computes is random, rewards and "
        "log-probs too.",
        "Set model.dropout=0; a network loaded by hand needs model.eval() or "
        "nplus.models.lm.set_dropout(model, 0).",
    ),
    Kind(
        "positions_shifted",
        "error",
        "models",
        "A left-padded row has other log-probs than the same row without padding.",
        "Position ids count padding, or padding is attended to. Rollouts are left-padded by "
        "different amounts, so a text's log-prob depends on its neighbours in the batch.",
        "Set model.positions=real; a model with code of its own has to take position_ids and "
        "attention_mask.",
    ),
    Kind(
        "score_depends_on_batch",
        "error",
        "reward model",
        "The reward model scores a text differently in a batch than alone.",
        "It is read at another token (PAD in config.json is wrong, or is EOS), padding is attended "
        "to, or positions count padding.",
        "Set model.positions=real and tokenizer.distinct_pad=true; check pad_token_id in the "
        "reward model's config.json.",
    ),
    Kind(
        "golden_mismatch",
        "error",
        "reward model",
        "A scalar model does not score its golden rows as when it was saved.",
        "Head or trunk are not those that were saved: weights replaced or re-initialised, a "
        "conversion that lost the head, or a shift that was dropped.",
        "Train the reward stage again or restore the directory; if the weights were changed on "
        "purpose, delete golden_scores.json there.",
    ),
    Kind(
        "golden_missing",
        "note",
        "reward model",
        "A scalar model has no golden scores.",
        "It was saved by another program or an earlier version, so nothing shows that its head is "
        "the one that was trained.",
        "Load it and save it once with nplus.models.scalar.ScalarModel, after checking a few "
        "scores by hand.",
    ),
    Kind(
        "model_broken",
        "error",
        "models",
        "A model of the run cannot be loaded.",
        "Its directory was changed or cut short after the stage had finished.",
        "Restore it, or remove the stage's directory and run again.",
    ),
    # --- training ----------------------------------------------------------------------------
    Kind(
        "kl_negative",
        "warning",
        "training",
        "The KL estimate is negative by more than its noise.",
        "The estimate k1 is signed: single batches scatter around the true KL and may fall below "
        "0. Beyond noise it means that samples are not from the policy whose log-probs are taken: "
        "another temperature or a truncation in the sampler, log-probs after EOS, a sampler with "
        "stale weights, or a reference that is not the start.",
        "Name old and reference in ppo.tempered, keep ppo.stop_token=eos and "
        "ppo.old_logprobs=trainer; ppo.kl_estimator=k3 hides the sign, not the cause.",
    ),
    Kind(
        "kl_large",
        "warning",
        "training",
        "The policy is far from the reference.",
        "The reward pays more than the KL costs. The reward model is judged far from what it "
        "learned from; in the paper's runs 50 to 85 nats a response went with lost win rates.",
        "Raise ppo.kl_coef, set ppo.kl_target, or lower ppo.optim.learning_rate.",
    ),
    Kind(
        "reward_hacking",
        "warning",
        "training",
        "The reward model's score rises while the gold score falls.",
        "The policy exploits what the reward model gets wrong (over-optimisation).",
        "Raise ppo.kl_coef, lower ppo.total_episodes, or train a better reward model "
        "(label.pairs).",
    ),
    Kind(
        "length_hacking",
        "warning",
        "training",
        "The score rises in step with the length of the responses.",
        "The reward model may pay for length itself; the verdict at matched length and the gold "
        "score, where there is one, say how much of the gain is left.",
        "Compare at matched length, raise ppo.kl_coef, or balance lengths in the comparisons.",
    ),
    Kind(
        "value_useless",
        "warning",
        "training",
        "The critic predicts returns worse than a constant, update after update.",
        "It does not keep up with the rewards: its rate is too low, it starts from a wrong model, "
        "or returns have another scale than its values. Advantages are then mostly noise.",
        "Raise ppo.value_learning_rate or ppo.vf_coef, keep ppo.value_init=reward, or set "
        "reward.normalise=mean_std.",
    ),
    Kind(
        "entropy_collapse",
        "warning",
        "training",
        "The policy has almost no entropy left.",
        "It gives one answer for a prompt, so a rollout shows nothing new and the gradient dies.",
        "Raise ppo.kl_coef, lower ppo.optim.learning_rate, or raise ppo.sampling.temperature.",
    ),
    Kind(
        "eos_rate_low",
        "warning",
        "training",
        "Too few responses end by themselves.",
        "They run into the length limit, where the score is the penalty and not the reward "
        "model's. SFT learned no EOS, the limit is too short, or length is paid for.",
        "Raise ppo.sampling.response_length, train SFT longer, or keep "
        "ppo.missing_eos_penalty set.",
    ),
    Kind(
        "clip_fraction_high",
        "warning",
        "training",
        "Much of every update is clipped.",
        "Steps are too large for the clip range: what is clipped gives no gradient, and the rest "
        "overshoots.",
        "Lower ppo.optim.learning_rate or ppo.num_ppo_epochs.",
    ),
    Kind(
        "update_too_large",
        "warning",
        "training",
        "The policy moves too far within an update.",
        "The mean squared log-ratio of new and old policy is large, so most of the update is off "
        "the policy that was sampled.",
        "Lower ppo.optim.learning_rate or ppo.num_ppo_epochs, or raise ppo.batch_size.",
    ),
    Kind(
        "score_spread_lost",
        "warning",
        "training",
        "The scores of a batch hardly differ any more.",
        "Responses have become alike, or the reward model is saturated; whitened advantages then "
        "blow its noise up.",
        "Raise ppo.kl_coef or ppo.sampling.temperature, or look at the samples.",
    ),
    Kind(
        "scoring_failed",
        "warning",
        "training",
        "Most calls of scoring.terms give no value.",
        "Functions raise, take too long or too much memory, and scoring.failed stands in, so that "
        "most responses get the same score.",
        "Call the function on a line of samples/; raise scoring.timeout or scoring.memory_mib.",
    ),
    Kind(
        "loss_rising",
        "warning",
        "training",
        "The training loss is higher than at the start.",
        "The learning rate is too high, or the optimiser's state was lost on the way.",
        "Lower the stage's optim.learning_rate, or set optim.warmup_steps.",
    ),
    Kind(
        "chosen_unlikely",
        "warning",
        "training",
        "The preferred responses have become far less likely, with those they were preferred to.",
        "The loss reads differences alone, so probability goes to texts that are in no pair: "
        "responses that never end, or repeat. Too long steps over old pairs do it.",
        "Lower the learning rate or raise beta (dpo, online.train), or set label_smoothing, "
        "rpo_alpha or dpop_lambda.",
    ),
    Kind(
        "reward_at_chance",
        "warning",
        "training",
        "The reward model orders its training pairs no better than a coin.",
        "Labels are noise, choices are swapped, both responses end alike, or the score is read at "
        "the wrong token.",
        "Look at comparisons.jsonl, keep reward.read_at=eos, or raise reward.optim.learning_rate.",
    ),
    # --- environment -------------------------------------------------------------------------
    Kind(
        "version_unsupported",
        "warning",
        "environment",
        "A package is older or newer than what nplus is tested with.",
        "Kernels, defaults and file formats change between versions.",
        "Install nplus with its dependencies again: pip install -U nplus.",
    ),
    Kind(
        "threads_over_quota",
        "warning",
        "environment",
        "torch has more threads than this process may use cores.",
        "A container's quota counts time, not cores, and torch does not see it: threads wait for "
        "each other.",
        "Set compute.threads to the number of cores, or compute.threads=auto after `nplus tune`.",
    ),
    Kind(
        "memory_short",
        "warning",
        "environment",
        "The estimate of memory is more than what is free now.",
        "Other processes hold memory, or the batch is large for this machine. The estimate takes "
        "every row as long as allowed.",
        "Lower the stage's micro_batch_size, set compute.activation_checkpointing=true, or free "
        "memory.",
    ),
    Kind(
        "memory_lacking",
        "error",
        "environment",
        "The estimate of memory is more than this machine, or its container, has at all.",
        "The model or its micro-batch is too large for it.",
        "Lower the stage's micro_batch_size, set compute.activation_checkpointing=true, take "
        "model.dtype=bfloat16, or a smaller model.",
    ),
    Kind(
        "disk_short",
        "error",
        "environment",
        "Models and checkpoints take more than the disk has free.",
        "A checkpoint holds weights and the optimiser's moments, and the old one stays until the "
        "new one stands.",
        "Free space, name another disk with --out, or set the stages' save_steps=0.",
    ),
)
_BY_NAME = {kind.name: kind for kind in KINDS}


def kind_of(name: str) -> Kind:
    """The entry of the table. Raises KeyError for an unknown name."""
    return _BY_NAME[name]


def findings_markdown() -> str:
    """The table of all kinds, for `docs/guides/doctor.md`."""
    lines = ["| finding | severity | what | cause | mend |", "|---|---|---|---|---|"]
    for kind in KINDS:
        cells = (f"`{kind.name}`", kind.severity, kind.what, kind.cause, kind.mend)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
