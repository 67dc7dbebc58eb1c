/** The API key, where the service wants one: asked for when that turns out, and kept until the tab is closed. */

import { Problem, Service } from "../api";
import { h } from "./dom";
import { opened } from "./dialog";

const KEPT = "scenelift.key";

/** Whoever calls the service. Events: `change`, when the key is another. */
export class Access extends EventTarget {
  service: Service;
  private asking: Promise<boolean> | null = null;

  constructor(private readonly base: string) {
    super();
    this.service = new Service(base, this.key);
  }

  get keyed(): boolean {
    return this.key !== "";
  }

  /** Call the service; where it wants a key, ask for one and call again. Raises Problem, 401 where none is given. */
  async call<T>(ask: (service: Service) => Promise<T>): Promise<T> {
    while (true) {
      const service = this.service;
      try {
        return await ask(service);
      } catch (error) {
        if (!(error instanceof Problem) || error.status !== 401) throw error;
        // Another call may have asked already.
        if (this.service === service && !(await this.ask())) throw error;
      }
    }
  }

  /** Ask for a key that the service takes. False where the question is closed. */
  ask(): Promise<boolean> {
    this.asking ??= this.dialog().finally(() => (this.asking = null));
    return this.asking;
  }

  forget(): void {
    this.use("");
  }

  private get key(): string {
    return sessionStorage.getItem(KEPT) ?? "";
  }

  private use(key: string): void {
    if (key) sessionStorage.setItem(KEPT, key);
    else sessionStorage.removeItem(KEPT);
    this.service = new Service(this.base, key);
    this.dispatchEvent(new Event("change"));
  }

  private async dialog(): Promise<boolean> {
    const refused = this.keyed ? "The key that was used until now is not valid any more." : "";
    const fault = h("p", { class: "fault", role: "alert" }, refused);
    const input = h("input", { type: "password", id: "key", autocomplete: "off", required: true, spellcheck: "false" });
    const submit = h("button", { class: "primary" }, "Use this key");
    const { dialog, form, closed } = opened(
      "This service asks for an API key",
      h("p", {}, "Whoever runs it makes one on its machine, with ", h("code", {}, "scenelift keys create NAME"), "."),
      h("label", { for: "key" }, "API key"),
      input,
      h("p", { class: "quiet" }, "It is kept until this tab is closed."),
      fault,
      h(
        "div",
        { class: "actions" },
        h("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Not now"),
        submit,
      ),
    );
    let taken = false;
    form.onsubmit = async (event) => {
      event.preventDefault();
      const key = input.value.trim();
      submit.disabled = true;
      try {
        await new Service(this.base, key).models();
        this.use(key);
        taken = true;
        dialog.close();
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        fault.textContent = error.status === 401 ? "The service does not know this key." : error.message;
        input.select();
      } finally {
        submit.disabled = false;
      }
    };
    input.focus();
    await closed;
    return taken;
  }
}
