// What is shown is in the address, after #: it can be shared, and the back button works.

export const VIEWS = ["next", "people", "model"];

/** The view and its parameters. */
export function current() {
  const [view, query = ""] = decodeHash(location.hash).split(/\?(.*)/s);
  return { view: VIEWS.includes(view) ? view : "next", params: new URLSearchParams(query) };
}

const decodeHash = (hash) => hash.replace(/^#\/?/, "");

/** The address of a view. Changes are values by name, lists of values, or null to leave a parameter out. */
export function link(view, changes = {}, params = new URLSearchParams()) {
  const next = new URLSearchParams(params);
  for (const [name, value] of Object.entries(changes)) {
    next.delete(name);
    if (Array.isArray(value)) value.forEach((one) => next.append(name, one));
    else if (value !== null && value !== undefined && value !== "") next.set(name, value);
  }
  const query = next.toString();
  return query ? `#${view}?${query}` : `#${view}`;
}

/** Change parameters of the present view. */
export function go(changes) {
  const { view, params } = current();
  location.hash = link(view, changes, params);
}
