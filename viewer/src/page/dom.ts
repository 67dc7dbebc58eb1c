/** Elements made from script: text is always text, never markup. */

type Child = Node | string | false | null | undefined;

/** An element with these properties (`className`, `onclick`, `ariaLabel`, ...) and children. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  properties: Partial<HTMLElementTagNameMap[K]> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== false && child !== null && child !== undefined));
  return element;
}

/** The element of index.html with this id. */
export function part<K extends keyof HTMLElementTagNameMap>(tag: K, id: string): HTMLElementTagNameMap[K] {
  const found = document.querySelector<HTMLElementTagNameMap[K]>(`${tag}#${id}`);
  if (!found) throw new Error(`index.html has no <${tag} id="${id}">`);
  return found;
}

const ICONS = {
  add: "M12 5v14M5 12h14",
  archive: "M6 3h9l4 4v14H6zM10 3v2h2v2h-2v2h2v2h-2v2M10 13h2v4h-2z",
  close: "M6 6l12 12M18 6 6 18",
  copy: "M9 9h11v11H9zM15 9V4H4v11h5",
  key: "M8 11.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9zM11.2 12.8 20 4M16 8l3 3M13.5 10.5l2 2",
  left: "M14.5 6l-6 6 6 6",
  photo: "M4 5h16v14H4zM4 16l4.5-4.5 4 4 2.5-2.5 5 5M15.5 9.5h.01",
  right: "M9.5 6l6 6-6 6",
  share: "M12 15V4M8 7.5 12 3.5l4 4M5 12v8h14v-8",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.5 11v5.5M13.5 11v5.5",
  video: "M4 6h11v12H4zM15 10.5l5-3v9l-5-3",
  warning: "M12 4 3 19.5h18zM12 10v4.5M12 17h.01",
} as const;

/** A drawing of 24 pixels in the colour of the text, for the eye alone. */
export function icon(name: keyof typeof ICONS): SVGSVGElement {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  const path = document.createElementNS(space, "path");
  for (const [key, value] of [["viewBox", "0 0 24 24"], ["class", "icon"], ["aria-hidden", "true"]] as const) {
    drawing.setAttribute(key, value);
  }
  path.setAttribute("d", ICONS[name]);
  drawing.append(path);
  return drawing;
}

/** A button that is only a drawing; its name is there for readers and as a tip. */
export function tool(name: keyof typeof ICONS, label: string, onclick: () => void): HTMLButtonElement {
  return h("button", { type: "button", className: "tool", ariaLabel: label, title: label, onclick }, icon(name));
}

let waiting: number | undefined;
let latest = "";

/** Say something to screen readers; of what comes faster than it can be heard, the latest. */
export function announce(text: string): void {
  latest = text;
  if (waiting !== undefined) return;
  part("div", "live").textContent = latest;
  waiting = window.setTimeout(() => {
    waiting = undefined;
    if (latest !== part("div", "live").textContent) announce(latest);
  }, 4000);
}
