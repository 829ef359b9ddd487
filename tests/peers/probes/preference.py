"""Runs inside a peer's environment: its pair losses on given log-probs.

    python preference.py SPEC.json OUT

The trainers' own loss functions run, on an object that has what they read in place of a trainer, so
that no network's arithmetic comes between. Every case gives a loss and its gradient by the
log-probs.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
import trl
from safetensors.torch import save_file

ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    use_distributed=False,
)


def outputs_of(logprobs_BT):
    """What current TRL's fused head returns; only the log-probs matter to a loss."""
    zeros_BT = torch.zeros_like(logprobs_BT)
    return SimpleNamespace(
        log_probs=logprobs_BT,
        entropy=zeros_BT,
        mean_logits=zeros_BT,
        is_top1=zeros_BT.bool(),
        aux_loss=None,
    )


def stand_in(**own):
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **own,
    )


def dpo(data, args):
    from trl import DPOTrainer

    logprobs_BT = data["logprobs"].requires_grad_()
    types = args["loss_type"]
    trainer = stand_in(
        beta=args["beta"],
        loss_types=types,
        loss_weights=args.get("loss_weights", [1.0] * len(types)),
        label_smoothing=args.get("label_smoothing", 0.0),
        f_divergence_type=args.get("f_divergence_type", "reverse_kl"),
        f_alpha_divergence_coef=args.get("f_alpha_divergence_coef", 1.0),
        ld_alpha=None,
        use_weighting=False,
    )
    chosen_N, rejected_N = data["ref_logprobs"].chunk(2)
    inputs = {
        "input_ids": data["mask"].long(),
        "attention_mask": data["mask"].long(),
        "completion_mask": data["mask"].long(),
        "ref_chosen_logps": chosen_N,
        "ref_rejected_logps": rejected_N,
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs_of(logprobs_BT), inputs, False)
    return loss, logprobs_BT


def kto(data, args):
    from trl import KTOTrainer

    logprobs_BT = data["logprobs"].requires_grad_()
    half = len(logprobs_BT) // 2
    trainer = stand_in(
        beta=args["beta"],
        loss_type="kto",
        calculate_KL=True,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        _compute_kl_logps=lambda model, batch: data["kl_logprobs"],
    )
    inputs = {
        "input_ids": data["mask"].long(),
        "attention_mask": data["mask"].long(),
        "completion_mask": data["mask"].long(),
        "label": torch.tensor([True] * half + [False] * half),
        "ref_logps": data["ref_logprobs"],
        "ref_KL_logps": data["ref_kl_logprobs"],
    }
    loss = KTOTrainer._compute_loss(trainer, lambda **_: outputs_of(logprobs_BT), inputs, False)
    return loss, logprobs_BT


def cpo(data, args):
    from trl.experimental.cpo import CPOTrainer

    logprobs_BT = data["logprobs"].requires_grad_()
    logps_B = logprobs_BT.sum(1)
    if args["loss_type"] == "simpo":
        logps_B = logps_B / data["mask"].sum(1)
    trainer = stand_in(alpha=0.0, **args)
    losses, _, _ = CPOTrainer.cpo_loss(trainer, *logps_B.chunk(2))
    return losses.mean(), logprobs_BT


def orpo(data, args):
    from trl.experimental.orpo import ORPOTrainer

    logprobs_BT = data["logprobs"].requires_grad_()
    means_B = logprobs_BT.sum(1) / data["mask"].sum(1)
    losses = ORPOTrainer.odds_ratio_loss(stand_in(**args), *means_B.chunk(2))[0]
    return -losses.mean(), logprobs_BT


def bco(data, args):
    from trl.experimental.bco.bco_trainer import BCOTrainer, RunningMoments

    logprobs_BT = data["logprobs"].requires_grad_()
    trainer = stand_in(
        beta=args["beta"],
        running=RunningMoments(ACCELERATOR),
        match_underlying_distribution=False,
    )
    for rewards in args["before"]:  # what earlier steps have left
        trainer.running.update(torch.tensor(rewards))
    logps, refs = logprobs_BT.sum(1).chunk(2), data["ref_logprobs"].chunk(2)
    losses, *_ = BCOTrainer.bco_loss(trainer, *logps, *refs, None, None)
    return losses.mean(), logprobs_BT


def xpo(data, args):
    # The client of a generation server, which wants packages that are not installed here.
    client = ModuleType("trl.generation.vllm_client")
    client.VLLMClient = None
    sys.modules.setdefault(client.__name__, client)
    from trl.experimental.xpo import XPOTrainer

    logprobs_BT = data["logprobs"].requires_grad_()
    chosen_NT, rejected_NT = logprobs_BT.chunk(2)
    chosen_N, rejected_N = data["ref_logprobs"][:, None].chunk(2)
    own = torch.tensor(args["model_is_chosen"])
    trainer = SimpleNamespace(
        beta=args["beta"], alpha=args["alpha"], args=SimpleNamespace(loss_type="sigmoid")
    )
    loss, _, _ = XPOTrainer._compute_losses(
        trainer,
        torch.where(own[:, None], chosen_NT, rejected_NT),
        torch.where(own[:, None], rejected_NT, chosen_NT),
        torch.where(own[:, None], rejected_N, chosen_N),
        torch.where(own[:, None], chosen_N, rejected_N),
        own,
    )
    return loss, logprobs_BT


KINDS = {"dpo": dpo, "kto": kto, "cpo": cpo, "orpo": orpo, "bco": bco, "xpo": xpo}


def main(spec_file, out):
    spec = json.loads(Path(spec_file).read_text())
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    logs = {"version": trl.__version__}
    for case in spec["cases"]:
        dtype = getattr(torch, case.get("dtype", "float64"))
        data = {name: torch.tensor(x) for name, x in spec["data"].items()}
        data = {name: x.to(dtype) if x.is_floating_point() else x for name, x in data.items()}
        loss, logprobs_BT = KINDS[case["kind"]](data, case["args"])
        loss.backward()
        found = {"loss": loss.detach(), "gradient": logprobs_BT.grad}
        save_file(found, Path(out) / f"{case['name']}.safetensors")
    (Path(out) / "logs.json").write_text(json.dumps(logs))


if __name__ == "__main__":
    main(*sys.argv[1:])
