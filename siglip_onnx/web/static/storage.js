// Choices that the browser keeps, or only this page where the browser blocks site data.

const kept = new Map();

export function load(name) {
  try {
    return localStorage.getItem(name) ?? kept.get(name) ?? null;
  } catch {
    return kept.get(name) ?? null;
  }
}

export function save(name, value) {
  kept.set(name, value);
  try {
    localStorage.setItem(name, value);
  } catch {
    // Kept until the page is closed.
  }
}
