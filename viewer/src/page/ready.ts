/** A quiet line while the service cannot do any job; it goes by itself. */

import type { Access } from "./key";

const PAUSE = { ready: 60_000, waiting: 4_000 };

/** Look now, and from time to time while the page is looked at; `back` is called when the service is ready again. */
export async function watchReadiness(access: Access, banner: HTMLElement, back: () => void): Promise<never> {
  while (true) {
    if (document.hidden) await new Promise((resolve) => document.addEventListener("visibilitychange", resolve));
    const reasons = await access.service.reasons();
    const text = reasons.length ? `Not ready for new scenes: ${reasons.join(" ")} This page goes on looking.` : "";
    // Saying the same again would be read out again.
    if (banner.textContent !== text) {
      banner.textContent = text;
      if (!text) back();
    }
    await new Promise((resolve) => setTimeout(resolve, text ? PAUSE.waiting : PAUSE.ready));
  }
}
