/** Links that show one scene to whoever has them. */

import type { Access } from "./key";
import { opened } from "./dialog";
import { announce, h, icon } from "./dom";
import { when } from "./words";
import { Problem } from "../api";

const DAY = 86_400;
const CHOICES = [
  [3600, "1 hour"],
  [DAY, "1 day"],
  [7 * DAY, "7 days"],
] as const;
const KEPT = "scenelift.links";

/** The job's address that the viewer reads: with a link's token where a key is in use, which pictures cannot send. */
export async function address(access: Access, base: string, id: string): Promise<string> {
  const url = new URL(`/jobs/${id}`, base);
  if (!access.keyed) return url.href;
  const links: Record<string, { token: string; until: number }> = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}");
  if (!(links[id] && links[id].until > Date.now() + 1000 * 3600)) {
    const link = await access.call((service) => service.share(id, 7 * DAY));
    links[id] = { token: link.token, until: Date.parse(link.expires_at) };
    sessionStorage.setItem(KEPT, JSON.stringify(links));
  }
  url.searchParams.set("token", links[id]!.token);
  return url.href;
}

/** Ask for how long, then show the link to copy and to pass on. */
export async function share(access: Access, base: string, id: string): Promise<void> {
  const radios = CHOICES.map(([seconds, words], index) =>
    h(
      "label",
      { class: "choice" },
      h("input", { type: "radio", name: "seconds", value: String(seconds), checked: index === 2 }),
      words,
    ),
  );
  const output = h("input", { readonly: true, id: "link", "aria-label": "The link" });
  const copy = h("button", { type: "button", class: "primary" }, icon("copy"), "Copy");
  const pass = h("button", { type: "button", class: "plain" }, icon("share"), "Share…");
  const told = h("p", { class: "quiet", role: "status" });
  const result = h("div", { class: "link", hidden: true }, output, h("div", { class: "actions" }, pass, copy));
  const make = h("button", { class: "primary" }, "Make a link");
  const making = h("div", { class: "actions" }, make);
  const { form, closed } = opened(
    "Share this scene",
    h("p", {}, "Whoever has the link can look at the scene and download its files, until the link ends."),
    h("fieldset", { class: "choices" }, h("legend", {}, "The link works for"), ...radios),
    result,
    told,
    making,
  );
  pass.hidden = !("share" in navigator);
  pass.onclick = () => void navigator.share({ title: "Scenelift", url: output.value }).catch(() => undefined);
  copy.onclick = async () => {
    await copied(output);
    told.textContent = "Copied.";
  };
  form.onchange = () => {
    result.hidden = true;
    making.hidden = false;
    told.textContent = "";
  };
  form.onsubmit = async (event) => {
    event.preventDefault();
    make.disabled = true;
    try {
      const seconds = Number(new FormData(form).get("seconds"));
      const link = await access.call((service) => service.share(id, seconds));
      output.value = new URL(link.page, base).href;
      result.hidden = false;
      making.hidden = true;
      const near = ["127.0.0.1", "localhost", "[::1]"].includes(location.hostname);
      const place = near ? " It opens on this computer only, as the service is not reached from others." : "";
      const done = await copied(output);
      told.textContent = `${done ? "Copied. " : ""}It works until ${when(link.expires_at)}.${place}`;
      copy.focus();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      told.textContent = `${error.message} ${error.suggestion}`;
      announce(error.message);
    } finally {
      make.disabled = false;
    }
  };
  await closed;
}

/** Whether the browser let us. The clipboard is there on https and on this machine only; else there is the old way. */
async function copied(input: HTMLInputElement): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(input.value);
    return true;
  } catch {
    input.select();
    return document.execCommand("copy");
  }
}
