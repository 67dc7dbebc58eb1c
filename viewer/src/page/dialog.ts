/** Questions over the page. */

import { h, tool } from "./dom";

interface Opened {
  readonly dialog: HTMLDialogElement;
  readonly form: HTMLFormElement;
  /** Settles when the dialog is closed and gone. */
  readonly closed: Promise<void>;
}

/** A dialog with this title and content, open; Escape closes it, and the focus goes back to where it was. */
export function opened(title: string, ...content: Node[]): Opened {
  const heading = h("h2", {}, title);
  const form = h("form", { method: "dialog" }, ...content);
  const close = tool("close", "Close", () => dialog.close());
  const dialog: HTMLDialogElement = h("dialog", { "aria-label": title }, h("div", { class: "title" }, heading, close), form);
  const closed = new Promise<void>((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve();
    });
  });
  document.body.append(dialog);
  dialog.showModal();
  return { dialog, form, closed };
}

/** Whether the answer is yes. */
export async function confirmed(title: string, text: string, yes: string): Promise<boolean> {
  let answer = false;
  const { dialog, form, closed } = opened(
    title,
    h("p", {}, text),
    h(
      "div",
      { class: "actions" },
      h("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Keep it"),
      h("button", { class: "danger" }, yes),
    ),
  );
  form.onsubmit = () => {
    answer = true;
  };
  await closed;
  return answer;
}
