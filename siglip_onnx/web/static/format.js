// Numbers as people read them. A probability is computed from its logit, so that it never rounds to 0 or 1.

/** Return the probability of a logit and what it lacks to 1, both exact where the other would round. */
export function sigmoid(logit) {
  const small = Math.exp(-Math.abs(logit));
  const near = 1 / (1 + small);
  const far = small / (1 + small);
  return logit >= 0 ? [near, far] : [far, near];
}

/** Return each logit's share among all (softmax), and what it lacks to 1. */
export function shares(logits) {
  const most = Math.max(...logits);
  const weights = logits.map((logit) => Math.exp(logit - most));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight, number) => {
    const rest = weights.reduce((sum, other, index) => (index === number ? sum : sum + other), 0);
    return [weight / total, rest / total];
  });
}

/** Three significant digits, as the command line writes them: 0.987, 1.40e-04, 1-2.3e-05; never 0.000. */
export function threeDigits([value, rest]) {
  if (value === 0) return "<1e-300";
  if (value < 0.001) return exponential(value, 2);
  if (value >= 0.9995 && rest > 0) return `1-${exponential(rest, 1)}`;
  return value.toPrecision(3);
}

function exponential(value, digits) {
  return value.toExponential(digits).replace(/e([+-])(\d)$/, "e$10$2");
}

export const milliseconds = (value) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));
