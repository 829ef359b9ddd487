def test_probe(group_trainer_of):
    for alg in ("nash_md", "grpo", "rloo"):
        a = group_trainer_of(alg)
        b = group_trainer_of(alg, micro_batch_size=1)
        for step in range(4):
            ma = a.update(step)
            mb = b.update(step)
            w = max(
                float((p - q).abs().max())
                for p, q in zip(a.policy.parameters(), b.policy.parameters())
            )
            d = {
                k: abs(ma.metrics[k] - mb.metrics[k])
                for k in ma.metrics
                if k != "tokens_per_second"
            }
            k = max(d, key=lambda k: d[k] if d[k] == d[k] else 0)
            print(
                alg,
                step,
                w,
                k,
                d[k],
                ma.rollout.logprobs_BR.dtype,
                ma.rollout.scores_B.dtype,
                ma.rollout.ref_logprobs_BR.dtype,
                {k: ma.metrics[k] for k in ("grad_norm", "val/ratio", "policy/clipfrac_avg")},
            )
