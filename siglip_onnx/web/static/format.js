// Format numbers. A probability is computed from its logit, so that it never rounds to 0 or 1.

/** Return the probability of a logit and its complement to 1, each exact even where the other rounds. */
export function sigmoid(logit) {
  const small = Math.exp(-Math.abs(logit));
  const near = 1 / (1 + small);
  const far = small / (1 + small);
  return logit >= 0 ? [near, far] : [far, near];
}

/** Return the largest of some numbers, which may be more than a function takes as arguments. */
export const largest = (values) => values.reduce((most, value) => Math.max(most, value), -Infinity);

/** Return the softmax of each logit, and its complement to 1. */
export function shares(logits) {
  const most = largest(logits);
  const weights = logits.map((logit) => Math.exp(logit - most));
  const best = weights.indexOf(1);
  const others = weights.reduce((sum, weight, number) => (number === best ? sum : sum + weight), 0);
  const total = others + 1;
  // Without the best, whose complement may be tiny, no weight is more than half of the total.
  return weights.map((weight, number) => [weight / total, (number === best ? others : total - weight) / total]);
}

/** Format with three significant digits, as the command line does: 0.987, 1.40e-04, 1-2.3e-05; never 0.000. */
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
