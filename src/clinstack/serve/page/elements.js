/* Making elements without any markup in strings: text is text, whatever it holds. */

export const $ = (id) => document.getElementById(id);

/** Make an element with attributes (a class is "class") and children, which are nodes or texts. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Say something to screen readers without moving anything on the page. */
export function say(text) {
  $("status").textContent = text;
}

/** "length_of_stay" as people write it: "Length of stay". */
export function words(name) {
  const text = name.replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function percent(share) {
  if (share > 0 && share < 0.0005) return "<0.1%";
  if (share < 1 && share > 0.9995) return ">99.9%";
  return `${(100 * share).toFixed(1)}%`;
}
