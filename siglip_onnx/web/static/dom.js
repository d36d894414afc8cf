// Create DOM elements; the page's Content Security Policy forbids markup in strings.

export const byId = (id) => document.getElementById(id);

/** Return a new element; properties with a dash in their name, role, scope and colspan are set as attributes. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-") || name === "role" || name === "scope" || name === "colspan") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
