/** What opens above the toolbar: the scene stays in sight and in use beside it. */

import { h } from "./dom";
import { icon } from "./icons";

export class Panel {
  private readonly body = h("div", { class: "body" });
  private readonly heading: HTMLElement;
  readonly element: HTMLElement;

  constructor(title: string, onClose: () => void) {
    this.heading = h("h2", { tabindex: -1 }, title);
    const close = h("button", {
      type: "button",
      class: "tool",
      title: "Close (Esc)",
      "aria-label": "Close",
      onclick: onClose,
    });
    close.append(icon("close"));
    this.element = h(
      "section",
      { class: "panel", part: "panel", role: "dialog", "aria-label": title, hidden: true },
      h("header", {}, this.heading, close),
      this.body,
    );
  }

  fill(...content: Node[]): void {
    this.body.replaceChildren(...content);
  }

  get open(): boolean {
    return !this.element.hidden;
  }

  set open(open: boolean) {
    this.element.hidden = !open;
    if (open) this.heading.focus({ preventScroll: true });
  }
}
