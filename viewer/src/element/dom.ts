/** Elements made by hand. Text is only ever text: nothing here reads markup. */

type Attributes = Record<string, string | number | boolean | ((event: Event) => void)>;

/** An element; attributes that are functions listen (`onclick`, `oninput`), true ones are there, false ones are not. */
export function h<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  attributes: Attributes = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[Name] {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(key, value);
    else element.setAttribute(key, String(value));
  }
  element.append(...children);
  return element;
}
