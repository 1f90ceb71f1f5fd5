rows = []


def F(file, what, old, new, *tests):
    rows.append((file, what, old, new, tests))


g = "test_gaussian.py::"
s = "test_schedule.py::"
f = "test_forward.py::"
l = "test_ledger.py::"
v = "test_levels.py::"
sp = "test_space.py::"
e = "test_exact.py::"
b = "test_baselines.py::"
p = "models/test_parameterization.py::"
d = "models/test_denoiser.py::"
k = "models/test_backward.py::"
li = "models/test_likelihood.py::"
m = "models/test_diffusion.py::"
sa = "models/test_sampling.py::"
ev = "evaluation/test_evaluation.py::"
no = "evaluation/test_noise.py::"
F(
    "gaussian.py",
    "φ's sign of δ",
    "torch.expm1(delta) - delta",
    "torch.expm1(delta) + delta",
    g + "test_phi_against_mpmath",
)
F("gaussian.py", "φ's series without δ²/2", "range(9, 1, -1)", "range(9, 2, -1)", g + "test_phi_against_mpmath")
F(
    "gaussian.py",
    "variance for standard deviation",
    "(0.5 * self.log_variance).exp()",
    "self.log_variance.exp()",
    g + "test_a_sample_is_mean_plus_std_times_noise",
)
F(
    "gaussian.py",
    "ln variance dropped from the density",
    "squared + self.log_variance + math.log",
    "squared + math.log",
    g + "test_against_torch_distributions",
)
F(
    "gaussian.py",
    "KL's squared part over v_q for v_p",
    "(-other.log_variance).exp()",
    "(-self.log_variance).exp()",
    g + "test_against_torch_distributions",
)
F(
    "gaussian.py",
    "KL without ½ of its squared part",
    "0.5 * (phi(delta) + squared)",
    "0.5 * phi(delta) + squared",
    g + "test_against_torch_distributions",
)
F(
    "schedule.py",
    "β for −ln(1 − β)",
    "-torch.log1p(-betas).cumsum(0)",
    "betas.cumsum(0)",
    s + "test_knots_of_extreme_betas",
)
F(
    "schedule.py",
    "exp for expm1: −ln α² for γ",
    "torch.log(torch.expm1(",
    "torch.log(torch.exp(",
    s + "test_cosine_against_the_paper[2]",
)
F(
    "schedule.py",
    "grid (t − 1)/T for (t − 1)/(T − 1)",
    "device=self._device()) / (self.steps - 1)",
    "device=self._device()) / self.steps",
    s + "test_log_snr_linear",
)
F(
    "schedule.py",
    "cosine: f(t) for f(t − 1)",
    "torch.cos(a) ** 2",
    "torch.cos(b) ** 2",
    s + "test_cosine_against_the_paper[1000]",
)
F(
    "schedule.py",
    "γ' of a piece without its factor 2",
    "2 * c[1]) * h",
    "c[1]) * h",
    s + "test_dgamma_against_autograd_and_differences[betas]",
)
F(
    "schedule.py",
    "rescaled by T/1000 for 1000/T",
    "1000 / steps if rescale",
    "steps / 1000 if rescale",
    s + "test_linear_is_linear_in_beta_as_given",
)
F(
    "forward.py",
    "α² for α",
    "0.5 * logsigmoid(-gamma.double())",
    "logsigmoid(-gamma.double())",
    f + "test_diffuse_is_the_marginal_with_its_noise_given",
)
F(
    "forward.py",
    "variance σ² for σ in z = α x + σ ε",
    "align(sigma(gamma), x) * noise",
    "align(sigma(gamma) ** 2, x) * noise",
    f + "test_diffuse_is_the_marginal_with_its_noise_given",
)
F(
    "forward.py",
    "σ for σ² in q(z_t|x)",
    "align(logsigmoid(gamma.double()), x)",
    "align(0.5 * logsigmoid(gamma.double()), x)",
    f + "test_marginal_and_transition",
)
F("forward.py", "γ_{t−1} for γ_t", "[t.long()]", "[t.long() - 1]", f + "test_marginal_and_transition")
F(
    "forward.py",
    "√(1−β_t) x for √(1−β_t) z_{t−1} in the walk",
    "self.transition(z, t).sample",
    "self.transition(x, t).sample",
    f + "test_sample_path_is_the_recursion",
)
F(
    "forward.py",
    "σ_s² for σ_t² in σ²_{t|s}",
    "logsigmoid(gamma_t) + torch.log(-",
    "logsigmoid(gamma_s) + torch.log(-",
    f + "test_marginal_and_transition",
)
F(
    "forward.py",
    "γ_s, γ_t swapped in σ_s²/σ_t²",
    "torch.exp(logsigmoid(gamma_s) - logsigmoid(gamma_t))",
    "torch.exp(logsigmoid(gamma_t) - logsigmoid(gamma_s))",
    f + "test_between_and_transition_over_any_gap[1-2]",
)
F(
    "forward.py",
    "α_t for α_s before x in the posterior",
    "alpha(gamma_s) * lost",
    "alpha(gamma_t) * lost",
    f + "test_between_and_transition_over_any_gap[1-2]",
)
F(
    "forward.py",
    "transition variance for posterior variance",
    "logsigmoid(gamma_s) + torch.log(lost)",
    "logsigmoid(gamma_t) + torch.log(lost)",
    f + "test_between_and_transition_over_any_gap[1-2]",
)
F(
    "forward.py",
    "q(z_{t−1}|z_t, x) for q(z_t|z_{t+1}, x)",
    "self.between(z_next, x, t, t + 1)",
    "self.between(z_next, x, t - 1, t)",
    f + "test_between_and_transition_over_any_gap[2-3]",
)
F(
    "forward.py",
    "DDIM: η for η² in the direction",
    "1 - eta**2 * lost",
    "1 - eta * lost",
    f + "test_ddim_keeps_the_marginals",
)
F(
    "forward.py",
    "DDIM: η for η² in the variance",
    "torch.log(eta**2 * lost)",
    "torch.log(eta * lost)",
    f + "test_ddim_keeps_the_marginals",
)
F("ledger.py", "prior dropped", "self.kl.sum(1) + self.prior", "self.kl.sum(1)", l + "test_costs_add_up")
F(
    "ledger.py",
    "mean of KL_t for their sum",
    "self.reconstruction + self.kl.sum(1)",
    "self.reconstruction + self.kl.mean(1)",
    l + "test_costs_add_up",
)
F("ledger.py", "nats for bits", "dimensions * math.log(2)", "float(dimensions)", l + "test_units")
F(
    "ledger.py",
    "bits to nats for nats to bits",
    "per_unit(self.unit, dimensions) / per_unit(unit, dimensions)",
    "per_unit(unit, dimensions) / per_unit(self.unit, dimensions)",
    l + "test_units",
)
F(
    "ledger.py",
    "sign of the information in the looser bound",
    "self.nelbo + information",
    "self.nelbo - information",
    l + "test_costs_add_up",
)
F(
    "ledger.py",
    "importance weights dropped",
    "self.values * self.weight.to(self.values)",
    "self.values",
    l + "test_draws_are_weighted",
)
F(
    "levels.py",
    "t from 0 for t from 1",
    "SampledLevels((v * levels).long() + 1",
    "SampledLevels((v * levels).long()",
    v + "test_each_level_comes_as_often_as_its_weight_says[1-uniform]",
)
F(
    "levels.py",
    "the end of a level's cell for its middle",
    "(level.double() - 0.5) / levels",
    "level.double() / levels",
    v + "test_position_is_the_middle_of_the_cell",
)
F(
    "levels.py",
    "second moment for its root",
    "(self.second_moment / self.norm).sqrt()",
    "(self.second_moment / self.norm)",
    v + "test_adaptive_learns_the_root_of_the_second_moment",
)
F(
    "levels.py",
    "importance sampling without its weights",
    "1 / (_cumulative(edges, end) - _cumulative(edges, start))",
    "torch.full_like(u, levels)",
    v + "test_many_levels_have_exact_weights",
)
F("levels.py", "1/π of a cell for 1/F'", "1 / (mass[cell] * cells)", "1 / mass[cell]", v + "test_continuous_time")
F(
    "levels.py",
    "strata dealt in order, not at random",
    "torch.randperm(n, generator=generator, device=device)",
    "torch.arange(n, device=device)",
    v + "test_an_item_sees_all_levels_under_stratification",
)
F(
    "space.py",
    "bin width over K for K − 1",
    "(self.high - self.low) / (self.levels - 1)",
    "(self.high - self.low) / self.levels",
    sp + "test_levels_there_and_back",
)
F("space.py", "level below for nearest level", ".round().clamp", ".floor().clamp", sp + "test_levels_there_and_back")
F(
    "space.py",
    "sign of the log-Jacobian",
    "math.fsum(math.log(s)",
    "math.fsum(-math.log(s)",
    sp + "test_standardisation_and_its_jacobian",
)
F(
    "space.py",
    "one scale counted once, not D times",
    "total * self.dimensions if",
    "total if",
    sp + "test_standardisation_and_its_jacobian",
)
w = m + "test_every_cost_in_a_gaussian_world[betas-noise-float64]"
F(
    "exact.py",
    "mmse(γ_t) for mmse(γ_{t+1}) in KL_t",
    "(snr[:-1] - snr[1:]) * error[1:]",
    "(snr[:-1] - snr[1:]) * error[:-1]",
    w,
)
F("exact.py", "−1 dropped from r − 1 − ln r", "(r - 1 - torch.log(r))", "(r - torch.log(r))", w)
F("exact.py", "KL_T without its ½", "prior = 0.5 * (prior", "prior = (prior", w)
F(
    "exact.py",
    "I(x; z) of a Gaussian without its ½",
    "0.5 * float(torch.log1p(snr",
    "float(torch.log1p(snr",
    e + "test_closed_forms_agree_with_quadrature",
)
F(
    "exact.py",
    "variance between components dropped from the mmse",
    "(within + (x - mean.unsqueeze(1)).square().sum(2))",
    "within",
    e + "test_one_dimensional_mixture_against_its_definitions",
)
F(
    "exact.py",
    "h(z|x) without its 1",
    "float(_LOG_2PI + 1 + torch.log(torch.sigmoid(g)))",
    "float(_LOG_2PI + torch.log(torch.sigmoid(g)))",
    e + "test_one_dimensional_mixture_against_its_definitions",
)
F(
    "exact.py",
    "α² for α in the points' evidence",
    "torch.sigmoid(-gamma).sqrt() / torch.sigmoid(gamma)",
    "torch.sigmoid(-gamma) / torch.sigmoid(gamma)",
    e + "test_finite_chunks_change_nothing",
)
F(
    "exact.py",
    "weights of repeated points dropped",
    "self.weights.log() + alpha_over_sigma2",
    "alpha_over_sigma2",
    e + "test_finite_information_agrees_with_quadrature",
)
F(
    "baselines.py",
    "histogram's masses over N + a for N + a K",
    "(len(raw) + a * space.levels)",
    "(len(raw) + a)",
    b + "test_factorised_is_the_smoothed_histogram",
)
F(
    "baselines.py",
    "smoothing of a mixture's weights dropped",
    "(n_c + a) / (n + a * c)",
    "n_c / n",
    b + "test_an_em_step_is_its_formula",
)
F(
    "baselines.py",
    "½ ln det for ln det of the factor",
    "self.factor.diagonal().log().sum()",
    "0.5 * self.factor.diagonal().log().sum()",
    b + "test_gaussian_is_scipy_s_in_the_original_units",
)
F(
    "baselines.py",
    "sign of the log-Jacobian",
    "half_log_det - self.space.log_jacobian()",
    "half_log_det + self.space.log_jacobian()",
    b + "test_gaussian_is_scipy_s_in_the_original_units",
)
F(
    "baselines.py",
    "S added whole to the shrunk covariance",
    "(1 - rho) * s + rho",
    "s + rho",
    b + "test_gaussian_is_scipy_s_in_the_original_units",
)
q = p + "test_every_prediction_in_every_language"
F(
    "models/parameterization.py",
    "σ for σ² in Tweedie's formula",
    "self.z + s * s * self.value",
    "self.z + s * self.value",
    q,
)
F("models/parameterization.py", "sign of v in ε̂", "s * self.z + a * self.value", "s * self.z - a * self.value", q)
F(
    "models/parameterization.py",
    "sign of x in v",
    "a * noise - s * x",
    "a * noise + s * x",
    p + "test_squared_error_is_that_of_the_noise",
)
F(
    "models/parameterization.py",
    "α² for SNR before ‖x − x̂‖²",
    "log_alpha2 - log_sigma2",
    "log_alpha2",
    p + "test_squared_error_is_that_of_the_noise",
)
F(
    "models/parameterization.py",
    "half a bin for a bin under the logistic",
    "torch.expm1(-space.width / s)",
    "torch.expm1(-0.5 * space.width / s)",
    p + "test_logistic_against_scipy",
)
F(
    "models/parameterization.py",
    "evidence of z without its ½",
    "logits - 0.5 * distance.square()",
    "logits - distance.square()",
    p + "test_level_log_probs_against_bayes",
)
F(
    "models/parameterization.py",
    "x_k for α x_k in the evidence of z",
    "(a / s).unsqueeze(1) * values",
    "(1 / s).unsqueeze(1) * values",
    p + "test_level_log_probs_against_bayes",
)
F(
    "models/parameterization.py",
    "channels and levels confused in the logits",
    "(space.shape[0], space.levels)).movedim(2, 1)",
    "(space.levels, space.shape[0]))",
    p + "test_categorical_layout",
)
F(
    "models/denoiser.py",
    "γ for log-SNR",
    "(-gamma).to(z.dtype)",
    "gamma.to(z.dtype)",
    d + "test_the_module_sees_log_snr",
)
F(
    "models/denoiser.py",
    "mean over levels for the sum Σ p_k x_k",
    "(log_probs.exp() * values).sum(1)",
    "(log_probs.exp() * values).mean(1)",
    d + "test_levels_and_their_mean",
)
F(
    "models/denoiser.py",
    "α z for z/α",
    "z / align(alpha(gamma), z)",
    "z * align(alpha(gamma), z)",
    d + "test_unassisted",
)
F(
    "models/backward.py",
    "sign in expm1(γ_t − γ_s)",
    "torch.expm1(gamma_t.double() - gamma_s.double())",
    "torch.expm1(gamma_s.double() - gamma_t.double())",
    k + "test_kl_is_the_kl",
)
F("models/backward.py", "KL without its ½", "half = 0.5 * torch.expm1", "half = torch.expm1", k + "test_kl_is_the_kl")
F(
    "models/backward.py",
    "r dropped before the squared error",
    "torch.exp(log_r) * half",
    "half",
    k + "test_kl_is_the_kl",
)
F(
    "models/backward.py",
    "D dropped before φ",
    "0.5 * dimensions * phi(log_r)",
    "0.5 * phi(log_r)",
    k + "test_kl_is_the_kl",
)
F(
    "models/backward.py",
    "v_p/v_q for v_q/v_p",
    "logsigmoid(gamma_s.double()) - logsigmoid(gamma_t.double())",
    "logsigmoid(gamma_t.double()) - logsigmoid(gamma_s.double())",
    k + "test_kl_is_the_kl",
)
F(
    "models/backward.py",
    "dKL/du without its ½",
    "0.5 * dgamma.double()",
    "dgamma.double()",
    k + "test_kl_density_integrates_to_the_sum_of_many_steps",
)
F(
    "models/backward.py",
    "α_T for α_T² in KL_T",
    "torch.sigmoid(-gamma_last) * flat",
    "torch.sigmoid(-gamma_last).sqrt() * flat",
    k + "test_prior_kl",
)
F(
    "models/backward.py",
    "sign of ln r in the variance of p",
    "q.log_variance - align(",
    "q.log_variance + align(",
    k + "test_step_as_written_out",
)
F(
    "models/time.py",
    "sign of the shift",
    "self.scale * log_snr + self.shift",
    "self.scale * log_snr - self.shift",
    d + "test_affine",
)
F(
    "models/time.py",
    "index off by one",
    "return index + self.first",
    "return index + self.first + 1",
    d + "test_trained_index_in_a_denoiser",
)
n = li + "test_normalised_and_as_written_out"
F("models/likelihood.py", "bins twice as wide", "half = 0.5 * self.space.width", "half = self.space.width", n)
F("models/likelihood.py", "variance for standard deviation", "align(variance.sqrt(), mean)", "align(variance, mean)", n)
F(
    "models/likelihood.py",
    "lowest bin not open",
    "torch.where(index == 0, -torch.inf, (x - half - mean) / std)",
    "(x - half - mean) / std",
    n,
)
F(
    "models/likelihood.py",
    "sign in expm1",
    "torch.log(-torch.expm1(log_ratio))",
    "torch.log(torch.expm1(-log_ratio))",
    li + "test_bin_mass_against_mpmath",
)
F(
    "models/likelihood.py",
    "γ_1/2 for γ_1, ln s for ln s²",
    "align(prediction.gamma.double(), prediction",
    "align(0.5 * prediction.gamma.double(), prediction",
    li + "test_gaussian_density_takes_the_variance_of_z_over_alpha",
)
F(
    "models/likelihood.py",
    "ln s² dropped from the density",
    "squared + log_variance + math.log",
    "squared + math.log",
    li + "test_gaussian_density_takes_the_variance_of_z_over_alpha",
)
F("models/likelihood.py", "low dropped from P(high)", "(prediction.data - self.space.low) /", "prediction.data /", n)
F(
    "models/likelihood.py",
    "levels drawn from the other end of the CDF",
    "(cdf < v)",
    "(cdf > v)",
    li + "test_gather_and_sample_levels",
)
F("models/diffusion.py", "γ_T for γ_1 in the reconstruction", "ends()[0].expand", "ends()[1].expand", w)
F("models/diffusion.py", "γ_t, γ_{t+1} swapped", "grid[level - 1], grid[level]", "grid[level], grid[level - 1]", w)
F(
    "models/diffusion.py",
    "the network sees z_t for z_{t+1}",
    "self._gammas(level)[1]",
    "self._gammas(level)[0]",
    m + "test_a_cost_is_the_kl_of_two_gaussians",
)
F(
    "models/diffusion.py",
    "noise of z_t for that of z_{t+1}",
    "noise[i + 1 : i + 1 + step]",
    "noise[i : i + step]",
    m + "test_terms_is_the_sum_of_the_primitives",
)
F(
    "models/diffusion.py",
    "ln q(z_t|x) for ln q(z_t|z_{t−1}) along the path",
    "self.process.transition(before, t)",
    "self.process.transition(x, t)",
    m + "test_path_form_equals_rao_blackwellised_form",
)
F(
    "models/diffusion.py",
    "sign of the log-ratios along the path",
    "(log_q - log_p)",
    "(log_p - log_q)",
    m + "test_path_form_equals_rao_blackwellised_form",
)
F(
    "models/diffusion.py",
    "a cell's integral without its width",
    "noise, condition) / n)",
    "noise, condition))",
    m + "test_elbo_in_continuous_time_is_the_integral",
)
F(
    "models/diffusion.py",
    "log-Jacobian of the bound dropped",
    "(x.shape[0],), self.space.log_jacobian()",
    "(x.shape[0],), 0.0",
    m + "test_standardised_data_are_charged_for_their_jacobian",
)
F(
    "models/diffusion.py",
    "log-Jacobian of the loss dropped",
    "total / n + self.space.log_jacobian()",
    "total / n",
    m + "test_standardised_data_are_charged_for_their_jacobian",
)
u = m + "test_loss_is_unbiased_with_its_gradient[uniform-True-8]"
F(
    "models/diffusion.py",
    "z_1's share of the batch not weighted",
    "log_prob.sum() / RECONSTRUCTION_SHARE",
    "log_prob.sum()",
    u,
)
F(
    "models/diffusion.py",
    "the levels' share of the batch not weighted",
    "weight[visits] / (1 - RECONSTRUCTION_SHARE)",
    "weight[visits]",
    u,
)
F(
    "models/diffusion.py",
    "prior dropped from the loss",
    "draws.estimate().sum() + self.prior(x).sum()",
    "draws.estimate().sum()",
    u,
)
F(
    "models/diffusion.py",
    "prior dropped from the loss, decoder without network",
    "normal_(generator=generator)) + self.prior(x)",
    "normal_(generator=generator))",
    m + "test_loss_is_unbiased_with_its_gradient[uniform-False-8]",
)
F(
    "models/diffusion.py",
    "L_simple per item for per dimension",
    ".mean() / self.space.dimensions",
    ".mean()",
    m + "test_simple_loss_is_the_mean_squared_noise_error",
)
x = ev + "TODO"
F(
    "evaluation/evaluation.py",
    "error of the mean over √N for N",
    "float(mc_variance.sum().sqrt()) / n",
    "float(mc_variance.sum().sqrt()) / math.sqrt(n)",
    x,
)
F("evaluation/evaluation.py", "standard deviation over items for its standard error", "0.0) / n) if", "0.0)) if", x)
F(
    "evaluation/evaluation.py",
    "Monte Carlo part left in the spread over items",
    "max(between - float(mc_variance.mean()), 0.0)",
    "max(between, 0.0)",
    x,
)
F(
    "evaluation/evaluation.py",
    "variance of one draw for that of their mean",
    "sweeps.sum(2).var(0) / draws",
    "sweeps.sum(2).var(0)",
    x,
)
F("evaluation/evaluation.py", "mean over levels for their sum", "sweeps.mean(0).sum(1)", "sweeps.mean(0).mean(1)", x)
F(
    "evaluation/evaluation.py",
    "reconstruction's draws summed, not averaged",
    "reconstruction.append(costs.mean(0))",
    "reconstruction.append(costs.sum(0))",
    x,
)
F(
    "evaluation/evaluation.py",
    "left end of a cell for a uniform u",
    "(level + jitter.flatten()[a:b]) / levels",
    "level / levels",
    x,
)
F("evaluation/noise.py", "seed left out of an item's key", "{seed}:{seen[content]}", "{seen[content]}", no + "TODO")
F("evaluation/noise.py", "the same noise for every draw", 'key + draw.to_bytes(8, "little")', "key", no + "TODO")
out = '''"""The faults that `mutants.py` plants: wrong mathematics of the kinds that are easy to write and hard to see.

`old` is there exactly once in the file, and short, so that it survives reformatting; `new` runs, and differs from `old` in
what it computes for some input: a fault that changes nothing proves nothing. `tests` are those expected to find it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """In src/diffusional/`file`, `new` for `old`: `what` it means. `tests` are pytest arguments."""

    file: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]


def _fault(file: str, what: str, old: str, new: str, *tests: str) -> Fault:
    """`tests` relative to tests/."""
    return Fault(file, what, old, new, tuple(f"tests/{test}" for test in tests))


FAULTS = [
'''


def q_(t):
    return "'" + t + "'" if '"' in t else '"' + t + '"'


for file, what, old, new, tests in rows:
    out += "    _fault(" + ", ".join(q_(t) for t in (file, what, old, new, *tests)) + ",),\n"
out += "]\n"
open("faults.py", "w").write(out)
print(len(rows))
