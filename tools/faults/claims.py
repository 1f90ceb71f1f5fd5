"""Faults of claims/."""

from faults.row import fault

FAULTS = [
    fault(
        "claims/check.py",
        "a claim that is off on one side only",
        "abs(off) / allowed",
        "off / allowed",
        "test_claims.py::test_verdicts",
    ),
    fault(
        "claims/check.py",
        "noise that would hide 8 %",
        "self.error <= VISIBLE",
        "self.error <= 8 * VISIBLE",
        "test_claims.py::test_verdicts",
    ),
    fault(
        "claims/check.py",
        "one control that fails is enough",
        "return all(worst(checks).missed >= FAR",
        "return any(worst(checks).missed >= FAR",
        "test_claims.py::test_a_result_needs_every_check_and_every_control",
    ),
    fault(
        "claims/chains.py",
        "information without its ½",
        "return 0.5 * float(torch.logdet(before)",
        "return float(torch.logdet(before)",
        "test_claims.py::test_joint_against_the_library",
    ),
    fault(
        "claims/chains.py",
        "ln det of q's covariance for p's and back",
        "torch.logdet(p_s) - torch.logdet(q_s)",
        "torch.logdet(q_s) - torch.logdet(p_s)",
        "test_claims.py::test_joint_against_torch_distributions",
    ),
    fault(
        "claims/chains.py",
        "the points' shares left out of q(z)",
        "torch.logsumexp(self.share.log() + log_q, 1)",
        "torch.logsumexp(log_q - math.log(len(self.share)), 1)",
        "test_claims.py::test_holds_at_another_seed[C6]",
    ),
    fault(
        "claims/identities.py",
        "what DDIM misses, with the wrong sign",
        "(backward - first - skipped)",
        "(backward - first + skipped)",
        "test_claims.py::test_what_a_control_breaks_and_what_survives",
    ),
    fault(
        "claims/identities.py",
        "SNR E‖x‖² without ½",
        "ratio = mean / (0.5 * snr",
        "ratio = mean / (snr",
        "test_claims.py::test_holds_at_another_seed[C8]",
    ),
    fault(
        "claims/learning.py",
        "ln N subtracted from ln Σ for added",
        "+ math.log(len(log_q))",
        "- math.log(len(log_q))",
        "test_claims.py::test_informations_of_learned_posteriors",
    ),
    fault(
        "claims/chains.py",
        "guidance from x̂_c instead of x̂_∅",
        "return other + weight * (gain - other)",
        "return gain + weight * (gain - other)",
        "test_claims.py::test_holds_at_another_seed[C13]",
    ),
    fault(
        "claims/conditions.py",
        "the plug-in called a bound",
        "options: dict[str, Any] = {",
        "plug_in, options = True, {",
        "test_claims.py::test_holds_at_another_seed[C11]",
    ),
    fault(
        "claims/conditions.py",
        "i(x; c) without its ½",
        'return 0.5 * torch.einsum("gem,g,e->m"',
        'return torch.einsum("gem,g,e->m"',
        "test_claims.py::test_holds_at_another_seed[C12]",
    ),
    fault(
        "claims/systems.py",
        "a decoder of x given z_2",
        "factor[0] = decoder.weight @ p.factor[1] + own",
        "factor[0] = decoder.weight @ p.factor[2] + own",
        "test_claims.py::test_holds_at_another_seed[C10]",
    ),
    fault(
        "claims/masks.py",
        "the control has the weight too",
        "return (each * (weight if weighted else torch.ones_like(weight))).mean(1)",
        "return (each * weight).mean(1)",
        "test_claims.py::test_control_fails",
    ),
]
